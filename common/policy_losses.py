"""Policy losses: learned token rewards weigh the log-likelihood of each token.

No gradient reaches the rewards through any of these, and what stands at masked positions (NaN, infinities, ids
outside of the vocabulary) has no influence on a value or a gradient.

A mask may lie on the CPU while the rest is on a GPU, by whoever knows it there: then the CPU waits for nothing.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from common.checks import at_least_float32, check_float, check_name, check_shape, check_values, real_tokens
from common.training.own_pieces import is_own, own_function
from common.transfers import upload

GUIDANCES = ("reward", "reward-to-go", "sequence")


def token_weights(token_rewards: Tensor, mask: Tensor, guidance: str) -> Tensor:
    """Weight of each token in a policy loss, from the token rewards of its sequence.

    ``reward``: ``w_t = r_t``, the method's default. ``reward-to-go``: ``w_t = sum_{t' >= t} r_t'``, what a token
    and all after it earn. ``sequence``: every token gets the mean of the sequence's rewards; the same reward
    model, only coarser, for comparison.

    Args:
        token_rewards: (N, T), any float dtype.
        mask: (N, T), 1 or True at real tokens.
        guidance: one of :data:`GUIDANCES`, or ``package.module:function``, see :mod:`common.training.own_pieces`.

    Returns:
        Weights, (N, T), detached; 0 at masked positions; float32 for half-precision rewards, else of their dtype.

    Raises:
        ValueError: naming the argument with a wrong shape or name, or a sequence without a real token.
    """
    if not is_own(guidance):
        check_name(guidance, "guidance", GUIDANCES)
    check_float(token_rewards, "token_rewards", "(N, T)")
    real = real_tokens(mask, token_rewards.shape)
    rewards = at_least_float32(token_rewards.detach()).masked_fill(~real, 0)

    if is_own(guidance):
        weights: Tensor = own_function(guidance)(rewards, real)
        check_shape(weights, f"weights of {guidance}", rewards.shape)
        return weights.detach().to(rewards.dtype).masked_fill(~real, 0)
    if guidance == "reward":
        return rewards
    if guidance == "reward-to-go":
        return rewards.flip(-1).cumsum(dim=-1).flip(-1).masked_fill(~real, 0)
    mean = rewards.sum(dim=-1, keepdim=True) / real.sum(dim=-1, keepdim=True)
    return mean * real


def reinforce_loss(logits: Tensor, actions: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """REINFORCE on sampled sequences: ``mean_{n, t} [ w_nt * NLL_nt ]`` over the real tokens of the batch.

    Args:
        logits: (N, T, V) of the policy's own distribution, not truncated to the top-k it was sampled with;
            position t is the one that predicts ``actions[:, t]``.
        actions: (N, T) sampled token ids.
        weights: (N, T), see :func:`token_weights`; no gradient flows through them.
        mask: (N, T), 1 or True at real tokens.

    Returns:
        The loss, (); float32 for half-precision logits, else of their dtype.

    Raises:
        ValueError: naming the argument with a wrong shape, a token id outside of the vocabulary, or a sequence
            without a real token.
    """
    return _weighted(logits, actions, weights, mask, ("actions", "weights")).mean()


def negative_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """``mean_{n, t} [ sum_v p_ntv log p_ntv ]`` over the real tokens of the batch, in nats.

    Minus the policy's entropy: added to a loss with a positive coefficient, it keeps the policy exploring. It
    lies in [-log V, 0]. A logit of minus infinity, a token the model cannot write, adds 0.

    Args:
        logits: (N, T, V), any float dtype, not truncated.
        mask: (N, T), 1 or True at real tokens.

    Returns:
        The mean, (); float32 for half-precision logits, else of their dtype.

    Raises:
        ValueError: naming the argument with a wrong shape, or a sequence without a real token.
    """
    check_float(logits, "logits", "(N, T, V)")
    real = real_tokens(mask, logits.shape[:2])
    log_p = at_least_float32(at_real_tokens(real, logits)[0]).log_softmax(dim=-1)  # (M, V), M real tokens
    # 0 * -inf is NaN, in the value and in the gradient; 0 times the lowest finite number is the 0 it should be.
    finite_log_p = log_p.clamp(min=torch.finfo(log_p.dtype).min)
    return (log_p.exp() * finite_log_p).sum(dim=-1).mean()


def reward_weighted_mle_loss(
    logits: Tensor,
    labels: Tensor,
    token_rewards: Tensor,
    mask: Tensor,
    guidance: str = "reward",
    exponentiate: bool = False,
) -> Tensor:
    """Maximum likelihood of reference sequences, each token weighted by its share of the sequence's reward.

        w_nt = r_nt / sum_t' r_nt'        loss = mean_n sum_t w_nt * NLL_nt

    ``guidance`` other than ``reward`` puts the weights of :func:`token_weights` in place of ``r``, and
    ``exponentiate`` puts ``exp(r)`` in place of ``r`` before that. The weights of a sequence sum to one. A
    sequence whose rewards are all zero gets equal weights, the plain mean of its token losses.

    Args:
        logits: (N, T, V), any float dtype; position t is the one that predicts ``labels[:, t]``.
        labels: (N, T) token ids of the references.
        token_rewards: (N, T) finite rewards, not negative unless ``exponentiate``; they get no gradient.
        mask: (N, T), 1 or True at real tokens.
        guidance: one of :data:`GUIDANCES`.
        exponentiate: weigh by ``exp(r)``.

    Returns:
        The loss, (); float32 for half-precision logits, else of their dtype.

    Raises:
        ValueError: naming the argument with a wrong shape, name or value, a token id outside of the vocabulary,
            or a sequence without a real token.
    """
    check_float(logits, "logits", "(N, T, V)")
    check_float(token_rewards, "token_rewards", "(N, T)")
    check_shape(token_rewards, "token_rewards", logits.shape[:2])
    known = real_tokens(mask, logits.shape[:2])
    real = upload(known, logits.device)
    rewards = at_least_float32(token_rewards.detach())
    check_values(rewards.isfinite() | ~real, "token_rewards: must be finite at real tokens")
    if exponentiate:
        # Weights do not change when all rewards of a sequence are divided by the same number: exp cannot overflow.
        largest = rewards.masked_fill(~real, -torch.inf).amax(dim=-1, keepdim=True)
        rewards = (rewards - largest).exp()
    else:
        message = "token_rewards: must not be negative at real tokens, they are shares of their sum"
        check_values((rewards >= 0) | ~real, message)

    weights = token_weights(rewards, real, guidance)
    check_values(weights >= 0, f"guidance: weights of {guidance} must not be negative, they are shares of their sum")
    weights = torch.where(weights.sum(dim=-1, keepdim=True) > 0, weights, real.to(weights.dtype))
    weights = weights / weights.sum(dim=-1, keepdim=True)
    # The weights of each sequence sum to one, so the mean over sequences is the whole sum over N.
    return shared_likelihood_loss(logits, labels, weights, known) / logits.shape[0]


def shared_likelihood_loss(logits: Tensor, labels: Tensor, shares: Tensor, mask: Tensor) -> Tensor:
    """Likelihood of references under given shares: ``sum_{n, t} share_nt * NLL_nt``.

    With :func:`common.credit.shares_over_batch` of equal weights it is plain cross-entropy.

    Args:
        logits: (N, T, V), any float dtype; position t is the one that predicts ``labels[:, t]``.
        labels: (N, T) token ids of the references.
        shares: (N, T), which get no gradient.
        mask: (N, T), 1 or True at real tokens.

    Returns:
        The loss, (); float32 for half-precision logits, else of their dtype.

    Raises:
        ValueError: naming the argument with a wrong shape, a token id outside of the vocabulary, or a sequence
            without a real token.
    """
    return _weighted(logits, labels, shares, mask, ("labels", "shares")).sum()


def at_real_tokens(mask: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Of tensors (N, T, ...) what stands at the M real tokens, (M, ...) each, row by row.

    Args:
        mask: (N, T), True at real tokens.
        tensors: on one device.
    """
    rows, columns = (upload(places, tensors[0].device) for places in mask.nonzero(as_tuple=True))
    return [tensor[rows, columns] for tensor in tensors]


def _weighted(logits: Tensor, token_ids: Tensor, weights: Tensor, mask: Tensor, names: tuple[str, str]) -> Tensor:
    """Weight times -log p of the M real tokens, (M,); `names` are those of ids and weights in the caller.

    Masked positions are left out before any arithmetic, so that neither NaN logits nor ids such as -100 there
    can reach a value or, through zero times NaN, a gradient.
    """
    check_float(logits, "logits", "(N, T, V)")
    check_float(weights, names[1], "(N, T)")
    check_shape(weights, names[1], logits.shape[:2])
    check_shape(token_ids, names[0], logits.shape[:2])
    if token_ids.is_floating_point() or token_ids.is_complex() or token_ids.dtype == torch.bool:
        raise ValueError(f"{names[0]}: must be integer token ids, got {token_ids.dtype}")
    real = real_tokens(mask, logits.shape[:2])
    chosen_logits, chosen, chosen_weights = at_real_tokens(real, logits, token_ids.long(), weights.detach())
    message = f"{names[0]}: token ids of real tokens must lie in [0, {logits.shape[-1]})"
    check_values((chosen >= 0) & (chosen < logits.shape[-1]), message)
    losses = F.cross_entropy(at_least_float32(chosen_logits), chosen, reduction="none")
    return chosen_weights.to(losses.dtype) * losses
