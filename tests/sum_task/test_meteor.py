"""METEOR equals nltk's, with a tiny WordNet made here and, where it is installed, with the real one."""

import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.meteor_score import single_meteor_score

from common.errors import UserError
from sum_task import meteor as module
from sum_task.meteor import Meteor, require_wordnet
from sum_task.sentences import word_tokens

SYNONYMS = [
    ["car", "auto", "cab", "motor_vehicle"],
    ["car", "cable_car"],
    ["big", "great", "Large"],
    ["buy", "purchas"],
]


class TinyWordNet:
    """Synonyms in the form of nltk's reader; counts how often each word is looked up."""

    def __init__(self):
        self.asked = []

    def synsets(self, word):
        self.asked.append(word)
        named = [
            [SimpleNamespace(name=lambda name=name: name) for name in names] for names in SYNONYMS if word in names
        ]
        return [SimpleNamespace(lemmas=lambda lemmas=lemmas: lemmas) for lemmas in named]


def has_wordnet():
    try:
        require_wordnet()
    except UserError:
        return False
    return True


TOKENS = (
    "car",
    "Cars",
    "auto",
    "cab",
    "cable_car",
    "big",
    "large",
    "great",
    "buy",
    "purchase",
    "buying",
    "the",
    "a",
    "cat",
    ".",
    ",",
    "''",
)
needs_wordnet = pytest.mark.skipif(not has_wordnet(), reason="nltk finds no WordNet")
WORDS = st.lists(st.sampled_from(TOKENS))


def test_counted_by_hand():
    # The, car (auto) and . are linked: 3 of 4 words each, in two runs: "The car" and ".".
    score = Meteor(TinyWordNet()).score_tokens(["The", "car", "stopped", "."], ["the", "auto", "left", "."])

    assert score == pytest.approx((1 - 0.5 * (2 / 3) ** 3) * 0.75)


def test_recall_counts_nine_times_as_much_as_precision():
    score = Meteor(TinyWordNet()).score_tokens(["a"], ["a", "b"])

    assert score == pytest.approx(0.5 * (1 * 0.5) / (0.9 * 1 + 0.1 * 0.5))


@settings(max_examples=500, deadline=None)
@given(WORDS, WORDS)
def test_equal_to_nltk(prediction, reference):
    wordnet = TinyWordNet()

    assert Meteor(wordnet).score_tokens(prediction, reference) == pytest.approx(
        single_meteor_score(reference, prediction, wordnet=wordnet), abs=1e-12
    )


def test_the_last_of_several_words_with_the_stem_is_linked():
    # "buys" is linked to the last "buy", beside "it": one run of two words.
    score = Meteor(TinyWordNet()).score_tokens(["buys", "it"], ["buy", "buying", "buy", "it"])

    assert score == pytest.approx((1 - 0.5 * (1 / 2) ** 3) * (1 * 0.5) / (0.9 * 1 + 0.1 * 0.5))


@pytest.mark.parametrize(
    ("prediction", "reference"), [("", "a cat"), ("a cat", ""), ("", ""), ("dog", "cat"), (" \n", ".")]
)
def test_nothing_in_common_scores_zero(prediction, reference):
    assert Meteor(TinyWordNet())([prediction], [reference]) == [0.0]


def test_texts_are_scored_by_their_words_and_in_their_order():
    scores = Meteor(TinyWordNet())(["He didn't.", "A dog."], ["He didn't.", "The cat."])

    assert scores[0] == pytest.approx(1 - 0.5 * (1 / 4) ** 3)
    assert 0 < scores[1] < 0.5


def test_each_word_is_looked_up_once():
    wordnet = TinyWordNet()
    meteor = Meteor(wordnet)

    first = meteor(["cars stop"] * 3, ["a large auto", "a big tree", "houses"])
    again = meteor(["cars stop"] * 3, ["a large auto", "a big tree", "houses"])

    assert again == first
    assert sorted(wordnet.asked) == ["car", "stop"]


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        Meteor(TinyWordNet())(["a"], ["a", "b"])


@pytest.mark.parametrize("failure", [LookupError("no wordnet"), OSError("cut short"), AssertionError()])
def test_without_wordnet_the_error_holds_the_two_commands_that_mend_it(monkeypatch, failure):
    def fail(word):
        raise failure

    monkeypatch.setattr(module, "wordnet", SimpleNamespace(synsets=fail))

    with pytest.raises(UserError) as error:
        Meteor()

    assert "python -m nltk.downloader wordnet" in str(error.value)
    assert "scripts/install_wordnet.py" in str(error.value)
    assert "\n" not in str(error.value)


@needs_wordnet
def test_equal_to_nltk_with_the_real_wordnet():
    rng = random.Random(0)
    words = (
        "the",
        "man",
        "men",
        "car",
        "autos",
        "buy",
        "purchase",
        "fast",
        "quick",
        "big",
        "Great",
        "dead",
        "end",
        "stop",
    )
    meteor = Meteor()
    without_synonyms = Meteor(SimpleNamespace(synsets=lambda word: []))
    linked_by_synonym = 0
    for _ in range(300):
        prediction, reference = (rng.choices(words, k=rng.randint(1, 12)) for _ in range(2))
        expected = single_meteor_score(reference, prediction)
        assert meteor.score_tokens(prediction, reference) == pytest.approx(expected, abs=1e-12)
        linked_by_synonym += expected > without_synonyms.score_tokens(prediction, reference)
    assert linked_by_synonym > 30


def test_the_tokens_are_those_that_nltk_is_given():
    text = 'Mr. Lee "never" went. He couldn\'t.'

    assert Meteor(TinyWordNet())([text], [text]) == [
        single_meteor_score(word_tokens(text), word_tokens(text), wordnet=TinyWordNet())
    ]
