"""Token rewards between two tokenizations of a text."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.language_models.token_carry import carry_over, token_spans
from tests.sum_task.tiny import byte_tokenizer

BYTES = byte_tokenizer()


def test_each_reward_goes_to_the_tokens_that_share_its_characters():
    # Text of 6 characters: rewards on [0, 4) and [4, 6), tokens at [0, 2), [2, 5), [5, 6).
    carried = carry_over(torch.tensor([4.0, 2.0]), [(0, 4), (4, 6)], [(0, 2), (2, 5), (5, 6)])
    assert carried.tolist() == [2.0, 2.0 + 1.0, 1.0]


def test_reward_that_shares_no_character_goes_to_the_nearest_token():
    carried = carry_over(torch.tensor([1.0, 5.0]), [(0, 2), (3, 3)], [(0, 2), (3, 6)])
    assert carried.tolist() == [1.0, 5.0]


def test_equal_tokens_keep_their_rewards():
    spans = [(0, 3), (3, 4), (4, 9), (9, 10)]
    rewards = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert torch.equal(carry_over(rewards, spans, spans), rewards)


def cuts(draw, length):
    inner = sorted(draw(st.sets(st.integers(1, length - 1), max_size=length - 1))) if length > 1 else []
    bounds = [0, *inner, length]
    return list(pairwise(bounds))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sum_is_preserved(data):
    length = data.draw(st.integers(1, 20))
    one, other = cuts(data.draw, length), cuts(data.draw, length)
    rewards = torch.rand(len(one), dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    carried = carry_over(rewards, one, other)
    assert carried.sum().item() == pytest.approx(rewards.sum().item())
    assert bool((carried > 0).all())


def test_bytes_of_one_character_share_its_span_and_the_end_token_stands_behind():
    ids = BYTES("aé😀")["input_ids"]
    text, spans = token_spans(BYTES, ids)
    assert text == "aé😀"
    assert spans == [(0, 1), *[(1, 2)] * 2, *[(2, 3)] * 4, (3, 4)]


def test_no_text_has_only_the_end_token():
    assert token_spans(BYTES, [1]) == ("", [(0, 1)])
    assert token_spans(BYTES, []) == ("", [])
