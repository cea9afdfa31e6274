"""Token rewards of replies as they are written: text or messages in, tokens with characters and rewards out."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from common.errors import UserError
from common.language_models.evaluation_mode import evaluation_mode
from common.language_models.pretrained import load_pretrained
from common.language_models.replies import ReplyFormat, Text
from common.language_models.token_carry import Span
from common.reply_rewards import READING_FILE, RewardReading, padded
from common.reply_surprise import reply_entropies
from common.segments import score_increments, segment_ends, spread_segments
from common.token_reward_model import TokenRewardModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredText:
    """A reply in a reward model's tokens.

    Attributes:
        tokens: what each token adds to the text; the end token as it is called.
        offsets: characters (start, end) of the text that each holds; those of an end token lie behind the text.
        rewards: one for each token; nan (null in JSON) at an end token that belongs to no segment.
        score: of the whole reply: the mean of the rewards that are read.
    """

    tokens: list[str]
    offsets: list[Span]
    rewards: list[float]
    score: float


@torch.no_grad()
def score_texts(
    model: TokenRewardModel,
    texts: Sequence[Text],
    sources: Sequence[Text] | None = None,
    *,
    spread: str = "repeat",
    normalized: bool = False,
    batch_size: int = 16,
) -> list[ScoredText]:
    """Rewards of replies as they are written; start tokens, templates and limits are the saved model's own business.

    Args:
        model: loaded by ``from_pretrained`` from a folder with a tokenizer; its reading says where rewards are read.
        texts: replies, text or messages.
        sources: their prompts; none where not given.
        spread: how a segment's reward is shown at its tokens, see :func:`common.segments.spread_segments`.
        normalized: by the fitted normaliser of the reading.
        batch_size: replies that are read at once.

    Raises:
        UserError: the folder has no tokenizer; or see :class:`ReplyFormat`.
        ValueError: ``sources`` of another number; ``normalized`` without a fitted normaliser.
    """
    sources = [""] * len(texts) if sources is None else sources
    if len(sources) != len(texts):
        raise ValueError(f"sources: {len(sources)} of them for {len(texts)} texts")
    folder = model.name_or_path
    if not folder:
        raise UserError("texts need a tokenizer: save the reward model with its own, and load that folder")
    reply_format = ReplyFormat.load(folder, model.is_encoder_decoder)
    reading = RewardReading.load(folder)
    reads_ends = not Path(folder, READING_FILE).is_file()  # trained on summaries or prompts, whose every token counts
    if normalized and reading.normalizer is None:
        raise ValueError("normalized: the reward model has no fitted normaliser")
    entropy_model = load_entropy_model(reading, model.is_encoder_decoder, model.device)
    scored: list[ScoredText] = []
    cut = 0
    with evaluation_mode(model):
        for first in range(0, len(texts), batch_size):
            rows = range(first, min(first + batch_size, len(texts)))
            replies = [reply_format.encode_reply(sources[i], texts[i], with_spans=True) for i in rows]
            prompts = [reply_format.encode_prompt(sources[i]) for i in rows]
            cut += sum(reply.cut or prompt[1] for reply, prompt in zip(replies, prompts, strict=True))
            prompt_ids, prompt_mask = padded([prompt[0] for prompt in prompts], model.device)
            ids, mask = padded([reply.ids for reply in replies], model.device)
            raw = model.reply_rewards(prompt_ids, prompt_mask, ids.unsqueeze(1), mask.unsqueeze(1).bool()).squeeze(1)
            entropies = None
            if entropy_model is not None:
                entropies = reply_entropies(entropy_model, prompt_ids, ids, (prompt_mask, mask))
            unread = [len(reply.ids) - 1 if reply.has_end and not reads_ends else -1 for reply in replies]
            last = torch.tensor(unread, device=ids.device)
            is_end = torch.arange(ids.shape[1], device=ids.device) == last.unsqueeze(1)
            ends = segment_ends(reading.granularity, mask, is_end, entropies, reading.cut)
            scores = score_increments(raw, ends, reading.score).sum(-1)
            if normalized and reading.normalizer is not None:
                raw = reading.normalizer(raw, ends)
            shown = spread_segments(raw, ends, mask.bool(), spread, outside=math.nan)
            for reply, rewards, score in zip(replies, shown.tolist(), scores.tolist(), strict=True):
                tokens = [reply_format.tokenizer.decode([token]) for token in reply.ids]
                scored.append(ScoredText(tokens, list(reply.spans), rewards[: len(reply.ids)], score))
    if cut:
        logger.warning(
            "texts that were cut: %d of %d; a reply of this model ends after %d tokens, a prompt begins %d before it",
            cut, len(texts), reply_format.max_reply_length, reply_format.max_prompt_length,
        )  # fmt: skip
    return scored


def load_entropy_model(
    reading: RewardReading, is_encoder_decoder: bool, device: torch.device | str = "cpu"
) -> PreTrainedModel | None:
    """The frozen LM whose surprise ends segments; None where rewards are read otherwise.

    Raises:
        UserError: it cannot be loaded, or the reading names none.
    """
    if reading.granularity != "segment":
        return None
    if reading.entropy_model is None:
        raise UserError("granularity 'segment' needs entropy_model, the frozen LM whose surprise ends a segment")
    return load_lm(reading.entropy_model, is_encoder_decoder, device)


def load_lm(name: str, is_encoder_decoder: bool, device: torch.device | str = "cpu") -> PreTrainedModel:
    """A pretrained LM with its head, in evaluation mode.

    Raises:
        UserError: it cannot be loaded, or has no LM head.
    """
    auto_class = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
    model: PreTrainedModel = load_pretrained(auto_class, name, complete=True, dtype=torch.float32)
    return model.eval().to(device)
