"""The reward model of a run: backbone, head, adapters, tokens and where its rewards are read."""

from pathlib import Path

from transformers import AutoTokenizer

from chat_task.settings import ModelSettings, TextSettings
from common.data_files import read_text
from common.errors import UserError
from common.language_models.adapters import add_adapters
from common.language_models.capabilities import position_limits
from common.language_models.pretrained import enable_checkpointing, load_tokenizer
from common.language_models.replies import ReplyFormat
from common.reply_rewards import RewardReading
from common.token_reward_model import TokenRewardModel


def load_reward_model(models: ModelSettings, text: TextSettings) -> tuple[TokenRewardModel, ReplyFormat, RewardReading]:
    """What the options ask for; the head is drawn from torch's global generator unless rew_checkpoint_path is given.

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
    _check_positions(model, text)
    add_adapters(model.backbone, models.lora_rank, models.lora_alpha)
    if models.gradient_checkpointing:
        enable_checkpointing(model.backbone)
    by_segment = models.granularity == "segment"
    reading = RewardReading(
        models.granularity,
        models.segment_cut if by_segment else None,
        models.reference_model if by_segment else None,
    )
    return model, reply_format, reading


def _check_positions(model: TokenRewardModel, text: TextSettings) -> None:
    sources, targets = position_limits(model.backbone)
    reads = text.max_prompt_length + (0 if model.is_encoder_decoder else text.max_reply_length)
    for name, limit, needed in (
        ("max_prompt_length", sources, reads),
        ("max_reply_length", targets, text.max_reply_length + 1 if model.is_encoder_decoder else 0),
    ):
        if limit is not None and needed > limit:
            raise UserError(
                f"{name}: the backbone reads at most {limit} tokens, not the {needed} of "
                f"max_prompt_length={text.max_prompt_length} and max_reply_length={text.max_reply_length}"
            )
