"""No two draws of a run share their random numbers unless they are meant to."""

import itertools

import pytest
import torch

from common.training.random_keys import Purpose, keyed_generator, seed_global, seed_of

SEED = 3
P = Purpose


def keys_of_a_long_run():
    """What a run of summarization draws: 6 rounds of 300 steps, 20 epochs, 2 processes, and what prompts draw."""
    rounds, batches, processes = range(6), range(4), range(2)
    yield from ((purpose, SEED) for purpose in Purpose)
    for r in rounds:
        yield from ((P.REWARD_SHUFFLE, SEED, r, epoch) for epoch in range(20))
        yield from ((P.VALIDATION_SAMPLES, SEED, r, b) for b in range(50))
        for step, b in itertools.product(range(1, 301), batches):
            yield (P.REWARD_SAMPLES, SEED, r, step, b)
            yield from ((P.REWARD_DROPOUT, SEED, r, step, b, process) for process in processes)
            yield (P.PROMPT_REWARD_DROPOUT, SEED, r, step, b)
    yield from ((P.POLICY_SHUFFLE, SEED, epoch) for epoch in range(20))
    for step, b in itertools.product(range(1, 2001), batches):
        yield (P.POLICY_SAMPLES, SEED, step, b)
        yield from ((P.POLICY_DROPOUT, SEED, step, b, process) for process in processes)
        yield (P.AGREEMENT_SAMPLES, SEED, step, b)


def test_no_two_keys_of_a_long_run_have_one_seed():
    keys = list(keys_of_a_long_run())
    assert len(keys) > 60_000
    assert len(set(keys)) == len(keys)
    assert len({seed_of(*key) for key in keys}) == len(keys)


def test_the_number_of_words_counts():
    # SeedSequence pads with zeros and splits a word of more than 32 bits into two.
    for one, other in (((3,), (3, 0, 0)), ((), (0,)), ((2**32,), (0, 1)), ((5, 1), (5 + 2**32,))):
        assert seed_of(P.POLICY_SHUFFLE, *one) != seed_of(P.POLICY_SHUFFLE, *other)


@pytest.mark.parametrize("word", [-1, 2**64])
def test_a_word_out_of_range_is_refused(word):
    with pytest.raises(ValueError, match=r"^words: "):
        seed_of(P.POLICY_SHUFFLE, word)


def test_equal_keys_give_equal_numbers():
    first, again, other = (torch.rand(3, generator=keyed_generator(P.POLICY_SAMPLES, 0, n)) for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    seed_global(P.POLICY_DROPOUT, 0, 1)
    drawn = torch.rand(3)
    torch.rand(5)
    seed_global(P.POLICY_DROPOUT, 0, 1)
    assert torch.equal(torch.rand(3), drawn)
