import pytest
import torch

from common.reporting.intervals import wilson
from prompt_task.class_accuracy import answers_by_text, class_accuracies


def test_classes_have_their_own_accuracy_and_prompts_that_answer_alike_are_worth_one():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    one = torch.tensor([[1, 1, 1, 0, 0, 1, 1]], dtype=torch.bool)
    rows = class_accuracies(one.expand(3, -1), labels, [" terrible", " bad", " okay", " great"])
    assert [(row["class"], row["texts"], row["accuracy"]) for row in rows] == [
        (" terrible", 4, pytest.approx(0.75)),
        (" bad", 2, pytest.approx(0.5)),
        (" great", 1, 1.0),
    ]
    assert (rows[0]["low"], rows[0]["high"]) == pytest.approx(wilson(0.75, 4))
    assert answers_by_text(one.expand(3, -1)).interval == pytest.approx(wilson(5 / 7, 7))
    # Prompts that are right on texts of their own say more than one of them.
    apart = torch.tensor([[1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]], dtype=torch.bool)
    assert answers_by_text(apart).effective > 5.9
