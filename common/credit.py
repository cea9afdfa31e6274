"""Credit: what weighs a token, or a whole sequence, in a policy's loss.

Pure functions on detached tensors. What stands at masked positions, NaN included, has no influence.
"""

import torch
from torch import Tensor

from common.checks import at_least_float32, check_float, check_positive, check_shape, real_tokens

SEQUENCE_TEMPERATURE = 0.5


def sequence_scores(token_rewards: Tensor, mask: Tensor) -> Tensor:
    """Learned score of each sequence: the mean of its token rewards.

    Args:
        token_rewards: (N, T), any float dtype.
        mask: (N, T), 1 or True at real tokens.

    Returns:
        Scores, (N,), detached; float32 for half-precision rewards, else of their dtype.

    Raises:
        ValueError: naming the argument with a wrong shape, or a sequence without a real token.
    """
    check_float(token_rewards, "token_rewards", "(N, T)")
    real = real_tokens(mask, token_rewards.shape)
    rewards = at_least_float32(token_rewards.detach()).masked_fill(~real, 0)
    return rewards.sum(dim=-1) / real.sum(dim=-1)


def sequence_weights(scores: Tensor, temperature: float = SEQUENCE_TEMPERATURE) -> Tensor:
    """Weight of each sequence of a batch against the others: ``exp(z / temperature)``, z its standardised score.

    ``z`` is the score less the mean of the batch, divided by its standard deviation (of the N scores, not an
    estimate for more). Scores that differ by no more than rounding (a standard deviation of at most ten float32
    steps of the largest) are equal: every weight is 1, as it is in a batch of one sequence.

    Args:
        scores: (N,) of all sequences that are compared, those of other processes and of all accumulated batches
            included; see :func:`sequence_scores`.
        temperature: > 0, in standard deviations; smaller weighs the best sequences more.

    Returns:
        Weights, (N,), positive, detached; float32 for half-precision scores, else of their dtype.

    Raises:
        ValueError: naming the argument with a wrong shape or value.
    """
    check_float(scores, "scores", "(N,)")
    check_positive(temperature, "temperature")
    scores = at_least_float32(scores.detach())
    if not bool(scores.isfinite().all()):
        raise ValueError("scores: must be finite")
    deviation = scores.std(correction=0)
    rounding = 10 * torch.finfo(torch.float32).eps * scores.abs().max()
    z = torch.where(deviation > rounding, (scores - scores.mean()) / deviation, 0)
    return (z / temperature).exp()


def shares_over_batch(weights: Tensor, mask: Tensor, total: Tensor | float | None = None) -> Tensor:
    """Each token's share of all weight in the batch: ``w_nt / sum_n't' w_n't'``.

    Unlike shares over each sequence these let a whole sequence weigh more than another. Equal weights are
    ``1 / tokens``: with them a loss is plain cross-entropy, the mean over the tokens of the batch.

    Args:
        weights: (N, T), or (N, 1) for a weight a sequence, which each of its tokens gets; not negative.
        mask: (N, T), 1 or True at real tokens.
        total: sum of the weights of the real tokens of the whole batch, where these are only some of its sequences.

    Returns:
        Shares, (N, T), detached; 0 at masked positions. They sum to one over the batch; all of them are equal where
        no weight is positive. float32 for half-precision weights, else of their dtype.

    Raises:
        ValueError: naming the argument with a wrong shape, a negative weight, or a sequence without a real token.
    """
    check_float(weights, "weights", "(N, T)")
    if weights.shape[1] != 1:
        check_shape(weights, "weights", mask.shape)
    real = real_tokens(mask, (weights.shape[0], mask.shape[-1]))
    weights = at_least_float32(weights.detach()).expand(real.shape).masked_fill(~real, 0)
    if bool((weights < 0).any()):
        raise ValueError("weights: must not be negative at real tokens, they are shares of their sum")
    if total is not None:
        return weights / total
    weights = torch.where(weights.sum() > 0, weights, real.to(weights.dtype))
    return weights / weights.sum()
