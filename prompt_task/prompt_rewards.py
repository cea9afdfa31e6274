"""What a reward model says of prompts: of their tokens, and of whole ones to choose among them."""

import torch

from common.aggregation import aggregate_token_rewards
from common.token_reward_model import TokenRewardModel
from common.training.settings import ScoreSettings
from common.transfers import upload

PROMPTS_AT_ONCE = 256  # that the reward model reads where many are asked for


def prompt_token_rewards(model: TokenRewardModel, source_ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Token rewards (N, T) of prompts (N, T) that follow the source text (S,). Equal prompts are computed once."""
    distinct, row = torch.unique(tokens, dim=0, return_inverse=True)
    device = source_ids.device
    source = source_ids.expand(len(distinct), -1)
    rewards = model(torch.cat([source, upload(distinct, device)], 1), targets_from=source.shape[1])  # (U, S + T)
    return rewards[:, source.shape[1] :][upload(row, device)]


@torch.no_grad()
def learned_scores(
    model: TokenRewardModel, source_ids: torch.Tensor, prompts: torch.Tensor, settings: ScoreSettings
) -> torch.Tensor:
    """Scores (N,) of different prompts (N, T), their token rewards aggregated as in reward learning."""
    parts = [prompt_token_rewards(model, source_ids, part) for part in prompts.split(PROMPTS_AT_ONCE)]
    rewards = torch.cat(parts).unsqueeze(0)
    mask = torch.ones_like(rewards, dtype=torch.bool)
    return aggregate_token_rewards(rewards, mask, settings.agg_func, settings.soft_maxmin_temp)[0]


def highest(prompts: torch.Tensor, scores: torch.Tensor, count: int) -> torch.Tensor:
    """The prompts (M, T), M at most `count`, of (N, T) that have the highest of the scores (N,), best first."""
    return prompts[scores.topk(min(count, len(prompts))).indices.cpu()]
