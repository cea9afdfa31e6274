"""Credit: what weighs a token, or a whole sequence, in a policy's loss.

Pure functions on detached tensors. What stands at masked positions, NaN included, has no influence.

Two tables say what can be chosen by name: :data:`CREDITS` for the tokens of references (weighted maximum likelihood,
weights >= 0), :data:`SAMPLE_CREDITS` for those of samples (REINFORCE, weights of either sign). A new kind is one
function and one line. Rankings determine neither the level of a token reward in a state nor, under the aggregation
``sum``, how a sequence's score is spread over it; only the difference between alternatives in the same state is
(METHOD: credit). ``advantage`` is that difference, and what the others are measured against.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.checks import (
    at_least_float32,
    check_float,
    check_name,
    check_positive,
    check_shape,
    check_values,
    real_tokens,
)
from common.policy_losses import token_weights
from common.training.own_pieces import is_own

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
    z = _in_deviations(scores - scores.mean(), scores)
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
    check_values(~(weights < 0), "weights: must not be negative at real tokens, they are shares of their sum")
    if total is not None:
        return weights / total
    weights = torch.where(weights.sum() > 0, weights, real.to(weights.dtype))
    return weights / weights.sum()


def expected_rewards(policy_logits: Tensor, rewards: Tensor) -> Tensor:
    """Reward that the policy expects of its next token in each state: ``E_{a ~ policy} r(s, a)``, exactly.

    Args:
        policy_logits: (N, T, V) of the policy's own, untruncated distribution.
        rewards: (N, T, V) of every token in that state, such as
            :meth:`common.token_reward_model.TokenRewardModel.rewards_of_all` gives.

    Returns:
        Expectations, (N, T), detached; float32 for half-precision input, else of the dtype of the rewards.

    Raises:
        ValueError: naming the argument with a wrong shape.
    """
    check_float(policy_logits, "policy_logits", "(N, T, V)")
    check_float(rewards, "rewards", "(N, T, V)")
    check_shape(rewards, "rewards", policy_logits.shape)
    rewards = at_least_float32(rewards.detach())
    return (at_least_float32(policy_logits.detach()).softmax(-1).to(rewards.dtype) * rewards).sum(-1)


def advantages(token_rewards: Tensor, expected: Tensor, mask: Tensor) -> Tensor:
    """How much better a token is than what the policy writes in that state: ``A_t = r(s_t, a_t) - E_a r(s_t, a)``.

    A number added to all rewards of a state changes nothing, so that the level, which rankings leave open, is gone.

    Args:
        token_rewards: (N, T).
        expected: (N, T), see :func:`expected_rewards`.
        mask: (N, T), 1 or True at real tokens.

    Returns:
        Advantages, (N, T), detached; 0 at masked positions; float32 for half-precision rewards, else of their dtype.

    Raises:
        ValueError: naming the argument with a wrong shape, or a sequence without a real token.
    """
    check_float(token_rewards, "token_rewards", "(N, T)")
    check_float(expected, "expected", "(N, T)")
    check_shape(expected, "expected", token_rewards.shape)
    real = real_tokens(mask, token_rewards.shape)
    difference = at_least_float32(token_rewards.detach()) - at_least_float32(expected.detach())
    return difference.masked_fill(~real, 0)


def advantage_weights(advantage: Tensor, mask: Tensor, form: str = "softplus") -> Tensor:
    """Positive weights of tokens by their advantages: ``softplus(1 + A / std A)``, or ``exp(A / std A)``.

    ``std A`` is the standard deviation over all real tokens of the batch. Advantages that differ by no more than
    rounding weigh alike.

    Args:
        advantage: (N, T), see :func:`advantages`; all that are compared, those of other processes included.
        mask: (N, T), 1 or True at real tokens.
        form: ``softplus`` or ``exp``.

    Returns:
        Weights, (N, T), detached; 0 at masked positions; float32 for half-precision input, else of its dtype.

    Raises:
        ValueError: naming the argument with a wrong shape or name, or a sequence without a real token.
    """
    check_name(form, "form", ("softplus", "exp"))
    check_float(advantage, "advantage", "(N, T)")
    real = real_tokens(mask, advantage.shape)
    values = at_least_float32(advantage.detach()).masked_fill(~real, 0)
    scaled = _in_deviations(values, values[real]).masked_fill(~real, 0)
    weights = torch.nn.functional.softplus(1 + scaled) if form == "softplus" else scaled.exp()
    return weights.masked_fill(~real, 0)


def moved_within_sequences(weights: Tensor, mask: Tensor) -> Tensor:
    """The weights of each sequence at other tokens of it: a control of what it matters which token gets which.

    The n real tokens of a sequence exchange their weights in a circle: each gets that of the token n // 2 further. All
    else, such as sums and spread, stays as it was. A token alone keeps its own.

    Args:
        weights: (N, T).
        mask: (N, T), 1 or True at real tokens.

    Returns:
        Weights, (N, T); 0 at masked positions.

    Raises:
        ValueError: naming the argument with a wrong shape, or a sequence without a real token.
    """
    real = real_tokens(mask, weights.shape)
    lengths = real.sum(-1, keepdim=True)
    from_place = (real.cumsum(-1) - 1 + lengths // 2) % lengths
    columns = (~real).int().argsort(dim=-1, stable=True)  # of the real tokens first, in their order
    return weights.gather(-1, columns.gather(-1, from_place)).masked_fill(~real, 0)


def leave_one_out(scores: Tensor) -> Tensor:
    """Each sample's score less the mean score of the other samples of its source: (B, K) -> (B, K), detached.

    A baseline that does not depend on the sample itself (Kool et al. 2019; RLOO: Ahmadian et al. 2024). What is left
    sums to zero over the samples of a source.

    Args:
        scores: (B, K), K samples of each source.

    Raises:
        ValueError: another shape, or K = 1, which leaves nothing to compare with.
    """
    check_float(scores, "scores", "(B, K)")
    return leave_one_out_by_position(
        scores.reshape(-1, 1), torch.ones_like(scores, dtype=torch.bool).reshape(-1, 1), scores.shape[1]
    ).view_as(scores)


def leave_one_out_by_position(weights: Tensor, mask: Tensor, per_source: int) -> Tensor:
    """Less the mean weight that the other samples of a source have at the same position.

    Not part of the published method, whose weights are all positive: with few samples most of the gradient is then
    noise, which a baseline that does not depend on a token's own draw takes away (Williams 1992; leave-one-out: Kool
    et al. 2019). Where tokens are drawn from the distribution in the loss, that leaves the expected gradient as it is.

    It does not where they are drawn from its top-k, as here: then ``E[grad log p]`` is not 0 but the direction that
    moves probability into the top-k, which all-positive weights push along, sharpening the policy, whatever the
    rewards say. A baseline takes most of that push away with the noise, so the entropy coefficient that held it in
    balance has to be chosen anew.

    Args:
        weights: (N, T), the K samples of a source one after the other.
        mask: (N, T), 1 or True at real tokens.
        per_source: K.

    Returns:
        Weights, (N, T), detached, which at each position sum to zero over the samples of a source; 0 at masked
        positions, and where no other sample has a token. float32 for half-precision weights, else of their dtype.

    Raises:
        ValueError: naming the argument with a wrong shape, K = 1 or no divisor of N, or a sequence without a real
            token.
    """
    check_float(weights, "weights", "(N, T)")
    real = real_tokens(mask, weights.shape)
    if per_source < 2 or len(weights) % per_source:
        raise ValueError(
            f"per_source: a leave-one-out baseline needs 2 samples of a source at least, and as many of each; "
            f"got {per_source} of {len(weights)} sequences"
        )
    values = at_least_float32(weights.detach()).masked_fill(~real, 0)
    grouped = values.unflatten(0, (-1, per_source))  # (B, K, T)
    others = real.unflatten(0, (-1, per_source)).sum(1, keepdim=True) - 1  # (B, 1, T), at the real ones
    baseline = (grouped.sum(1, keepdim=True) - grouped) / others.clamp(min=1)
    return ((grouped - baseline) * (others > 0)).flatten(0, 1).masked_fill(~real, 0)


def _in_deviations(values: Tensor, compared: Tensor) -> Tensor:
    """`values` divided by the standard deviation of those `compared` (not an estimate for more); 0 where they are
    equal but for rounding: a deviation of at most ten float32 steps of the largest."""
    deviation = compared.std(correction=0)
    rounding = 10 * torch.finfo(torch.float32).eps * compared.abs().max()
    return torch.where(deviation > rounding, values / deviation, torch.zeros_like(values))


@dataclass(frozen=True)
class Judged:
    """What is known of the sequences of a batch, from which their tokens are weighed.

    Attributes:
        rewards: (N, T) learned rewards of the tokens.
        mask: (N, T), True at real tokens.
        expected: (N, T), see :func:`expected_rewards`; needed by the kinds of :data:`NEED_EXPECTATION`.
        scores: (N,) of the sequences; None: their mean token rewards.
    """

    rewards: Tensor
    mask: Tensor
    expected: Tensor | None = None
    scores: Tensor | None = None

    @property
    def advantages(self) -> Tensor:
        """See :func:`advantages`."""
        if self.expected is None:
            raise ValueError("expected: what the policy expects in each state is needed for an advantage")
        return advantages(self.rewards, self.expected, self.mask)

    @property
    def sequence_scores(self) -> Tensor:
        """(N,)."""
        return sequence_scores(self.rewards, self.mask) if self.scores is None else self.scores

    @property
    def sequence_weights(self) -> Tensor:
        """(N, T): that of the sequence at each of its tokens, see :func:`sequence_weights`."""
        return sequence_weights(self.sequence_scores).unsqueeze(-1) * self.mask


def _product(judged: Judged) -> Tensor:
    return judged.sequence_weights * advantage_weights(judged.advantages, judged.mask)


def _shifted_product(judged: Judged) -> Tensor:
    token_part = advantage_weights(judged.advantages, judged.mask)
    return judged.sequence_weights * moved_within_sequences(token_part, judged.mask)


Weigh = Callable[[Judged], Tensor]

# Weights of the tokens of references, >= 0.
CREDITS: dict[str, Weigh] = {
    "reward": lambda judged: token_weights(judged.rewards, judged.mask, "reward"),
    "reward-to-go": lambda judged: token_weights(judged.rewards, judged.mask, "reward-to-go"),
    "sequence": lambda judged: judged.sequence_weights,
    "advantage": lambda judged: advantage_weights(judged.advantages, judged.mask),
    "exp-advantage": lambda judged: advantage_weights(judged.advantages, judged.mask, "exp"),
    "product": _product,
    "shifted-product": _shifted_product,
}

# Weights of the tokens of samples, of either sign.
SAMPLE_CREDITS: dict[str, Weigh] = {
    "reward": CREDITS["reward"],
    "reward-to-go": CREDITS["reward-to-go"],
    "sequence": lambda judged: judged.sequence_scores.unsqueeze(-1) * judged.mask,
    "advantage": lambda judged: judged.advantages,
}

USE_SEQUENCE_SCORES = {"sequence", "product", "shifted-product"}
NEED_EXPECTATION = ("advantage", "exp-advantage", "product", "shifted-product")


def reference_weights(kind: str, judged: Judged) -> Tensor:
    """Weights (N, T), >= 0, detached, of the tokens of references by the kind of credit of that name.

    ==================  ==============================================================================
    reward              ``r_t``, the published one
    reward-to-go        ``sum_{t' >= t} r_t'``
    sequence            ``exp(z / 0.5)`` for all tokens, see :func:`sequence_weights`
    advantage           ``softplus(1 + A_t / std A)``, see :func:`advantage_weights`
    exp-advantage       ``exp(A_t / std A)``
    product             that of ``sequence`` times that of ``advantage``
    shifted-product     the control of ``product``: the second factor half a sequence further, see
                        :func:`moved_within_sequences`
    ==================  ==============================================================================

    Raises:
        ValueError: the name is not one of :data:`CREDITS`, or what it needs is not there.
    """
    if is_own(kind):
        return token_weights(judged.rewards, judged.mask, kind)
    check_name(kind, "kind", tuple(CREDITS))
    return CREDITS[kind](judged)


def sample_weights(kind: str, judged: Judged, per_source: int | None = None) -> Tensor:
    """Weights (N, T), detached, of the tokens of samples by the kind of credit of that name.

    ``reward`` and ``reward-to-go`` as of references; ``sequence``: the score of the sequence at each of its tokens;
    ``advantage``: ``A_t`` itself.

    Args:
        kind: one of :data:`SAMPLE_CREDITS`.
        judged: N samples, the K of a source one after the other.
        per_source: K, for the leave-one-out baseline: of sequences over the samples of a source, of tokens over those
            at the same position. None: no baseline.

    Raises:
        ValueError: another name, or what the kind needs is not there; K = 1.
    """
    if not is_own(kind):
        check_name(kind, "kind", tuple(SAMPLE_CREDITS))
    if per_source is not None and kind == "sequence":
        differences = leave_one_out(judged.sequence_scores.unflatten(0, (-1, per_source))).flatten()
        return differences.unsqueeze(-1) * judged.mask
    is_built_in = not is_own(kind)
    weights = SAMPLE_CREDITS[kind](judged) if is_built_in else token_weights(judged.rewards, judged.mask, kind)
    return weights if per_source is None else leave_one_out_by_position(weights, judged.mask, per_source)
