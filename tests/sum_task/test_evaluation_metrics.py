"""Figures of a set of summaries."""

import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from common.errors import UserError
from sum_task import evaluation_metrics as module
from sum_task.evaluation_metrics import check_available, mean_scores, per_example
from sum_task.rouge import rouge_f1

PREDICTIONS = ["The cat sat. The cat left.", "Dogs"]
REFERENCES = ["The cat left. A cat sat.", "Two dogs barked"]
SOURCES = ["A CAT sat, the cat purred; it left.", "Dogs bark."]


@pytest.fixture
def fake_meteor(monkeypatch):
    class FakeMeteor:
        def __call__(self, predictions, references):
            return [0.5] * (len(predictions) - 1) + [1.0]

    monkeypatch.setattr(module, "Meteor", FakeMeteor)
    monkeypatch.setattr(module, "require_wordnet", lambda: None)


def test_each_summary_has_every_figure(fake_meteor):
    first, second = per_example(PREDICTIONS, REFERENCES, SOURCES)

    assert {name: first[name] for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")} == {
        name: 100 * value for name, value in rouge_f1(PREDICTIONS[0], REFERENCES[0]).items()
    }
    assert (first["meteor"], second["meteor"]) == (50.0, 100.0)
    assert (first["length"], second["length"]) == (6, 1)


def test_novelty_by_hand():
    first, second = per_example(PREDICTIONS, REFERENCES, SOURCES, meteor=False)

    # the cat sat the cat left: all words are in "a cat sat the cat purred it left"
    assert first["novelty1"] == 0
    # the-cat sat-the... in it: the cat, cat sat, sat the, the cat; new: cat left
    assert first["novelty2"] == pytest.approx(1 / 5)
    # new: the cat sat, the cat left; in it: cat sat the, sat the cat
    assert first["novelty3"] == pytest.approx(2 / 4)
    assert (second["novelty1"], second["novelty2"]) == (0, None)


def test_means_are_plain_and_leave_out_what_a_summary_does_not_have(fake_meteor):
    rows = per_example(PREDICTIONS, REFERENCES, SOURCES)
    means = mean_scores(rows)

    assert means["meteor"] == 75
    assert means["length"] == 3.5
    assert means["rouge1"] == pytest.approx((rows[0]["rouge1"] + rows[1]["rouge1"]) / 2)
    assert means["novelty3"] == rows[0]["novelty3"]


def test_an_empty_summary_counts():
    means = mean_scores(per_example(["", "Two dogs barked"], ["A cat", "Two dogs barked"], ["x", "y"], meteor=False))

    assert means["rouge1"] == 50
    assert means["length"] == 1.5
    assert "meteor" not in means
    assert math.isnan(mean_scores(per_example([""], ["a"], ["a"], meteor=False))["novelty1"])


def test_wrong_arguments():
    with pytest.raises(ValueError, match="predictions"):
        per_example([], [], [], meteor=False)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        per_example(["a"], ["a", "b"], ["a"], meteor=False)


def test_bertscore(monkeypatch):
    package = ModuleType("bert_score")
    package.__spec__ = ModuleSpec("bert_score", None)
    package.score = lambda predictions, references, lang: (None, None, torch.tensor([0.25, 0.75]))
    monkeypatch.setitem(sys.modules, "bert_score", package)

    assert mean_scores(per_example(PREDICTIONS, REFERENCES, SOURCES, meteor=False, bertscore=True))["bertscore"] == 50


def test_what_is_missing_is_said_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install bert-score"):
        check_available(meteor=False, bertscore=True)
    with pytest.raises(UserError, match="pip install bert-score"):
        per_example(PREDICTIONS, REFERENCES, SOURCES, meteor=False, bertscore=True)

    def refuse():
        raise UserError("METEOR needs WordNet")

    monkeypatch.setattr(module, "require_wordnet", refuse)
    with pytest.raises(UserError, match="WordNet"):
        check_available()
    check_available(meteor=False)
