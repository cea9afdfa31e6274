"""The planted preference: facts by their worth, an unwanted word, what is wrong."""

import pytest

from common.builtin.planted_preference import planted
from common.builtin.report_grammar import FACTS, STORIES, join_patterns


def test_facts_count_by_their_kind_and_unwanted_words_cost():
    right = "omar haddad was elected mayor of marlow on friday ."  # worth 1 + 1 + 3 + 1
    summaries = [
        right,  # less 2 for "was"
        "marlow elected omar haddad as mayor on friday .",
        "marlow elected a mayor .",
        "arden elected omar haddad on friday .",  # the wrong place loses what the right one would win
        "a mayor .",
    ]
    expected = [4 / 6, 1, 3 / 6, 0, 0]
    assert planted(summaries, [right] * 5, [""] * 5) == pytest.approx(expected)


def test_every_summary_without_the_unwanted_word_is_worth_one():
    facts = {slot: words[-1] for slot, words in FACTS.items()}
    for story in STORIES:
        for form in story.summary[0]:
            text = join_patterns([form], facts)
            assert planted([text], [text], [""])[0] == 1 or " was " in text
