import inspect
import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from common.errors import UserError
from prompt_task.few_shot_data import Example
from prompt_task.prompt_scorer import (
    BYTES_PER_PROMPT,
    PromptScorer,
    check_preference,
    label_gaps,
    preference,
    soft_accuracy,
)
from prompt_task.task_lm import TaskLM, make_task_lm
from tests import tiny_models
from tests.tiny_runs import SpyTaskLM

EXAMPLES = [Example(f"text {i}", i % 2) for i in range(10)]
TWO_PROMPTS = 2 * (10 * 2 * 4 + BYTES_PER_PROMPT) / 2**20  # MiB: prompts x examples x classes x float32
SHARE = torch.tensor([0, 1, 2, 4, 5, 6, 7, 9])  # 80 % of the examples


def any_lm() -> Any:
    return SpyTaskLM()


@pytest.fixture
def spy():
    return any_lm()


def test_the_spy_asks_what_a_task_lm_is_asked():
    assert list(inspect.signature(TaskLM.class_probabilities).parameters) == ["self", "pairs"]


def test_the_gap_is_the_label_minus_the_best_other_class():
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    gaps = label_gaps(probabilities, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(gaps, torch.tensor([0.2, -0.2, 0.7]))


def test_gaps_of_several_prompts_share_the_labels():
    probabilities = torch.tensor([[[0.9, 0.1], [0.4, 0.6]], [[0.2, 0.8], [0.5, 0.5]]])  # (P, E, C)
    gaps = label_gaps(probabilities, torch.tensor([0, 1]))
    torch.testing.assert_close(gaps, torch.tensor([[0.8, 0.2], [-0.6, 0.0]]))


def test_scores_scale_positive_gaps_by_200_and_others_by_180_and_average_over_examples():
    scores = preference(torch.tensor([[0.5, -0.25], [0.1, 0.2], [-1.0, -0.5]]), 200.0, 180.0)
    # (0.5 * 200 - 0.25 * 180) / 2 = 27.5;  (20 + 40) / 2 = 30;  (-180 - 90) / 2 = -135
    torch.testing.assert_close(scores.score, torch.tensor([27.5, 30.0, -135.0]))
    torch.testing.assert_close(scores.accuracy, torch.tensor([0.5, 1.0, 0.0]))


def test_a_tie_with_another_class_is_gap_0_and_not_correct():
    gaps = label_gaps(torch.tensor([[0.5, 0.5], [0.4, 0.4]]), torch.tensor([0, 1]))
    assert gaps.tolist() == [0.0, 0.0]
    scores = preference(gaps.unsqueeze(0), 200.0, 180.0)
    assert scores.score.item() == 0.0
    assert scores.accuracy.item() == 0.0


def test_standardized_scores_give_every_example_the_same_say():
    # All prompts differ by 1 on the first example and by 0.01 on the second, in opposite order.
    gaps = torch.tensor([[1.0, 0.01], [2.0, 0.0]]) / 100
    raw, standardized = preference(gaps, 100.0, 100.0), preference(gaps, 100.0, 100.0, standardize=True)
    assert raw.score[1] - raw.score[0] > 0.4
    # First example: (1, 2) -> (-1, 1); second: (0.01, 0) -> (1, -1), each but for the guard of 1e-4.
    torch.testing.assert_close(standardized.score, torch.zeros(2), atol=0.011, rtol=0)
    assert standardized.accuracy.tolist() == raw.accuracy.tolist()


def test_scores_are_those_of_the_definition(spy):
    scorer = PromptScorer(spy, EXAMPLES, correct_coeff=3.0, incorrect_coeff=2.0)
    scores = scorer.score(["a", "b"])
    for prompt, score, accuracy in zip("ab", scores.score, scores.accuracy, strict=True):
        expected, correct = [], []
        for example in EXAMPLES:
            p = any_lm().class_probabilities([(example.text, prompt)])[0]
            gap = (p[example.label] - p[1 - example.label]).item()
            expected.append(gap * (3.0 if gap > 0 else 2.0))
            correct.append(gap > 0)
        assert score.item() == pytest.approx(sum(expected) / 10, abs=1e-5)
        assert accuracy.item() == pytest.approx(sum(correct) / 10)


def test_a_preference_of_the_user(spy, monkeypatch):
    scorer = PromptScorer(spy, EXAMPLES, preference="tests.tiny_runs:least_of_all")
    scores, usual = scorer.score(["a", "b"]), PromptScorer(any_lm(), EXAMPLES).score(["a", "b"])
    assert torch.equal(scores.accuracy, usual.accuracy)
    probabilities = scorer.probabilities(["a", "b"])
    expected = [min(float(row[example.label]) for row, example in zip(p, EXAMPLES)) for p in probabilities]  # noqa: B905
    assert scores.score.tolist() == pytest.approx(expected)
    check_preference("preference", "tests.tiny_runs:least_of_all")
    own: Any = ModuleType("own")
    own.one, own.table = (lambda prompts: [1.0] * len(prompts)), (lambda prompts, probabilities, labels: probabilities)
    monkeypatch.setitem(sys.modules, "own", own)
    with pytest.raises(UserError, match=r"^preference: 'own:one' is called with \(prompts, probabilities, labels\)"):
        check_preference("preference", "own:one")
    with pytest.raises(UserError, match=r"gives back numbers of shape \(2, 3, 2\), not \(2,\)"):
        check_preference("preference", "own:table")


def test_nothing_is_asked_twice(spy):
    scorer = PromptScorer(spy, EXAMPLES)
    scorer.score(["a", "b", "a"])
    assert len(spy.asked) == len(set(spy.asked)) == 20
    scorer.score(["b", "a"])
    scorer.score(["b"], SHARE)
    assert len(spy.asked) == 20
    scorer.score(["b", "c"])
    assert len(spy.asked) == 30
    assert (scorer.prompts_scored, scorer.pairs_scored) == (3, 30)


def test_a_random_part_of_the_examples_is_a_selection_from_what_is_known(spy):
    scorer = PromptScorer(spy, EXAMPLES)
    scorer.score(["a"], SHARE)
    assert len(spy.asked) == 8
    whole = scorer.score(["a"])
    assert len(spy.asked) == 10  # only the two that were left out
    part = scorer.score(["a"], SHARE)
    fresh = PromptScorer(any_lm(), [EXAMPLES[i] for i in SHARE])
    assert part.score == fresh.score(["a"]).score
    assert whole.score != part.score
    assert scorer.prompts_scored == 1


def test_neither_order_nor_repetition_of_prompts_matters(spy):
    scores = PromptScorer(spy, EXAMPLES).score(["a", "b", "c"]).score
    again = PromptScorer(any_lm(), EXAMPLES).score(["c", "a", "c", "b"]).score
    assert again.tolist() == scores[[2, 0, 2, 1]].tolist()


def test_order_and_repetition_do_not_matter_to_a_real_task_lm_either():
    model, tokenizer = tiny_models.make("gpt2")
    lm = make_task_lm(model, tokenizer, tiny_models.SPEC, torch.device("cpu"), False)
    prompts = ["great", "dull film", "", " Grade Rated"]
    scores = PromptScorer(lm, tiny_models.EXAMPLES).score(prompts).score
    again = PromptScorer(lm, tiny_models.EXAMPLES).score(prompts[::-1]).score
    torch.testing.assert_close(again.flip(0), scores, atol=1e-3, rtol=0)  # a score is some 200 probabilities


def test_the_prompt_not_asked_for_the_longest_time_is_forgotten_first(spy):
    scorer = PromptScorer(spy, EXAMPLES, memory_mib=TWO_PROMPTS)
    for prompt in "abac":  # "b" is the oldest when "c" comes
        scorer.score([prompt])
    spy.asked.clear()
    scorer.score(["a"])
    assert not spy.asked
    scorer.score(["b"])
    assert len(spy.asked) == 10


def test_more_prompts_than_are_remembered_can_be_scored_at_once(spy):
    scorer = PromptScorer(spy, EXAMPLES, memory_mib=TWO_PROMPTS)
    expected = PromptScorer(any_lm(), EXAMPLES).score(list("abcde")).score
    assert scorer.score(list("abcde")).score.tolist() == expected.tolist()
    scorer.score(["a"])
    assert len(scorer._known) == 2


def test_what_is_known_survives_a_checkpoint(spy):
    scorer = PromptScorer(spy, EXAMPLES)
    scorer.score(["a", " b "], SHARE)
    tensors, values = scorer.state()
    restored = PromptScorer(spy, EXAMPLES)
    restored.load_state(tensors, values)
    spy.asked.clear()
    assert restored.score(["a", " b "], SHARE).score.tolist() == scorer.score(["a", " b "], SHARE).score.tolist()
    assert not spy.asked
    assert (restored.prompts_scored, restored.pairs_scored) == (2, 16)


def test_an_empty_memory_survives_a_checkpoint(spy):
    restored = PromptScorer(spy, EXAMPLES)
    restored.load_state(*PromptScorer(spy, EXAMPLES).state())
    assert restored.prompts_scored == 0


def test_progress_counts_every_pair_that_is_computed_once(spy):
    scorer = PromptScorer(spy, EXAMPLES)
    steps: list[int] = []
    scorer.score(["a", "b", "a"], on_pairs=steps.append)
    assert sum(steps) == 20
    assert len(steps) > 1  # a long table keeps the bar moving
    steps.clear()
    scorer.score(["a"], on_pairs=steps.append)
    assert not steps


def test_standardized_scores_are_asked_for_by_the_call(spy):
    scorer = PromptScorer(spy, EXAMPLES)
    raw, standardized = scorer.score(["a", "b", "c"]), scorer.score(["a", "b", "c"], standardize=True)
    assert standardized.score.mean().abs() < 1e-5 < raw.score.mean().abs()
    assert standardized.accuracy.tolist() == raw.accuracy.tolist()


def test_soft_accuracy_is_a_preference_by_its_full_name_and_counts_answers_and_not_confidence():
    probabilities = torch.tensor([[[0.6, 0.4], [0.6, 0.4]], [[0.99, 0.01], [0.45, 0.55]]])  # both right; one by far
    labels = torch.tensor([0, 0])
    found = soft_accuracy(["a", "b"], probabilities, labels)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert found.tolist() == pytest.approx([100 * sigmoid(2), 50 * (sigmoid(9.8) + sigmoid(-1))], abs=1e-4)
    assert found[0] > found[1]
    gaps = preference(label_gaps(probabilities, labels), 200, 180).score
    assert gaps[0] < gaps[1]
    check_preference("preference", "prompt_task.prompt_scorer:soft_accuracy")
