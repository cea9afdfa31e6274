"""Figures of reward learning, summed over batches and processes before they are divided."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from common.grounding_loss import kendall_tau, ordered_pairs
from common.reporting.intervals import Answers, interval_figures
from common.token_reward_model import saturation_share
from common.training.engine import Engine


@dataclass
class RankingFigures:
    """Sums over ranking sets, to be summed over batches and processes before they are divided.

    Sequences are prompts, summaries or replies.

    Attributes:
        sets: ranking sets.
        loss: sum of their losses.
        pairs: pairs of different preference.
        ordered: those whose scores have the right order; equal scores count one half.
        units, entries, unit_ordered_squares, unit_products, unit_pair_squares: the same by unit, see `Answers`: pairs
            of one unit hang together. A unit is a ranking set, or what `of_units` is told.
        rewards, squares, tokens: sum of the token rewards and of their squares, and how many there are.
        saturated: token rewards at an end of their range.
        tau, tau_sets: sum of Kendall's tau over the sets where it is defined, and their number.
        preference: sum over the sets of their mean preference.
        sampled_tokens: tokens that the policy wrote.
        swaps, swaps_seen: swapped tokens, and those whose reward is on the right side of that of the token they
            replace; equal rewards count one half.
        score_squares, length_squares, products: sums over the sequences of the squares and the product of how far
            score and number of tokens are from the mean of their set.
    """

    sets: float = 0.0
    loss: float = 0.0
    pairs: float = 0.0
    ordered: float = 0.0
    rewards: float = 0.0
    squares: float = 0.0
    tokens: float = 0.0
    saturated: float = 0.0
    tau: float = 0.0
    tau_sets: float = 0.0
    preference: float = 0.0
    sampled_tokens: float = 0.0
    swaps: float = 0.0
    swaps_seen: float = 0.0
    score_squares: float = 0.0
    length_squares: float = 0.0
    products: float = 0.0
    units: float = 0.0
    entries: float = 0.0
    unit_ordered_squares: float = 0.0
    unit_products: float = 0.0
    unit_pair_squares: float = 0.0

    @classmethod
    def of(
        cls, loss: Tensor, scores: Tensor, rewards: Tensor, mask: Tensor, preferences: Tensor, bound: str
    ) -> "RankingFigures":
        """Those of one batch, which has come to the CPU.

        Args:
            loss: (), mean over the ranking sets.
            scores: (B, K), aggregated token rewards.
            rewards, mask: (N, T), token rewards and which of them are real; N = B * K, or where sequences stand in
                several sets any N of one length.
            preferences: (B, K).
            bound: of the rewards.
        """
        sets = len(scores)
        # Sums of many small squares need the digits.
        scores, real, lengths = scores.double(), rewards[mask].double(), mask.sum(-1).double()
        lengths = lengths.view(sets, -1) if len(mask) == scores.numel() else lengths[:1].expand(scores.shape)
        counted = ordered_pairs(scores, preferences)  # (B, K) each
        ordered, pairs = (counts.sum(-1).double() / 2 for counts in counted)
        taus = kendall_tau(scores, preferences)
        taus = taus[~taus.isnan()]
        from_mean, lengths_from_mean = _from_mean(scores), _from_mean(lengths)
        return cls(
            sets=sets,
            loss=loss.item() * sets,
            pairs=pairs.sum().item(),
            ordered=ordered.sum().item(),
            rewards=real.sum().item(),
            squares=real.square().sum().item(),
            tokens=real.numel(),
            saturated=saturation_share(real, bound).item() * real.numel(),
            tau=taus.sum().item(),
            tau_sets=len(taus),
            preference=preferences.mean(-1).sum().item(),
            score_squares=from_mean.square().sum().item(),
            length_squares=lengths_from_mean.square().sum().item(),
            products=(from_mean * lengths_from_mean).sum().item(),
        ).of_units(Answers.of(ordered.tolist(), pairs.tolist()))

    def of_units(self, answers: Answers) -> "RankingFigures":
        """The same, with the pairs counted by other units."""
        return replace(
            self,
            units=answers.units,
            entries=answers.entries,
            unit_ordered_squares=answers.right_squares,
            unit_products=answers.products,
            unit_pair_squares=answers.asked_squares,
        )

    def __add__(self, other: "RankingFigures") -> "RankingFigures":
        return RankingFigures(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def _length_correlation(self) -> float:
        """Pearson's correlation within ranking sets: of the differences of score and of length from their set's means.

        Not that over all summaries: `avg`, `max` and `min` scale the scores of a set by its mean length. NaN where
        either is constant in every set.
        """
        return ratio(self.products, math.sqrt(self.score_squares * self.length_squares))

    def over(self, engine: Engine) -> "RankingFigures":
        """The sums over all processes."""
        return RankingFigures(*engine.total(*vars(self).values()))

    def means(self, prefix: str = "") -> dict[str, float]:
        """The figures of a log line; NaN where there was nothing to divide by."""
        mean = ratio(self.rewards, self.tokens)
        spread = max(ratio(self.squares, self.tokens) - mean**2, 0.0)
        return {
            f"reward/{prefix}loss": ratio(self.loss, self.sets),
            f"reward/{prefix}rank_accuracy": ratio(self.ordered, self.pairs),
            f"reward/{prefix}kendall_tau": ratio(self.tau, self.tau_sets),
            f"reward/{prefix}token_mean": mean,
            f"reward/{prefix}token_std": math.sqrt(spread),
            f"reward/{prefix}saturation_share": ratio(self.saturated, self.tokens),
            f"reward/{prefix}length_correlation": self._length_correlation(),
            f"reward/{prefix}preference": ratio(self.preference, self.sets),
            **({f"reward/{prefix}swap_accuracy": self.swaps_seen / self.swaps} if self.swaps else {}),
        }

    def held_out(self) -> dict[str, float]:
        """The figures of a validation: `means`, and how far both accuracies can be trusted."""
        by_unit = (self.units, self.entries, self.unit_ordered_squares, self.unit_products, self.unit_pair_squares)
        found = self.means("dev_") | interval_figures("reward/dev_rank", Answers(self.ordered, self.pairs, *by_unit))
        swaps = Answers.independent(self.swaps_seen, self.swaps)
        return found | (interval_figures("reward/dev_swap", swaps) if self.swaps else {})


def _from_mean(values: Tensor) -> Tensor:
    """(B, K) less the mean of each row; exactly 0 where a row is constant, which a rounded mean is not."""
    constant = values.amax(-1, keepdim=True) == values.amin(-1, keepdim=True)
    return (values - values.mean(-1, keepdim=True)).masked_fill(constant, 0)


def ratio(value: float, count: float) -> float:
    """value / count, NaN where there is nothing to divide by."""
    return value / count if count else math.nan


def in_words(held_out: Mapping[str, float]) -> str:
    """The figures of a validation that a log line says."""
    return (
        f"dev loss {held_out['reward/dev_loss']:.4f}, rank accuracy {held_out['reward/dev_rank_accuracy']:.3f}, "
        f"swap accuracy {held_out.get('reward/dev_swap_accuracy', math.nan):.3f}"
    )
