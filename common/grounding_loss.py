"""Grounding loss: predicted scores of ranked sequences are fitted to the order of their preferences."""

import torch
from torch import Tensor

from common.checks import at_least_float32, check_float, check_positive, check_shape, check_values, real_tokens


def list_mle_loss(
    scores: Tensor, preferences: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Negative log-likelihood of the true orders under the Plackett-Luce model of the scores (ListMLE).

    Plackett-Luce draws an order by picking the best of all, then the best of the rest, and so on, each with
    probability softmax(e / tau). With ``pi`` the order of a set by preference, best first,

        loss = mean over sets of  sum_i [ log sum_{j >= i} exp(e_pi(j) / tau)  -  e_pi(i) / tau ]

    For K = 2 this is the Bradley-Terry loss, -log sigmoid((e_better - e_worse) / tau). The log-sum-exps are
    taken without an additive guard, so the loss is unbiased, and finite for scores of any finite size.
    Equal preferences are put in an order drawn at random, independently for each set and each call.

    Args:
        scores: (B, K) predicted scores ``e``, any float dtype, K >= 2.
        preferences: (B, K) true preferences, higher is better, any real dtype; they get no gradient.
        temperature: ``tau`` > 0, in units of score.
        generator: source of the order of ties; the global generator of the scores' device where not given.

    Returns:
        The loss, (); float32 for half-precision scores, else of their dtype. Scores that are all equal have
        loss log K!.

    Raises:
        ValueError: naming the argument with a wrong shape or value.
    """
    _check_ranking(scores, preferences)
    check_positive(temperature, "temperature")

    order = _descending_order(preferences, generator).to(scores.device)
    ordered = (at_least_float32(scores) / temperature).gather(-1, order)  # (B, K), best first
    log_normalizers = ordered.flip(-1).logcumsumexp(dim=-1).flip(-1)  # (B, K): log sum_{j >= i} exp(e_j)
    return (log_normalizers - ordered).sum(dim=-1).mean()


def partial_order_losses(
    scores: Tensor,
    preferences: Tensor,
    mask: Tensor | None = None,
    margins: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """ListMLE for orders with ties, where equal preferences say nothing, and for sets of different size.

    Each sequence is picked from itself and those that are worse than it:

        loss of a set = sum_i [ log (exp(e_i / tau) + sum_{j: p_j < p_i} exp((e_j + m) / tau))  -  e_i / tau ]

    Without ties and margins this is :func:`list_mle_loss`, and for K = 2 the Bradley-Terry loss of reward models,
    -log sigmoid((e_better - e_worse - m) / tau). Where preferences are equal, no gradient drives the scores apart or
    together; a set whose preferences are all equal has loss 0.

    Args:
        scores: (B, K) predicted scores ``e``, any float dtype, K >= 2.
        preferences: (B, K) true preferences ``p``, higher is better; they get no gradient.
        mask: (B, K), 1 or True where a set has a sequence; all where not given. What stands elsewhere has no influence.
        margins: (B,) margins ``m`` >= 0 by which a better sequence is to exceed a worse one, in units of score. On the
            CPU they are looked at without waiting for a device.
        temperature: ``tau`` > 0.

    Returns:
        The loss of each set, (B,); float32 for half-precision scores, else of their dtype.

    Raises:
        ValueError: naming the argument with a wrong shape or value.
    """
    real = torch.ones_like(scores, dtype=torch.bool) if mask is None else real_tokens(mask, scores.shape)
    _check_ranking(scores, preferences.masked_fill(~real.to(preferences.device), 0))
    check_positive(temperature, "temperature")
    preferences, scaled = preferences.to(scores.device), at_least_float32(scores).masked_fill(~real, 0) / temperature
    worse = preferences.unsqueeze(-1) > preferences.unsqueeze(-2)  # (B, K, K): [b, i, j] where j is worse than i
    worse &= real.unsqueeze(-1) & real.unsqueeze(-2)
    rivals = scaled.unsqueeze(-2).expand(worse.shape)
    if margins is not None:
        check_shape(margins, "margins", scores.shape[:1])
        if bool((margins < 0).any()):
            raise ValueError("margins: must not be negative")
        rivals = rivals + margins.to(scaled)[:, None, None] / temperature
    diagonal = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    exponents = torch.where(diagonal, scaled.unsqueeze(-1), rivals.masked_fill(~worse, -torch.inf))
    return (exponents.logsumexp(-1) - scaled).masked_fill(~real, 0).sum(-1)


@torch.no_grad()
def rank_accuracy(scores: Tensor, preferences: Tensor) -> Tensor:
    """Share of the pairs within a set, over all sets, that the scores put in the order of their preferences.

    Pairs of equal preference are left out; a pair of equal scores counts one half, so that scores that are all
    equal are right half of the time, not always or never.

    Args:
        scores: (B, K) predicted scores, any float dtype, K >= 2.
        preferences: (B, K) true preferences, higher is better.

    Returns:
        A number in [0, 1], (), float32; NaN where no pair has different preferences.

    Raises:
        ValueError: naming the argument with a wrong shape or value.
    """
    right, pairs = ordered_pairs(scores, preferences)
    return right.sum() / pairs.sum()


@torch.no_grad()
def ordered_pairs(scores: Tensor, preferences: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sequence the pairs of different preference that it is part of, and those in the right order.

    Args:
        scores, preferences: see `rank_accuracy`.

    Returns:
        Pairs in the right order, a pair of equal scores one half, and all pairs: (B, K) float32 each. Every pair is
        counted at both of its sequences.
    """
    _check_ranking(scores, preferences)

    def order(values: Tensor) -> Tensor:  # (B, K, K): 1, 0, -1
        return (values.unsqueeze(-1) > values.unsqueeze(-2)).float() - (
            values.unsqueeze(-1) < values.unsqueeze(-2)
        ).float()

    by_preference = order(preferences).to(scores.device)
    differs = by_preference.abs()
    return ((order(scores) * by_preference + 1) / 2 * differs).sum(-1), differs.sum(-1)


def kendall_tau(scores: Tensor, preferences: Tensor) -> Tensor:
    """Kendall's tau-b of scores and preferences in each ranking set.

    (concordant - discordant) / sqrt(pairs of different score x pairs of different preference): 1 for the same order,
    -1 for the opposite one, 0 by chance.

    Args:
        scores: (B, K), by the learned rewards.
        preferences: (B, K), the truth; higher is better.

    Returns:
        (B,) numbers in [-1, 1], float32; NaN for a set whose scores or preferences are all equal.

    Raises:
        ValueError: naming the argument with a wrong shape or value.
    """
    _check_ranking(scores, preferences)
    by_score = (scores.unsqueeze(-1) - scores.unsqueeze(-2)).sign().float()  # (B, K, K): each pair twice
    by_preference = (preferences.unsqueeze(-1) - preferences.unsqueeze(-2)).sign().float().to(scores.device)
    agreement = (by_score * by_preference).sum((-2, -1))
    pairs = by_score.abs().sum((-2, -1)) * by_preference.abs().sum((-2, -1))
    return agreement / pairs.sqrt()  # 0 / 0 is NaN


def _check_ranking(scores: Tensor, preferences: Tensor) -> None:
    check_float(scores, "scores", "(B, K)")
    if scores.shape[1] < 2:
        raise ValueError(f"scores: a ranking set needs at least 2 sequences, got shape {tuple(scores.shape)}")
    check_shape(preferences, "preferences", scores.shape)
    check_values(~preferences.isnan(), "preferences: NaN has no place in an order")


def _descending_order(preferences: Tensor, generator: torch.Generator | None) -> Tensor:
    """Indices (B, K) that sort each row, best first; equal entries in random order, drawn for each row."""
    device = preferences.device if generator is None else generator.device
    shuffle = torch.rand(preferences.shape, generator=generator, device=device).argsort(dim=-1)
    shuffle = shuffle.to(preferences.device)
    shuffled = preferences.detach().gather(-1, shuffle)
    # A stable sort keeps the shuffled order of equal entries.
    return shuffle.gather(-1, shuffled.argsort(dim=-1, descending=True, stable=True))
