"""True rewards of tokens, worked out by hand."""

import pytest
import torch

from chat_task.known_rewards import KnownRewards
from common.builtin.planted_errors import KnownErrors, Told
from common.errors import UserError
from tests.sum_task.tiny import byte_tokenizer, word_tokenizer

FACTS = {"place": "city", "day": "monday"}
TRUE = "flood hit the city on monday ."
KNOWN = KnownErrors([Told("a flood in the city", ("flood hit the {place} on {day} .", "flood killed two ."), FACTS)])


def paid(tokenizer, replies, prompt="summarize : a flood in the city", padding=2):
    """Rewards of each reply's own tokens, and the scores."""
    prompt_ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]] * len(replies))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] + [1] * ends for text, ends in replies]
    longest = max(map(len, ids)) + padding
    # What stands at padding is no part of a reply, whatever it is.
    reply_ids = torch.tensor([[*row, *[5] * (longest - len(row))] for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    found = KnownRewards(KNOWN, tokenizer)(prompt_ids, reply_ids, (torch.ones_like(prompt_ids), mask), [1])
    assert not found.rewards[mask == 0].any()
    return [row[: len(own)].tolist() for row, own in zip(found.rewards, ids, strict=True)], found.scores.tolist()


def test_errors_are_paid_where_they_show():
    replies = [
        (TRUE, 1),
        ("flood hit the town on friday .", 1),  # wrong place, wrong day
        ("flood hit the city .", 1),  # "on monday" is missing before the last word
        ("flood hit the city on monday", 1),  # so is "." at the end, which the end token leaves out
        ("flood hit the city on monday", 0),  # cut before an end token: the last word is the last
        ("flood killed two ten .", 1),  # one word too many for the other true sentence
        ("", 1),  # nothing but an end token: the shorter true sentence, of four words, is missing
    ]
    rewards, scores = paid(word_tokenizer(), replies)
    assert rewards == [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, -1, 0, -1, 0, 0],
        [0, 0, 0, 0, -2, 0],
        [0, 0, 0, 0, 0, 0, -1],
        [0, 0, 0, 0, 0, -1],
        [0, 0, 0, -1, 0, 0],
        [-4],
    ]
    assert scores == [0, -2, -2, -1, -1, -1, -4]


def test_a_word_of_several_tokens_is_paid_at_its_last():
    text = "flood hit the town on monday ."
    [rewards], [score] = paid(byte_tokenizer(), [(text, 1)])
    place = text.index("town") + len("town") - 1
    assert [n for n, value in enumerate(rewards) if value] == [place]
    assert rewards[place] == score == -1


def test_a_prompt_of_another_report_is_refused():
    with pytest.raises(UserError, match="no report that is built in"):
        paid(word_tokenizer(), [(TRUE, 1)], prompt="a storm")
