"""Sentences and words of a text, without any download."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer

from sum_task.sentences import split_sentences, word_tokens


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("a fire broke out. a heater was blamed.", ["a fire broke out.", "a heater was blamed."]),
        ('"Stop!" he said. (He left.) Silence.', ['"Stop!"', "he said.", "(He left.)", "Silence."]),
        ("Mr. Smith met Dr. Jones on Sept. 4 in Washington.", None),
        ("J. K. Rowling and O.J. Simpson were there.", None),
        ("He lives in the U.S. He was born there.", ["He lives in the U.S.", "He was born there."]),
        ("He joined the U.S. Army at 5 p.m. Friday.", None),
        ("Bus No. 9 came. The answer was no. She left.", ["Bus No. 9 came.", "The answer was no.", "She left."]),
        ("It rose by 2.5 percent to $3.50. Shares fell.", ["It rose by 2.5 percent to $3.50.", "Shares fell."]),
        ("Well... maybe not... But perhaps.", ["Well... maybe not...", "But perhaps."]),
        ("A headline\nA sentence. \n\n  Another ", ["A headline", "A sentence.", "Another"]),
        ("Ex-Gov. Palin spoke.", None),
        ("", []),
        (" \n\t ", []),
        (".", ["."]),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == ([text] if sentences is None else sentences)


@given(st.text(alphabet="aA .!?\n\"')U5…"))
def test_nothing_but_blanks_is_lost(text):
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


def test_words_of_each_sentence_lose_their_full_stop():
    tokens = ["He", "did", "n't", "go", ".", "``", "Why", "?", "''", "she", "asked", "."]

    assert word_tokens('He didn\'t go. "Why?" she asked.') == tokens


MARKS = "19'\"`.,:;!?()[]{}<>*-%$@&\u201c\u201d\u2018\u2019\u2014\xab\xbb"
CONTRACTIONS = ("n't", "'s", "'LL", "cannot", "gonna", "wanna", " 'tis", " 'twas", "more'n", "d'ye")
PIECES = st.sampled_from([*"abX  ", *MARKS, *CONTRACTIONS, "''", "``", "...", "--", ". ", ' "', '." ', ". )"])


@settings(max_examples=1000, deadline=None)
@given(st.lists(PIECES, max_size=15).map("".join))
def test_remembered_words_are_those_of_nltk(text):
    expected = [token for sentence in split_sentences(text) for token in NLTKWordTokenizer().tokenize(sentence)]

    assert word_tokens(text) == expected
    assert word_tokens(text) == expected  # the second time from memory


def test_blanks_of_any_kind_count_as_one_space():
    assert word_tokens('a\t"b\xa0 c"') == word_tokens('a "b c"')
