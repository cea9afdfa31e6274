"""Preferences: metrics, weighted sums of them, functions of the user."""

import sys
from types import ModuleType

import pytest
import torch

from common.errors import UserError
from sum_task import preferences as module
from sum_task.preferences import make_preference
from sum_task.rouge import rouge_f1

PREDICTIONS = ["Ann won the cup. Bob lost.", "A cat", ""]
REFERENCES = ["Bob lost. Ann won a cup.", "Two dogs", "Some text"]
SOURCES = ["article one", "article two", "article three"]


class FakeMeteor:
    """In the place of METEOR, which needs WordNet: the share of the prediction's length in the reference's."""

    def __call__(self, predictions, references):
        return [len(p) / len(r) for p, r in zip(predictions, references, strict=True)]


@pytest.fixture
def fake_meteor(monkeypatch):
    monkeypatch.setattr(module, "Meteor", FakeMeteor)


@pytest.fixture
def my_rewards(monkeypatch):
    """An importable module of the user's."""
    own = ModuleType("my_rewards")
    own.brevity = lambda predictions, references, sources: [-len(p) + len(s) for p, s in zip(predictions, sources)]  # noqa: B905
    own.tensor = lambda predictions, references, sources: torch.arange(len(predictions))
    own.two = lambda predictions, references, sources: [1.0, 2.0]
    own.nan = lambda predictions, references, sources: [0.0, *[float("nan")] * (len(sources) - 1)]
    own.none = lambda predictions, references, sources: None
    own.words = lambda predictions, references, sources: ["good", "bad", "ugly"]
    own.version = "1.0"
    monkeypatch.setitem(sys.modules, "my_rewards", own)


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeLsum"])
def test_rouge(name):
    scores = make_preference(name)(PREDICTIONS, REFERENCES, SOURCES)

    assert scores.dtype == torch.float64
    assert scores.tolist() == [rouge_f1(p, r)[name] for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert scores[0] > scores[1] == scores[2] == 0


def test_meteor(fake_meteor):
    scores = make_preference("meteor")(["ab", "abcd"], ["abcd", "abcd"], ["", ""])

    assert scores.tolist() == [0.5, 1.0]


def test_a_weighted_sum(fake_meteor):
    scores = make_preference(" 0.5*meteor + 2 * rouge2+rouge1")(PREDICTIONS, REFERENCES, SOURCES)

    expected = [
        0.5 * len(p) / len(r) + 2 * rouge_f1(p, r)["rouge2"] + rouge_f1(p, r)["rouge1"]
        for p, r in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    assert scores.tolist() == pytest.approx(expected)


def test_rouge_alone_needs_no_wordnet(monkeypatch):
    def refuse():
        raise AssertionError("METEOR was asked for")

    monkeypatch.setattr(module, "Meteor", refuse)

    make_preference("rouge1+rouge2")


def test_a_function_of_the_user(my_rewards):
    preference = make_preference("my_rewards:brevity")

    assert preference.name == "my_rewards:brevity"
    assert preference(PREDICTIONS, REFERENCES, SOURCES).tolist() == [-26 + 11, -5 + 11, 13]
    assert make_preference("my_rewards:tensor")(PREDICTIONS, REFERENCES, SOURCES).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("metor", "'metor' is not known; did you mean 'meteor'"),
        ("", "'' is not known"),
        ("0.5*rouge1+", "'' is not known"),
        ("rouge1+rouge1", "'rouge1' comes twice"),
        ("half*rouge1", "the weight 'half' is not a number"),
        ("-1*rouge1", "the weight '-1' is not a number"),
        ("0*rouge1", "must be above 0"),
        ("*rouge1", "the weight '' is not a number"),
        ("nan*rouge1", "the weight 'nan'"),
        ("my_rewards.py:f(x)", "has not the form"),
        ("no_such_module:f", "cannot import no_such_module"),
        ("my_rewards:brevty", "has no 'brevty'; did you mean 'brevity'"),
        ("my_rewards:version", "'version' is not a function"),
    ],
)
def test_what_is_no_preference(my_rewards, spec, message):
    with pytest.raises(UserError) as error:
        make_preference(spec)

    assert message in str(error.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("two", "returned 2 scores for 3 summaries"),
        ("nan", "the score of summary 1 of 2 is nan"),
        ("none", "returned NoneType, not a list of 2 numbers"),
        ("words", "not a list of 2 numbers"),
    ],
)
def test_what_a_function_must_not_return(my_rewards, function, message):
    with pytest.raises(UserError, match=message):
        make_preference(f"my_rewards:{function}")(PREDICTIONS, REFERENCES, SOURCES)


def test_arguments_of_different_length():
    with pytest.raises(ValueError, match="2 predictions, 1 references"):
        make_preference("rouge1")(["a", "b"], ["a"], ["a", "b"])


def test_no_summaries_no_scores():
    assert make_preference("rouge1")([], [], []).shape == (0,)
