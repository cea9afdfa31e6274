"""The reward model's loss: token rewards of ranked summaries, aggregated to scores, against their ranking.

What is logged of it stays on the device, where the optimizer step or the validation fetches it at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.aggregation import aggregate_token_rewards
from common.grounding_loss import list_mle_loss
from common.training.engine import Engine
from common.training.ranking_figures import RankingFigures
from common.transfers import upload
from sum_task.ranked_summaries import RankedSummaries
from sum_task.reward_model import SummaryRewardModel
from sum_task.settings import RewardSettings


@dataclass
class Scored:
    """What the reward model says of ranked summaries; tensors on its device.

    Attributes:
        tensors: loss (), scores (B, K), token rewards (N, T).
        mask: (N, T), the real tokens among the latter, on the CPU.
        ranked: the summaries.
    """

    tensors: tuple[Tensor, Tensor, Tensor]
    mask: Tensor
    ranked: RankedSummaries


class RewardLoss:
    """ListMLE, the mean over the ranking sets of a batch, and the test of its references' swapped tokens."""

    def __init__(self, reward: SummaryRewardModel, settings: RewardSettings, engine: Engine):
        self.reward = reward
        self.settings = settings
        self.engine = engine

    def __call__(self, ranked: RankedSummaries) -> Scored:
        """The loss, and what it is made of."""
        settings, (sets, per_source) = self.settings, ranked.preferences.shape
        with self.engine.autocast():
            rewards, own = self.reward.own_rewards(ranked.batch, ranked.summaries)
        per_set = (sets, per_source, -1)
        scores = aggregate_token_rewards(
            rewards.view(per_set), own.mask.view(per_set), settings.agg_func, settings.soft_maxmin_temp
        )
        loss = list_mle_loss(scores, upload(ranked.ranks, scores.device))
        return Scored((loss, scores, rewards), own.known, ranked)

    def figures(self, scored: Sequence[Scored], fetched: Sequence[Tensor]) -> RankingFigures:
        """The sums for the log, of tensors `fetched` to the CPU."""
        sums, bound = RankingFigures(), self.reward.model.config.bound
        for number, part in enumerate(scored):
            loss, scores, rewards = fetched[3 * number : 3 * number + 3]
            figures = RankingFigures.of(loss, scores, rewards, part.mask, part.ranked.preferences, bound)
            figures.sampled_tokens = float(part.ranked.summaries.count)
            sums += figures
        return sums

    def swaps_seen(self, ranked: RankedSummaries) -> Tensor | None:
        """Whether the right token has the higher reward, (B,): 1 or 0, one half for equal ones. None without swaps."""
        swaps = ranked.swaps
        if swaps is None:
            return None
        with self.engine.autocast():
            rewards = self.reward.policy_rewards(ranked.batch, swaps.summaries)
        pairs = rewards.unflatten(0, (-1, 2))  # (B, 2, T)
        rows = torch.arange(len(pairs), device=rewards.device)
        right, swapped = pairs[rows, :, swaps.places].unbind(1)
        return ((right - swapped).sign() + 1) / 2
