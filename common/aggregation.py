"""Aggregation: the token rewards of a sequence become one score that can be ranked."""

import torch
from torch import Tensor

from common.checks import at_least_float32, check_float, check_name, check_positive, check_shape, real_tokens
from common.training.own_pieces import is_own, own_function

AGGREGATIONS = ("sum", "avg", "max", "min", "mean")


def aggregate_token_rewards(token_rewards: Tensor, mask: Tensor, method: str, temperature: float = 2.0) -> Tensor:
    """Score each sequence of each ranking set by its token rewards.

    With ``T_k`` the number of real tokens of sequence ``k``, ``C`` the mean of ``T_k`` over the ``K`` sequences of
    its set, and ``beta`` the temperature, the score ``e_k`` is (the paper's aggregation functions)

    ======  =============================================  ==============================
    method  score                                          reads as
    ======  =============================================  ==============================
    sum     ``sum_t r_kt``                                 longer sequences can score more
    avg     ``C * sum_t r_kt / T_k``                       free of the length
    max     ``C * beta * log sum_t exp(r_kt / beta)``      soft maximum: key tokens
    min     ``-C * beta * log sum_t exp(-r_kt / beta)``    soft minimum: weakest tokens
    mean    ``sum_t r_kt / T_k``                           each counts the same
    ======  =============================================  ==============================

    ``C`` puts ``avg``, ``max`` and ``min`` on the scale of ``sum``. ``mean``, with the ends of segments as the mask, is
    the score of the segment-level follow-up (arXiv 2501.02790). The soft maximum and minimum count tokens too: they
    exceed the hard ones by up to ``beta * log T_k``, which dominates where ``beta`` is large against the spread of the
    rewards (at the default of 2 and rewards within (0, 1.3) a soft maximum is mostly a length).

    Args:
        token_rewards: (B, K, T), any float dtype.
        mask: (B, K, T), 1 or True at real tokens. What stands at the other positions, NaN included, has no
            influence on the scores or their gradients.
        method: one of :data:`AGGREGATIONS`, or ``package.module:function``, see :mod:`common.training.own_pieces`.
        temperature: ``beta`` > 0, in units of reward; used by ``max`` and ``min`` alone.

    Returns:
        Scores, (B, K); float32 for half-precision rewards, else of their dtype.

    Raises:
        ValueError: naming the argument with a wrong shape, name or value, or a sequence without a real token.
    """
    if not is_own(method):
        check_name(method, "method", AGGREGATIONS)
    check_positive(temperature, "temperature")
    check_float(token_rewards, "token_rewards", "(B, K, T)")
    real = real_tokens(mask, token_rewards.shape)
    rewards = at_least_float32(token_rewards)

    if is_own(method):
        scores: Tensor = own_function(method)(rewards.masked_fill(~real, 0), real)
        check_shape(scores, f"scores of {method}", rewards.shape[:2])
        return scores
    if method == "sum":
        return rewards.masked_fill(~real, 0).sum(dim=-1)
    lengths = real.sum(dim=-1).to(rewards.dtype)  # (B, K)
    if method == "mean":
        return rewards.masked_fill(~real, 0).sum(dim=-1) / lengths
    mean_length = lengths.mean(dim=-1, keepdim=True)  # (B, 1)
    if method == "avg":
        return mean_length * rewards.masked_fill(~real, 0).sum(dim=-1) / lengths
    sign = 1 if method == "max" else -1
    exponents = (sign * rewards / temperature).masked_fill(~real, -torch.inf)
    return sign * mean_length * temperature * exponents.logsumexp(dim=-1)
