"""Who judges a policy's replies beside what they are paid: the true score, or a reward model of other preferences."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from chat_task.data import BUILTIN_DATA
from chat_task.settings import ChatSettings
from common.builtin.planted_errors import KnownErrors, known_errors
from common.errors import UserError
from common.language_models.replies import end_token_ids
from common.language_models.text_scores import load_entropy_model
from common.reply_rewards import RewardReading, TokenRewardScorer, scalar_reward

Judge = Callable[[Sequence[Any], Sequence[str], Sequence[Sequence[int]]], Sequence[float]]
"""Scores of replies (prompts, texts, token ids of the policy with the end token), for figures alone."""


def builtin_errors(settings: ChatSettings) -> KnownErrors:
    """What is wrong in any reply to the built-in data that is asked for."""
    return known_errors(sentences=BUILTIN_DATA[str(settings.data.dataset_name)])


def load_judge(
    settings: ChatSettings, policy: Any, policy_tokenizer: Any, prompts: Sequence[Any], device: torch.device
) -> Judge | None:
    """The judge that the settings name: of built-in data always the true score. None: nobody judges.

    Args:
        settings: of the run.
        policy, policy_tokenizer: whose replies are judged.
        prompts: some, of which the first one is tried out.
        device: where a reward model computes.

    Raises:
        UserError: judge_checkpoint_path is no reward model, or none that reads the policy's tokens or prompts.
    """
    if settings.data.dataset_name in BUILTIN_DATA:
        known = builtin_errors(settings)
        return lambda prompts, texts, _: [known.score(*pair) for pair in zip(prompts, texts, strict=True)]
    folder = settings.policy.judge_checkpoint_path
    if folder is None:
        return None
    ends = end_token_ids(policy.generation_config, policy_tokenizer)
    try:
        return reward_model_judge(folder, policy_tokenizer, ends, prompts[0], device)
    except UserError as error:
        raise UserError(f"judge_checkpoint_path: {error}") from None


def reward_model_judge(
    folder: str, policy_tokenizer: Any, ends: Collection[int], prompt: Any, device: torch.device
) -> Judge:
    """A saved reward model of replies as a judge: its score of a whole reply, as its own reading means it.

    Args:
        folder: of the reward model.
        policy_tokenizer: whose tokens are judged; pads on the left.
        ends: tokens that end a reply.
        prompt: one, which is tried out.
        device: where it computes.

    Raises:
        UserError: the folder is no reward model, or none that reads these tokens or prompts.
    """
    reading = RewardReading.load(folder)
    scorer = TokenRewardScorer.from_pretrained(folder, policy_tokenizer).to(device)
    surprised: Any = load_entropy_model(reading, scorer.model.is_encoder_decoder)
    if surprised is not None:
        surprised.to(device)
    score = scalar_reward(scorer, policy_tokenizer, reading, surprised, sorted(ends))
    score([prompt], [policy_tokenizer("a")["input_ids"]])
    return lambda prompts, _, ids: [float(value or 0) for value in score(list(prompts), [list(row) for row in ids])]
