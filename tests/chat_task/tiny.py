"""A tiny reward model and preferences in which good words are good."""

import random
from typing import Any

import torch
from transformers import LlamaConfig, T5Config

from chat_task.ranking_rows import RankingSet
from common.language_models.replies import ReplyFormat
from common.token_reward_model import TokenRewardConfig, TokenRewardModel
from tests.sum_task.tiny import word_tokenizer

GOOD, BAD = ["town", "city", "river"], ["storm", "flood", "fire"]


def ranking_sets(count: int, sizes: tuple[int, ...] = (2, 3, 4), seed: int = 0) -> list[RankingSet]:
    """Replies of good words, which the score counts, and bad ones, whose characters are known."""
    draw, sets = random.Random(seed), []
    for number in range(count):
        replies: dict[str, Any] = {}
        while len(replies) < sizes[number % len(sizes)]:
            words = draw.choices(GOOD + BAD, k=draw.randint(2, 5))
            text = " ".join(words)
            starts = [len(" ".join(words[:i])) + (i > 0) for i in range(len(words))]
            wrong = tuple((s, s + len(w)) for s, w in zip(starts, words, strict=True) if w in BAD)
            replies[text] = (float(len(words) - len(wrong)), wrong)
        scores, spans = zip(*replies.values(), strict=True)
        prompt = " ".join(draw.choices(["the", "a", "in", "on"], k=draw.randint(1, 4)))
        sets.append(RankingSet(prompt, tuple(replies), scores, spans=spans, where=f"row {number + 1}"))
    return sets


def reward_model(kind: str = "llama", seed: int = 0, **fields: Any) -> TokenRewardModel:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "llama": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None},
        "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0,
               "dropout_rate": 0.0},
    }  # fmt: skip
    config: Any = {"llama": LlamaConfig, "t5": T5Config}[kind]
    backbone = config(vocab_size=len(word_tokenizer()), **sizes[kind])
    fields = {"head_hidden_size": 16, "head_init_gain": 1.0} | fields
    return TokenRewardModel(TokenRewardConfig(backbone=backbone.to_dict(), **fields))


def reply_format(model: TokenRewardModel, **options: Any) -> ReplyFormat:
    return ReplyFormat(word_tokenizer(), model.is_encoder_decoder, **options)
