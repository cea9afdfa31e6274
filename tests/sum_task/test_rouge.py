"""ROUGE equals that of the rouge-score package."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from sum_task.rouge import ROUGE_NAMES, rouge_f1
from sum_task.sentences import split_sentences

WORDS = ("the", "Cats", "cat's", "running", "ran,", "runs.", "UNITED", "2.5", "é", "naïve", "!", "\n")
TEXTS = st.lists(st.sampled_from(WORDS)).map(" ".join)


def package_f1(prediction, reference):
    scorer = RougeScorer(list(ROUGE_NAMES), use_stemmer=True)
    scores = scorer.score(*("\n".join(split_sentences(text)) for text in (reference, prediction)))
    return {name: score.fmeasure for name, score in scores.items()}


def test_counted_by_hand():
    # 3 of 4 predicted words are among the 3 of the reference, in order but for "sat"; stems: cat, cat.
    scores = rouge_f1("the cats sat down", "sat the cat")

    assert scores["rouge1"] == pytest.approx(2 * (3 / 4) * (3 / 3) / (3 / 4 + 3 / 3))
    assert scores["rouge2"] == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert scores["rougeL"] == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))


def test_lsum_compares_sentences_in_any_order():
    scores = rouge_f1("Ann won. Bob lost.", "Bob lost. Ann won.")

    assert scores["rougeLsum"] == 1.0
    assert scores["rougeL"] == 0.5


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_equal_to_the_package(prediction, reference):
    assert rouge_f1(prediction, reference) == package_f1(prediction, reference)


def test_equal_to_the_package_on_news():
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("FSC_DATA", default)) / "summarization" / "cnn_dailymail" / "test.jsonl"
    if not path.is_file():
        pytest.skip(f"no file {path}")
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        lead = " ".join(row["article"].split()[:60])
        assert rouge_f1(lead, row["highlights"]) == package_f1(lead, row["highlights"])


@pytest.mark.parametrize(("prediction", "reference"), [("", "a b"), ("a b", ""), ("", ""), ("...", "a")])
def test_texts_without_words_score_zero(prediction, reference):
    assert rouge_f1(prediction, reference) == dict.fromkeys(ROUGE_NAMES, 0.0)


def test_only_the_names_asked_for():
    assert list(rouge_f1("a", "a", ["rougeLsum"])) == ["rougeLsum"]
    with pytest.raises(ValueError, match="rouge3"):
        rouge_f1("a", "a", ["rouge3"])


def test_words_with_accents():
    assert rouge_f1("élève", "relève", ["rouge1"])["rouge1"] == 0.5  # "l ve" against "rel ve", as published
    assert rouge_f1("élève", "relève", ["rouge1"], words="unicode")["rouge1"] == 0
    assert rouge_f1("une élève", "une e\u0301le\u0300ve", ["rouge1"], words="unicode")["rouge1"] == 1  # composed or not
    assert rouge_f1("नमस्ते दुनिया", "नमस्ते जग", ["rouge1"], words="unicode")["rouge1"] == 0.5
    assert rouge_f1("the cat_sat", "the cat sat", ["rouge1"], words="unicode")["rouge1"] == 1
    with pytest.raises(ValueError, match="words: 'latin' is not one of ascii, unicode"):
        rouge_f1("a", "a", words="latin")
