"""Token rewards in TRL: GRPO with an advantage for every token, and a scalar reward function for GRPO and RLOO.

The one module that needs TRL to be imported (extra ``trl``). What it relies on there is held by a contract test.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer

from common.checks import check_name, check_shape, check_share
from common.errors import UserError
from common.reply_rewards import BASELINES, SCALES, ReplyRewards, RewardReading, TokenScorer, scalar_reward

__all__ = ["DenseGRPOTrainer", "dense_advantages", "rewards_to_go", "scalar_reward"]

_TINY = 1e-4  # TRL's own, beside a deviation


def rewards_to_go(rewards: Tensor, discount: float = 1.0) -> Tensor:
    """What is still to come at each token, its own reward included: sum over s >= t of discount^(s - t) r_s.

    Args:
        rewards: (..., T), 0 at padding.
        discount: from 0 (a token's own reward) to 1 (all that follow count alike).

    Returns:
        (..., T).
    """
    if discount == 1:
        return rewards.flip(-1).cumsum(-1).flip(-1)
    columns = list(rewards.unbind(-1))
    for place in range(len(columns) - 2, -1, -1):
        columns[place] = columns[place] + discount * columns[place + 1]
    return torch.stack(columns, -1)


def dense_advantages(
    rewards: Tensor, mask: Tensor, per_group: int, baseline: str, scale: str, discount: float = 1.0
) -> Tensor:
    """Advantages of tokens over those of the other replies to the same prompt, at the same position.

    The reward-to-go of a token, less the mean of the rewards-to-go there: of the ``group``, or of its other members
    (``leave-one-out``), a baseline that does not depend on the reply itself, so that the policy gradient stays without
    bias. A member that has ended has nothing more to come: its reward-to-go is 0. With T = 1 these are advantages of
    replies, with ``group`` GRPO's own.

    Args:
        rewards: (N, T) of all processes, the members of a group one after the other.
        mask: (N, T), True at real tokens; a reply without one takes no part.
        per_group: K.
        baseline: one of :data:`BASELINES`.
        scale: one of :data:`SCALES`: divide by the deviation over the real tokens of a group, of all, or not at all.
        discount: of :func:`rewards_to_go`.

    Returns:
        (N, T), float32; 0 at masked positions.

    Raises:
        ValueError: naming the argument with a wrong name, shape or value.
    """
    check_share(discount, "discount")
    check_name(baseline, "baseline", BASELINES)
    check_name(scale, "scale", SCALES)
    check_shape(mask, "mask", rewards.shape)
    if len(rewards) % per_group:
        raise ValueError(f"per_group: {len(rewards)} replies are no groups of {per_group}")
    real = mask.bool().unflatten(0, (-1, per_group))  # (G, K, T)
    paid = rewards.detach().float().masked_fill(~mask.bool(), 0)
    to_go = rewards_to_go(paid, discount).unflatten(0, (-1, per_group)) * real
    count = real.any(-1, keepdim=True).sum(1, keepdim=True)  # (G, 1, 1): members that take part
    centred = (to_go - to_go.sum(1, keepdim=True) / count.clamp(min=1)) * real
    advantages = centred * count / (count - 1).clamp(min=1) if baseline == "leave-one-out" else centred
    if scale != "none":
        over = (1, 2) if scale == "group" else (0, 1, 2)
        deviation = (centred.square().sum(over, keepdim=True) / (real.sum(over, keepdim=True) - 1).clamp(min=1)).sqrt()
        advantages = advantages / (deviation + _TINY)
    return advantages.flatten(0, 1)


class DenseGRPOTrainer(GRPOTrainer):
    """TRL's GRPO, in which every token of a reply has an advantage of its own.

    Everything but the advantages is TRL's: generation, the losses, clipping, KL, accumulation, several processes,
    LoRA. A reply that ``mask_truncated_completions`` masks takes no part, in the others' baseline neither. Without
    ``reward_funcs`` the log's ``reward`` is the mean score of the replies; with them they are logged beside it
    (``dense/score``) and train nothing.

    Args:
        model: the policy, as TRL takes it.
        scorer: where token rewards come from: any object with ``score_tokens(prompt_ids, completion_ids, masks)``;
            one that has ``to(device)`` is moved to the policy's device.
        reading: by token, segment or sequence; None: by token, as they are. By sequence every token of a reply has
            the reply's advantage, which with the baseline ``group`` is plain GRPO.
        baseline: one of :data:`BASELINES`.
        discount: of :func:`rewards_to_go`.
        payment: of :class:`ReplyRewards`. ``reply``: every token has the advantage of its reply's score, as by
            sequence, whatever rewards the score is made of; what credit for tokens adds is what ``increment`` has over
            it.
        entropy_model: of segments: the frozen LM.
        reward_funcs: for the log alone.
        options: the rest of what :class:`trl.GRPOTrainer` takes. ``args.scale_rewards`` holds for the advantages of
            tokens too.

    Raises:
        UserError: see :class:`ReplyRewards`; tools, whose results within a reply nobody has to be paid for.
    """

    model: Any  # TRL says less about these than it means
    num_generations_eval: Any
    _logs: Any

    def __init__(
        self,
        model: Any,
        scorer: TokenScorer,
        *,
        reading: RewardReading | None = None,
        baseline: str = "leave-one-out",
        discount: float = 1.0,
        payment: str = "reward",
        entropy_model: PreTrainedModel | None = None,
        reward_funcs: Any = None,
        **options: Any,
    ) -> None:
        check_name(baseline, "baseline", BASELINES)
        check_share(discount, "discount")
        self.dense_baseline, self.discount = baseline, discount
        self.reply_rewards = ReplyRewards(scorer, reading, entropy_model, payment)
        self.logs_own_score = reward_funcs is None
        if options.get("tools") or options.get("environment_factory"):
            raise UserError("DenseGRPOTrainer takes no tools: their results are tokens that the policy did not choose")
        super().__init__(model, reward_funcs=_score if reward_funcs is None else reward_funcs, **options)
        if hasattr(scorer, "to"):
            scorer.to(self.accelerator.device)
        if entropy_model is not None:
            entropy_model.to(self.accelerator.device).eval()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mask = output["completion_mask"].bool()
        masks = output["prompt_mask"], output["completion_mask"]
        paid = self.reply_rewards(output["prompt_ids"], output["completion_ids"], masks, self.eos_token_ids)
        if self.reply_rewards.payment == "reply" or self.reply_rewards.reading.granularity == "sequence":
            own_rewards, own_mask = paid.rewards.sum(-1, keepdim=True), mask.any(-1, keepdim=True)
        else:
            own_rewards, own_mask = paid.rewards, mask
        # Members of a group may be on other processes, which may have written longer replies.
        rewards, everyones, scores, there = (
            self.accelerator.gather(self.accelerator.pad_across_processes(part, dim=1))
            for part in (own_rewards, own_mask.long(), paid.scores[:, None], mask.any(-1, keepdim=True).long())
        )
        per_group: Any = self.num_generations if self.model.training else self.num_generations_eval
        advantages = dense_advantages(
            rewards, everyones, per_group, self.dense_baseline, self.scale_rewards, self.discount
        )
        first = self.accelerator.process_index * len(mask)
        own = advantages[first : first + len(mask), : own_mask.shape[1]]
        output["advantages"] = own.expand(mask.shape).masked_fill(~mask, 0)
        self._log_scores(scores.squeeze(1), there.squeeze(1).bool(), advantages, per_group)
        return output

    def _log_scores(self, scores: Tensor, there: Tensor, advantages: Tensor, per_group: int) -> None:
        """The scores of all replies in TRL's log, in the place of the function that gave none."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        known = scores[there]
        figures = {"dense/score": known.mean().item() if len(known) else float("nan")}
        figures["dense/score_std"] = known.std().item() if len(known) > 1 else 0.0
        figures["dense/advantage_rms"] = advantages.square().mean().sqrt().item()
        for name, figure in figures.items():
            metrics[name].append(figure)
        if not self.logs_own_score:
            return
        alike = scores.unflatten(0, (-1, per_group)).std(1, correction=0) == 0
        for name, figure in {
            "reward": figures["dense/score"],
            "reward_std": figures["dense/score_std"],
            "rewards/score/mean": figures["dense/score"],
            "rewards/score/std": figures["dense/score_std"],
            "frac_reward_zero_std": alike.float().mean().item(),
        }.items():
            metrics[name][-1] = figure
        for column, values in (
            (self._logs["rewards"]["score"], scores.tolist()),
            (self._logs["advantages"], advantages.sum(-1).tolist()),
        ):
            for _ in values:
                column.pop()
            column.extend(values)


def _score(prompts: list[Any], **_: Any) -> list[float | None]:
    """Holds a place in TRL's log, see `DenseGRPOTrainer._log_scores`."""
    return [0.0] * len(prompts)


_score.__name__ = "score"  # what TRL calls it there
