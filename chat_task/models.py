"""The reward model of a run: backbone, head, adapters, tokens and where its rewards are read."""

from pathlib import Path

from transformers import AutoTokenizer

from chat_task.settings import ChatSettings
from common.data_files import read_text
from common.errors import UserError
from common.language_models.adapters import add_adapters
from common.language_models.capabilities import position_limits
from common.language_models.pretrained import enable_checkpointing, load_tokenizer
from common.language_models.replies import ReplyFormat
from common.reply_rewards import RewardReading
from common.token_reward_model import TokenRewardModel


def load_reward_model(settings: ChatSettings) -> tuple[TokenRewardModel, ReplyFormat, RewardReading]:
    """What the settings ask for; the head is drawn from torch's global generator unless rew_checkpoint_path is given.

    Raises:
        UserError: it cannot be loaded, or cannot read as many tokens as a prompt and a reply may have.
    """
    if settings.rew_checkpoint_path is not None:
        source = settings.rew_checkpoint_path
        model = TokenRewardModel.from_pretrained(source)
    else:
        source = settings.model_name_or_path
        model = TokenRewardModel.from_backbone(
            source, settings.bound, settings.head_hidden_size, settings.head_init_gain, head=settings.rew_head
        )
    model.config.trained_on = {
        "task": "chat", "dataset": settings.dataset_name or settings.train_file, "granularity": settings.granularity,
        "agg_func": settings.agg_func,
    }  # fmt: skip
    tokenizer = load_tokenizer(AutoTokenizer, source)
    if settings.chat_template is not None:
        tokenizer.chat_template = read_text(Path(settings.chat_template).expanduser())
    reply_format = ReplyFormat(
        tokenizer, model.is_encoder_decoder, settings.prompt_template, settings.max_prompt_length,
        settings.max_reply_length,
    )  # fmt: skip
    _check_positions(model, settings)
    add_adapters(model.backbone, settings.lora_rank, settings.lora_alpha)
    if settings.gradient_checkpointing:
        enable_checkpointing(model.backbone)
    by_segment = settings.granularity == "segment"
    reading = RewardReading(
        settings.granularity,
        settings.segment_cut if by_segment else None,
        settings.reference_model if by_segment else None,
    )
    return model, reply_format, reading


def _check_positions(model: TokenRewardModel, settings: ChatSettings) -> None:
    sources, targets = position_limits(model.backbone)
    reads = settings.max_prompt_length + (0 if model.is_encoder_decoder else settings.max_reply_length)
    for name, limit, needed in (
        ("max_prompt_length", sources, reads),
        ("max_reply_length", targets, settings.max_reply_length + 1 if model.is_encoder_decoder else 0),
    ):
        if limit is not None and needed > limit:
            raise UserError(
                f"{name}: the backbone reads at most {limit} tokens, not the {needed} of "
                f"max_prompt_length={settings.max_prompt_length} and max_reply_length={settings.max_reply_length}"
            )
