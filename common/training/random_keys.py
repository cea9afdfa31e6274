"""Random numbers of a run by name: each draw has a key of its own, the purpose first, from which its seed follows.

A draw that is named needs no generator state in a checkpoint, comes out the same in every process, and changes no other
draw. Two draws are the same only where they are meant to be, such as the summaries by which a round validates.
"""

from collections.abc import Sequence
from enum import IntEnum, unique

import numpy as np
import torch


@unique
class Purpose(IntEnum):
    """What a draw is for: first word of its key. The words behind it, the run's seed first, are named here."""

    INITIAL_WEIGHTS = 0  # seed
    # Summaries; `batch` counts within the step, `process` from 0.
    REWARD_SHUFFLE = 1  # seed, round, epoch
    REWARD_SAMPLES = 2  # seed, round, step, batch
    REWARD_DROPOUT = 3  # seed, round, step, batch, process
    VALIDATION_BATCHES = 4  # seed; the same articles in every round
    VALIDATION_SAMPLES = 5  # seed, round, batch
    AGREEMENT_SAMPLES = 6  # seed, policy step, batch
    POLICY_SHUFFLE = 7  # seed, epoch
    POLICY_SAMPLES = 8  # seed, step, batch
    POLICY_DROPOUT = 9  # seed, step, batch, process
    SWAPS = 16  # seed; the same places in every round
    # Replies.
    REPLY_SAMPLES = 18  # seed, step, process
    REPLY_REWARD_DROPOUT = 19  # seed, step, process
    # Prompts: generators that run on, their state in the checkpoint.
    PROMPT_REWARD_STREAM = 10  # seed
    PROMPT_POLICY_STREAM = 11  # seed
    PROMPT_VALIDATION = 12  # seed; the same numbers in every validation
    PROMPT_RANDOM_SEARCH = 13  # seed
    PROMPTS_BEFORE_TRAINING = 14  # seed
    PROMPT_REWARD_DROPOUT = 15  # seed, round, step, batch
    PROMPT_SWAPS = 17  # seed; the same places in every round


Key = tuple[Purpose, *tuple[int, ...]]


def seed_of(purpose: Purpose, *words: int) -> int:
    """A seed below 2**63 for a key.

    The number of words is part of what is hashed, and each counts as 64 bits: numpy's SeedSequence takes (5, 3) and
    (5, 3, 0, 0) for one.

    Raises:
        ValueError: a word that is negative or has more than 64 bits.
    """
    if not all(0 <= word < 2**64 for word in words):
        raise ValueError(f"words: must be whole numbers of at most 64 bits, got {words}")
    halves: Sequence[int] = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    state = np.random.SeedSequence([purpose, len(words), *halves]).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))


def keyed_generator(purpose: Purpose, *words: int) -> torch.Generator:
    """A CPU generator for one key. Of its seed torch's CPU generator uses 32 bits."""
    return torch.Generator().manual_seed(seed_of(purpose, *words))


def seed_global(purpose: Purpose, *words: int) -> None:
    """Seed torch's global generators of all devices, from which weights and dropout are drawn, for one key."""
    torch.manual_seed(seed_of(purpose, *words))
