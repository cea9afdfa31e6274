"""What a reward model knows of held-out rankings, beside what length alone would say.

All figures come from one table (M, K, len(FIELDS)) of M ranking sets with up to K replies; a reply that is not there
has -100 in every field.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from common.grounding_loss import kendall_tau
from common.reporting.intervals import Answers

FIELDS = ("score", "preference", "tokens", "read", "reward_sum", "square_sum", "saturated")
MISSING = -100
_ALIKE = 0.1  # share by which lengths may differ to count as similar
_CONFIDENCE = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Pairs:
    """Pairs of replies of which one is preferred.

    Attributes:
        margins: (P,) score of the better less that of the worse.
        better, worse: (P,) their lengths in tokens.
        sets: (P,) number of the set.
    """

    margins: np.ndarray
    better: np.ndarray
    worse: np.ndarray
    sets: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """(P,) 1 where the scores have the right order, one half where they are equal."""
        return (np.sign(self.margins) + 1) / 2

    def longer_is_better(self) -> np.ndarray:
        """(P,) 1 where the better reply is the longer one, one half where both are as long."""
        return (np.sign(self.better - self.worse) + 1) / 2

    def only(self, rows: np.ndarray) -> "Pairs":
        """Some of them."""
        return Pairs(self.margins[rows], self.better[rows], self.worse[rows], self.sets[rows])


def pairs_of(table: np.ndarray) -> Pairs:
    """All pairs of different preference within sets."""
    scores, preferences, lengths = (table[..., FIELDS.index(name)] for name in ("score", "preference", "tokens"))
    there = scores != MISSING
    better = (preferences[:, :, None] > preferences[:, None, :]) & there[:, :, None] & there[:, None, :]
    sets, i, j = better.nonzero()
    return Pairs(scores[sets, i] - scores[sets, j], lengths[sets, i], lengths[sets, j], sets)


def answers_by_set(table: np.ndarray) -> Answers:
    """The pairs of all sets, those of a set as one unit."""
    pairs = pairs_of(table)
    counts = (np.bincount(pairs.sets, weights, minlength=len(table)) for weights in (pairs.right, None))
    return Answers.of(*(of_set.tolist() for of_set in counts))


def ranking_figures(table: np.ndarray) -> dict[str, float]:
    """Figures over all sets; NaN where there is nothing to divide by.

    ``rank_accuracy`` (pairs), ``kendall_tau`` (mean over sets), ``longer_accuracy`` (pairs whose better reply is the
    longer one), ``length_correlation`` (of score and tokens, within sets), ``token_mean``, ``token_std``,
    ``saturation_share`` (of the rewards that are read).
    """
    pairs = pairs_of(table)
    taus = [_tau(row) for row in table]
    there = table[..., 0] != MISSING
    read, total, squares, saturated = (
        table[..., FIELDS.index(name)][there].sum() for name in ("read", "reward_sum", "square_sum", "saturated")
    )
    mean = _ratio(total, read)
    return {
        "rank_accuracy": _mean(pairs.right),
        "kendall_tau": _mean([tau for tau in taus if not math.isnan(tau)]),
        "longer_accuracy": _mean(pairs.longer_is_better()),
        "length_correlation": _length_correlation(table),
        "token_mean": mean,
        "token_std": math.sqrt(max(_ratio(squares, read) - mean**2, 0.0)),
        "saturation_share": _ratio(saturated, read),
    }


def by_set_size(table: np.ndarray) -> list[dict[str, Any]]:
    """Rank accuracy and Kendall's tau by the number of replies of a set."""
    sizes = (table[..., 0] != MISSING).sum(1)
    rows = []
    for size in np.unique(sizes):
        figures = ranking_figures(table[sizes == size])
        rows.append({"replies": int(size), "sets": int((sizes == size).sum())}
                    | {name: figures[name] for name in ("rank_accuracy", "kendall_tau")})  # fmt: skip
    return rows


def by_length_difference(table: np.ndarray, prefers_longer: bool) -> list[dict[str, Any]]:
    """Accuracy where the better reply is shorter, similar or longer, with that of length alone beside it.

    Args:
        table: see above.
        prefers_longer: which way length alone decides; chosen on the training sets.
    """
    pairs = pairs_of(table)
    difference = (pairs.better - pairs.worse) / np.maximum(pairs.better, pairs.worse)
    kinds = {
        "all pairs": np.ones(len(difference), dtype=bool),
        "better one shorter": difference < -_ALIKE,
        "similar length": np.abs(difference) <= _ALIKE,
        "better one longer": difference > _ALIKE,
    }
    rows = []
    for name, chosen in kinds.items():
        part = pairs.only(chosen)
        longer = part.longer_is_better()
        length_only = longer if prefers_longer else 1 - longer
        rows.append(
            {"pairs": name, "n": int(chosen.sum()), "accuracy": _mean(part.right), "length alone": _mean(length_only)}
        )
    return rows


def calibration(table: np.ndarray) -> tuple[list[dict[str, Any]], float]:
    """How often a pair is right, by the probability sigmoid(|margin|) that the model gives its own order.

    Returns:
        A row for each tenth of probability, and the expected calibration error: the mean distance between probability
        and share of right pairs, weighted by pairs.
    """
    pairs = pairs_of(table)
    confidence = 1 / (1 + np.exp(-np.abs(pairs.margins)))
    rows, error = [], 0.0
    for low, high in pairwise(_CONFIDENCE):
        chosen = (confidence >= low) & ((confidence < high) | (high == 1.0))
        if chosen.any():
            mean, right = _mean(confidence[chosen]), _mean(pairs.right[chosen])
            name = f"{low:.1f} to {high:.1f}"
            rows.append({"probability": name, "n": int(chosen.sum()), "mean": mean, "right": right})
            error += chosen.mean() * abs(mean - right)
    return rows, error if rows else math.nan


def most_wrong(table: np.ndarray) -> list[int]:
    """The sets by share of pairs in the wrong order, most first; of equal ones those that are wrong by more."""
    pairs = pairs_of(table)
    wrong = [_mean(1 - pairs.right[pairs.sets == number]) for number in range(len(table))]
    margin = [pairs.margins[pairs.sets == number].min(initial=math.inf) for number in range(len(table))]
    return sorted(range(len(table)), key=lambda i: (-np.nan_to_num(wrong[i], nan=-1.0), margin[i]))


def _tau(row: np.ndarray) -> float:
    there = row[:, 0] != MISSING
    scores, preferences = (torch.from_numpy(row[there, place].copy())[None].float() for place in (0, 1))
    return float(kendall_tau(scores, preferences)) if there.sum() > 1 else math.nan


def _length_correlation(table: np.ndarray) -> float:
    """Pearson's correlation of score and length, each less its mean within the set."""
    centred: list[list[np.ndarray]] = [[], []]
    for row in table:
        there = row[:, 0] != MISSING
        for values, name in zip(centred, ("score", "tokens"), strict=True):
            column = row[there, FIELDS.index(name)].astype(np.float64)
            values.append(column - column.mean())
    if not len(table):
        return math.nan
    score, length = (np.concatenate(values) for values in centred)
    return _ratio((score * length).sum(), math.sqrt((score**2).sum() * (length**2).sum()))


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _ratio(value: float, count: float) -> float:
    return float(value / count) if count else math.nan
