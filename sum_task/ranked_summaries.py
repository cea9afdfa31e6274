"""Summaries that the policy writes of articles, ranked by the preference: what the token rewards are learnt from.

The policy stands still during a round of reward learning, so the summaries of several batches are sampled at once:
writing a token for many takes little longer than for a few.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.language_models.evaluation_mode import evaluation_mode
from common.swaps import draw_places, swap_tokens
from common.training.engine import Engine
from common.training.random_keys import Key, Purpose, keyed_generator
from common.transfers import upload
from sum_task.batching import Batch, Padded, TokenizedRows, sorted_batches
from sum_task.policy import SummaryPolicy
from sum_task.preferences import Preference
from sum_task.sampling import sample_summaries
from sum_task.settings import RewardSettings

_SAMPLED_AT_ONCE = 4  # batches; a decoder-only policy would need memory for K times as many articles


@dataclass
class Swaps:
    """References of B articles, each followed by itself with one token replaced by the policy's likeliest other one.

    Attributes:
        summaries: N = 2 B of them.
        places: (B,) column of the token in question.
    """

    summaries: Padded
    places: Tensor


@dataclass
class RankedSummaries:
    """Sampled summaries of B articles with their preference.

    Attributes:
        batch: the articles.
        summaries: N = B * K of them, those of an article one after the other.
        preferences: (B, K), higher is better, on the CPU.
        ranks: (B, K), the same order without ties: equal preferences are put in random order.
        swaps: of the same articles; None where they are not asked for.
    """

    batch: Batch
    summaries: Padded
    preferences: Tensor
    ranks: Tensor
    swaps: Swaps | None = None


def break_ties(preferences: Tensor, noise: Tensor) -> Tensor:
    """Ranks (B, K), 0 the lowest, in the order of the preferences (B, K); equal ones in the order of `noise` (B, K)."""
    by_noise = noise.argsort(-1)
    by_both = by_noise.gather(-1, preferences.gather(-1, by_noise).argsort(dim=-1, stable=True))
    return by_both.argsort(-1)


class SummaryRanker:
    """Samples summaries and ranks them."""

    def __init__(self, policy: SummaryPolicy, preference: Preference, settings: RewardSettings, engine: Engine):
        self.policy = policy
        self.preference = preference
        self.settings = settings
        self.engine = engine
        self.collate = policy.collator(settings.pad_lengths)
        self.at_once = settings.rew_sampling_batches or (_SAMPLED_AT_ONCE if policy.is_encoder_decoder else 1)

    def in_turn(
        self, data: TokenizedRows, batches: Sequence[list[int]], keys: Sequence[Key], first: int = 0
    ) -> Iterator[RankedSummaries | None]:
        """Ranked summaries of batches from number `first` on; None where this process has no row of one.

        Which batches are sampled at once does not depend on `first`: a run that is resumed within them writes them
        again. For the arguments see `rank`.
        """
        for begin in range(first - first % self.at_once, len(batches), self.at_once):
            part = slice(begin, begin + self.at_once)
            yield from self.rank(data, batches[part], keys[part])[max(0, first - begin) :]

    @torch.no_grad()
    def rank(
        self, data: TokenizedRows, batches: Sequence[list[int]], keys: Sequence[Key]
    ) -> list[RankedSummaries | None]:
        """Sample summaries of several batches at once and rank them.

        Args:
            data: the rows.
            batches: the rows of each batch, in all processes.
            keys: of the random numbers of each batch.

        Returns:
            Those of this process's rows of each batch; None where it has none.

        Raises:
            UserError: see `Preference`.
        """
        settings = self.settings
        per_source = settings.reward_learning_samples
        mine: list[Batch | None] = []
        noises, tie_noises = [], []
        for rows, key in zip(batches, keys, strict=True):
            generator = keyed_generator(*key)
            noise = torch.rand(len(rows), per_source, settings.max_target_length, generator=generator)
            tie_noise = torch.rand(len(rows), per_source, generator=generator)
            kept = self.engine.share(range(len(rows)))
            noises.append(noise[kept])
            tie_noises.append(tie_noise[kept])
            mine.append(self.collate(data, [rows[i] for i in kept]).to(self.policy.device) if kept else None)
        own = [batch for batch in mine if batch is not None]
        if not own:
            return [None] * len(batches)
        with evaluation_mode(self.policy.lm), self.engine.autocast():
            sources = self.policy.join([self.policy.encode(batch.sources) for batch in own])
            noise = torch.cat(noises).flatten(0, 1)
            summaries = sample_summaries(
                self.policy, sources, per_source, noise, settings.sampling_top_k, settings.sampling_temperature
            )
        written = [row for batch in own for row in batch.rows for _ in range(per_source)]
        preferences = self.preference.of_rows(self.policy.texts(summaries), written).view(-1, per_source)
        ranks = break_ties(preferences, torch.cat(tie_noises))
        ranked: list[RankedSummaries | None] = []
        first = 0
        for batch in mine:
            if batch is None:
                ranked.append(None)
                continue
            end = first + len(batch.rows)
            part = summaries.rows(slice(first * per_source, end * per_source))
            ranked.append(RankedSummaries(batch, part, preferences[first:end], ranks[first:end]))
            first = end
        return ranked

    def validation_sets(
        self, data: TokenizedRows, batch_size: int, purpose: Purpose, round_or_step: int
    ) -> list[RankedSummaries]:
        """This process's ranked summaries of the validation batches: the same articles each time, sampled anew."""
        seed = self.settings.seed
        batches = sorted_batches(data, batch_size)
        count = max(1, round(self.settings.rew_validation_share * len(batches)))
        generator = keyed_generator(Purpose.VALIDATION_BATCHES, seed)
        kept = sorted(torch.randperm(len(batches), generator=generator)[:count].tolist())
        keys = [(purpose, seed, round_or_step, i) for i in kept]
        return [sets for sets in self.in_turn(data, [batches[i] for i in kept], keys) if sets is not None]

    @torch.no_grad()
    def swaps(self, batch: Batch, noise: Tensor) -> Swaps:
        """One token of each reference replaced; `noise`: (B,) uniform numbers in [0, 1) that say which."""
        targets = batch.targets
        rows, places = (
            upload(index, targets.mask.device)
            for index in (torch.arange(len(noise)), draw_places(targets.known, noise))
        )
        with evaluation_mode(self.policy.lm), self.engine.autocast():
            logits = self.policy.logits(self.policy.encode(batch.sources), targets)
        swapped = swap_tokens(targets.tokens, places, logits[rows, places, : len(self.policy.tokenizer)])
        both = torch.stack([targets.tokens, swapped], 1).flatten(0, 1)
        masks = (mask.repeat_interleave(2, 0) for mask in (targets.mask, targets.known))
        return Swaps(Padded(both, *masks), places)
