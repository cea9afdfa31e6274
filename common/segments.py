"""Segments of a reply: where a language model is surprised, a new one begins; each gets one reward.

The dense-reward follow-up of the method (arXiv 2501.02790) reads a reward at the last token of each segment. A segment
ends where the entropy of the next token exceeds a cut-off. Token and sequence level are its two ends: every token its
own segment, or one segment that is the whole reply.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from common.checks import at_least_float32, check_float, check_name, check_positive, check_shape, real_tokens

GRANULARITIES = ("token", "segment", "sequence")
SPREADS = ("even", "repeat", "last")
READ_SCORES = ("mean", "sum")

HUBER_EPSILON = 1.35  # of scikit-learn's HuberRegressor, with which the published normalisers were fitted
DEVIATION_FLOOR = 0.1  # of a fitted deviation, as a share of that of all rewards


def next_token_entropies(logits: Tensor) -> Tensor:
    """Entropy in nats of the next token, over the whole vocabulary: (..., T, V) -> (..., T), at least float32.

    The entry of token j is computed from the logits at token j, which predict token j + 1.
    """
    log_probabilities = at_least_float32(logits).log_softmax(-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def segment_ends(
    granularity: str, mask: Tensor, is_end: Tensor, entropies: Tensor | None = None, cut: float | None = None
) -> Tensor:
    """The tokens at which rewards are read: the last one of each segment.

    ``token``: every token. ``segment``: token j where ``entropies[j] > cut``, since the surprising token j + 1 opens
    the next one, and the last token. ``sequence``: the last token alone, the end token where there is one. The end
    token belongs to no segment otherwise, so that the last segment ends before it; of a reply that is nothing but an
    end token, that token is the one segment. How surprising the first token was is never looked at.

    Args:
        granularity: one of :data:`GRANULARITIES`.
        mask: (..., T), 1 or True at the reply's tokens, its end token included; they stand together.
        is_end: (..., T), 1 or True at the end token of each reply that has one: its last real token.
        entropies: (..., T) in nats, see :func:`next_token_entropies`; for ``segment`` alone.
        cut: the cut-off in nats; for ``segment`` alone.

    Returns:
        bool, (..., T). Each reply has at least one.

    Raises:
        ValueError: naming the argument with a wrong name, shape or value.
    """
    check_name(granularity, "granularity", GRANULARITIES)
    real = real_tokens(mask, mask.shape)
    check_shape(is_end, "is_end", mask.shape)
    if granularity == "sequence":
        return _last(real)
    inside = real & ~is_end.bool()
    inside = inside | (real & ~inside.any(-1, keepdim=True))  # nothing but an end token: it is the segment
    if granularity == "token":
        return inside
    if entropies is None or cut is None:
        raise ValueError(f"{'entropies' if entropies is None else 'cut'}: needed by granularity 'segment'")
    check_shape(entropies, "entropies", mask.shape)
    return inside & ((entropies > cut) | _last(inside))


def segment_numbers(ends: Tensor) -> Tensor:
    """The segment of each token, from 0: (..., T) of :func:`segment_ends` -> (..., T); -1 behind the last end."""
    up_to = ends.long().cumsum(-1)
    numbers = up_to - ends.long()
    return numbers.masked_fill(numbers == up_to[..., -1:], -1)


def segment_locations(ends: Tensor) -> Tensor:
    """Where each segment lies, at its last token: (number from 1) / (how many), in (0, 1]; 0 elsewhere. (..., T)."""
    up_to = ends.long().cumsum(-1)
    return (up_to / up_to[..., -1:].clamp(min=1)).masked_fill(~ends, 0)


def spread_segments(rewards: Tensor, ends: Tensor, mask: Tensor, how: str, outside: float = 0.0) -> Tensor:
    """Give the reward of each segment to its tokens.

    ``even``: divided evenly over its tokens (published), ``repeat``: undivided to each, ``last``: to the last alone.

    Args:
        rewards: (..., T), read at the tokens of ``ends``; what stands elsewhere has no influence.
        ends: (..., T), see :func:`segment_ends`.
        mask: (..., T), 1 or True at the reply's tokens.
        how: one of :data:`SPREADS`.
        outside: what stands at padding and at an end token that belongs to no segment.

    Returns:
        (..., T). The sum over a reply stays the same, but with ``repeat``.

    Raises:
        ValueError: naming the argument with a wrong name or shape.
    """
    check_name(how, "how", SPREADS)
    check_shape(ends, "ends", rewards.shape)
    check_shape(mask, "mask", rewards.shape)
    rewards = rewards.masked_fill(~ends, 0)
    numbers = segment_numbers(ends)
    inside = mask.bool() & (numbers >= 0)
    if how == "last":
        return rewards.masked_fill(~inside, outside)
    place = numbers.clamp(min=0)
    per_segment = torch.zeros_like(rewards).scatter_add(-1, place, rewards)
    if how == "even":
        lengths = torch.zeros_like(rewards).scatter_add(-1, place, inside.to(rewards.dtype))
        per_segment = per_segment / lengths.clamp(min=1)
    return per_segment.gather(-1, place).masked_fill(~inside, outside)


def score_increments(rewards: Tensor, ends: Tensor, score: str = "mean") -> Tensor:
    """What each segment adds to the score of the reply so far.

    To the ``mean`` of the rewards read: m_n - m_(n-1) = (r_n - m_(n-1)) / n, with m_0 = 0; to their ``sum``: r_n. Known
    as soon as the segment is written, and all of them sum to the score of the reply: what is still to come at a token
    is the score less what it was before, which no action at the token can change.

    Args:
        rewards: (..., T), read at the tokens of ``ends``; what stands elsewhere has no influence.
        ends: (..., T), see :func:`segment_ends`.
        score: one of :data:`READ_SCORES`.

    Returns:
        (..., T), 0 elsewhere.
    """
    check_name(score, "score", READ_SCORES)
    check_shape(ends, "ends", rewards.shape)
    if score == "sum":
        return rewards.masked_fill(~ends, 0)
    means = rewards.masked_fill(~ends, 0).cumsum(-1) / ends.long().cumsum(-1).clamp(min=1)
    return means.diff(dim=-1, prepend=torch.zeros_like(means[..., :1])).masked_fill(~ends, 0)


@dataclass(frozen=True)
class LocationNormalizer:
    """Mean and deviation of segment rewards as functions of where a segment lies (see :func:`segment_locations`).

    At location p the mean is ``mean_slope * ln p + mean_intercept``, the deviation likewise; a fitted deviation can
    fall below zero for small p, which would turn signs, so it is never less than ``floor``.
    """

    mean_slope: float
    mean_intercept: float
    deviation_slope: float
    deviation_intercept: float
    floor: float

    def __post_init__(self) -> None:
        check_positive(self.floor, "floor")

    def __call__(self, rewards: Tensor, ends: Tensor) -> Tensor:
        """Normalised rewards at the tokens of ``ends``, 0 elsewhere; (..., T) each."""
        check_float(rewards, "rewards", "(" + ",".join("." * rewards.dim()) + ")")
        check_shape(ends, "ends", rewards.shape)
        logs = (segment_locations(ends) + 1e-10).log().to(rewards.dtype)
        mean = self.mean_slope * logs + self.mean_intercept
        deviation = (self.deviation_slope * logs + self.deviation_intercept).clamp(min=self.floor)
        return ((rewards - mean) / deviation).masked_fill(~ends, 0)


def fit_location_normalizer(rewards: Tensor, ends: Tensor) -> LocationNormalizer:
    """Fit mean and deviation of segment rewards to where the segments lie.

    Rewards are grouped by location to three decimals; mean and deviation of each group, unweighted, are fitted by
    Huber regression on ln p (arXiv 2501.02790, code). A group of one reward has no deviation. Where all segments lie
    at one place, as with ``sequence``, mean and deviation are those of all rewards.

    Args:
        rewards: (N, T) of replies that the reward model was not trained on.
        ends: (N, T), see :func:`segment_ends`.

    Raises:
        ValueError: fewer than two rewards, or rewards that are all equal.
    """
    check_float(rewards, "rewards", "(N, T)")
    check_shape(ends, "ends", rewards.shape)
    values = rewards[ends].cpu().double().numpy()
    if len(values) < 2 or values.std() == 0:
        raise ValueError("rewards: a normalizer needs at least two segments whose rewards differ")
    locations = segment_locations(ends)[ends].cpu().double().numpy().round(3)
    groups = [values[locations == location] for location in np.unique(locations)]
    logs = np.log(np.unique(locations) + 1e-10)
    means = np.array([group.mean() for group in groups])
    repeated = np.array([len(group) > 1 for group in groups])
    deviations = np.array([group.std() for group in groups])[repeated]
    mean_slope, mean_intercept = huber_line(logs, means)
    if len(deviations) == 0:
        deviation_slope, deviation_intercept = 0.0, float(values.std())
    else:
        deviation_slope, deviation_intercept = huber_line(logs[repeated], deviations)
    floor = DEVIATION_FLOOR * float(values.std())
    return LocationNormalizer(mean_slope, mean_intercept, deviation_slope, deviation_intercept, floor)


def huber_line(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Slope and intercept of a line through points of which some may lie far off: Huber's regression with its scale.

    Minimises ``sum_i [s + h((y_i - a x_i - b) / s) s]`` over a, b and the scale s > 0 with ``h(z) = z^2`` up to
    :data:`HUBER_EPSILON` and ``2 epsilon |z| - epsilon^2`` beyond. Points of a single x give slope 0 and their mean.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    center, spread = x.mean(), x.std()
    height = y.std()
    if spread < 1e-12 or height < 1e-12:
        return 0.0, float(y.mean())
    u, v = (x - center) / spread, (y - y.mean()) / height

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, intercept, log_scale = parameters
        scale = np.exp(log_scale)
        z = (v - slope * u - intercept) / scale
        clipped = np.clip(z, -HUBER_EPSILON, HUBER_EPSILON)
        loss = np.where(np.abs(z) <= HUBER_EPSILON, z**2, 2 * HUBER_EPSILON * np.abs(z) - HUBER_EPSILON**2)
        gradient = np.array(
            [-2 * (clipped * u).sum(), -2 * clipped.sum(), scale * (len(u) + loss.sum() - 2 * (clipped * z).sum())]
        )
        return float(scale * (len(u) + loss.sum())), gradient

    start = np.array([*np.polyfit(u, v, 1), 0.0])
    # The scale of points that lie on a line exactly is zero: it stops well above the last digit.
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=[(None, None), (None, None), (-16, 16)])
    slope = found.x[0] * height / spread
    return float(slope), float(found.x[1] * height + y.mean() - slope * center)


def _last(real: Tensor) -> Tensor:
    """The last True of each row."""
    return real & (real.flip(-1).long().cumsum(-1).flip(-1) == 1)
