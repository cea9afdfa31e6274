"""The models of a run: reward model and where its rewards are read, policy, and what it is paid by."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from chat_task.ranked_sets import EncodedSet, collate
from chat_task.settings import ChatSettings, ModelSettings, TextSettings
from common.errors import UserError
from common.language_models.adapters import add_adapters, check_rank
from common.language_models.capabilities import position_limits
from common.language_models.evaluation_mode import evaluation_mode
from common.language_models.pretrained import enable_checkpointing, load_pretrained, load_tokenizer
from common.language_models.replies import ReplyFormat
from common.language_models.text_scores import load_entropy_model
from common.language_models.upper_layers import train_upper_layers
from common.reply_rewards import ReplyRewards, RewardReading, TokenRewardScorer, same_tokens
from common.token_reward_model import TokenRewardModel
from common.training.data_files import read_text


def load_reward_model(
    models: ModelSettings, text: TextSettings, agg_func: str
) -> tuple[TokenRewardModel, ReplyFormat, RewardReading]:
    """What the options ask for; the head is drawn from torch's global generator unless rew_checkpoint_path is given.

    The score by which replies are paid and logged is the sum of rewards where they learn by ``sum``, else their mean,
    also where a reward model learns by ``max``, ``min`` or a function of the user's.

    Raises:
        UserError: it cannot be loaded, or cannot read as many tokens as a prompt and a reply may have.
    """
    if models.rew_checkpoint_path is not None:
        source = models.rew_checkpoint_path
        model = TokenRewardModel.from_pretrained(source)
    else:
        source = models.model_name_or_path
        model = TokenRewardModel.from_backbone(
            source, models.bound, models.head_hidden_size, models.head_init_gain, head=models.rew_head
        )
    tokenizer = load_tokenizer(AutoTokenizer, source)
    if text.chat_template is not None:
        tokenizer.chat_template = read_text(Path(text.chat_template).expanduser())
    reply_format = ReplyFormat(
        tokenizer, model.is_encoder_decoder, text.prompt_template, text.max_prompt_length,
        text.max_reply_length,
    )  # fmt: skip
    check_positions(model.backbone, model.is_encoder_decoder, text.max_prompt_length, text.max_reply_length)
    add_adapters(model.backbone, models.lora_rank, models.lora_alpha)
    train_upper_layers(model.backbone, models.trained_layers)
    if models.gradient_checkpointing:
        enable_checkpointing(model.backbone)
    by_segment = models.granularity == "segment"
    reading = RewardReading(
        models.granularity,
        models.segment_cut if by_segment else None,
        models.reference_model if by_segment else None,
        score="sum" if agg_func == "sum" else "mean",
    )
    return model, reply_format, reading


def check_positions(model: PreTrainedModel, is_encoder_decoder: bool, prompt_length: int, reply_length: int) -> None:
    """Refuse prompts and replies of more tokens than a model has positions for.

    Raises:
        UserError: naming the option, or flag, with the length that is too large.
    """
    sources, targets = position_limits(model)
    reads = prompt_length + (0 if is_encoder_decoder else reply_length)
    for name, limit, needed in (
        ("max_prompt_length", sources, reads),
        ("max_reply_length", targets, reply_length + 1 if is_encoder_decoder else 0),
    ):
        if limit is not None and needed > limit:
            raise UserError(
                f"{name}: the backbone reads at most {limit} tokens, not the {needed} of prompts of {prompt_length} "
                f"and replies of {reply_length}"
            )


@torch.no_grad()
def check_head(model: TokenRewardModel, sets: Sequence[EncodedSet]) -> None:
    """Refuse a head ``after`` none of whose units reacts: all rewards would be equal, and without a gradient stay so.

    The units start at minus head_init_gain, and the wider the head for its backbone, the smaller are the weights by
    which states would have to reach beyond that.

    Raises:
        UserError: it is so on these ranking sets.
    """
    if model.config.head != "after":
        return
    units: Any = model.head
    reacting: list[bool] = []
    handle = units[1].register_forward_hook(lambda _, given, output: reacting.append(bool(output.any())))
    names = ("prompt_ids", "prompt_mask", "reply_ids", "reply_mask")
    with evaluation_mode(model):
        for item in sets:
            batch = collate([item])
            model(replies={name: batch[name].to(model.device) for name in names})
    handle.remove()
    if not any(reacting):
        width = units[0].in_features
        raise UserError(
            f"head_hidden_size: none of the head's {units[0].out_features} units reacts to the states of the backbone, "
            f"which are {width} wide, so that all rewards would stay equal; choose fewer, such as {4 * width}, or "
            "another rew_head"
        )


def load_policy(settings: ChatSettings) -> tuple[Any, Any]:
    """The policy to train and its tokenizer, with the chat template of the settings.

    Raises:
        UserError: it cannot be loaded, is no decoder-only language model or has no weights of the adapters' rank;
            rewards that are read by segment or sequence, which a model of other tokens cannot be paid by.
    """
    tokenizer = load_tokenizer(AutoTokenizer, settings.policy_model)
    config = load_pretrained(AutoConfig, settings.policy_model)
    if config.is_encoder_decoder:
        raise UserError(
            f"policy_model_name_or_path: '{settings.policy_model}' is an encoder-decoder, of which TRL trains none; "
            "choose a decoder-only language model"
        )
    if settings.policy.paid_by == "learned" and settings.models.granularity != "token":
        source = settings.models.rew_checkpoint_path or settings.models.model_name_or_path
        if not same_tokens(load_tokenizer(AutoTokenizer, source), tokenizer):
            raise UserError(
                f"granularity={settings.models.granularity}: '{source}' has other tokens than the policy "
                f"'{settings.policy_model}'; granularity=token carries rewards over"
            )
    if settings.text.chat_template is not None:
        tokenizer.chat_template = read_text(Path(settings.text.chat_template).expanduser())
    model = load_pretrained(AutoModelForCausalLM, settings.policy_model, complete=True, dtype=torch.float32)
    check_rank("policy_lora_rank", settings.policy.policy_lora_rank, model)
    return model, tokenizer


def load_rewards(folder: str | Path, granularity: str, policy_tokenizer: Any, payment: str = "reward") -> ReplyRewards:
    """A saved reward model as what replies are paid by.

    Args:
        folder: of the reward model; its reading lies beside it.
        granularity: what the run asks for; that of the reward model has to be the same.
        policy_tokenizer: the policy's.
        payment: as of :class:`ReplyRewards`.

    Raises:
        UserError: it cannot be loaded, has another granularity, or its normaliser was never fitted.
    """
    check_reading(folder, granularity)
    reading = RewardReading.load(folder)
    scorer = TokenRewardScorer.from_pretrained(str(folder), policy_tokenizer)
    return ReplyRewards(scorer, reading, load_entropy_model(reading, scorer.model.is_encoder_decoder), payment)


def check_reading(folder: str | Path, granularity: str) -> None:
    """Refuse a reward model that is read otherwise than asked for, or whose normaliser was never fitted.

    Raises:
        UserError: it is.
    """
    reading = RewardReading.load(folder)
    if reading.granularity != granularity:
        raise UserError(f"granularity: the reward model '{folder}' is read by {reading.granularity}, not {granularity}")
    if reading.normalizer is None:
        raise UserError(f"the reward model '{folder}' has no fitted normaliser; train it again, or see fit_reading")
