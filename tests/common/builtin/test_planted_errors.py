"""What is wrong in any reply about a built-in report."""

import pytest

from common.builtin.planted_errors import known_errors, ranked_rows
from common.errors import UserError


@pytest.mark.parametrize("sentences", [1, 4])
def test_errors_that_were_planted_are_found(sentences):
    known = known_errors(100, sentences=sentences)
    for row in ranked_rows(100, sentences=sentences):
        for reply, score, wrong in zip(row["completions"], row["scores"], row["wrong"], strict=True):
            edits = known.edits(f"summarize: {row['prompt']}", reply)
            assert [list(span) for span, count in edits if count] == wrong
            assert known.score(row["prompt"], reply) <= score  # what is left out may be two words
            assert (score == 0) == (known.score(row["prompt"], reply) == 0)


def test_what_is_missing_or_too_much_counts_its_words():
    known = known_errors(20)
    row = next(row for row in ranked_rows(20) if 0 in row["scores"])
    true = row["completions"][row["scores"].index(0)]
    assert known.score(row["prompt"], "") <= -8
    assert known.edits(row["prompt"], "")[-1][0] == (0, 1)
    assert known.score(row["prompt"], f"{true} {true}") == -len(true.split())
    assert known.score(row["prompt"], f"really {true}") == -1
    with pytest.raises(UserError, match="no report that is built in"):
        known.score("something else", true)
