"""What a language model writes to prompts; of a policy also what it is paid for that."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig

from chat_task.judges import Judge
from common.language_models.evaluation_mode import evaluation_mode
from common.language_models.replies import Text
from common.reply_rewards import ReplyRewards, padded, prompt_tokens
from common.training.files import write_jsonl_atomic
from common.training.progress import progress


@torch.no_grad()
def generate_replies(
    model: Any,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    end_token_ids: Collection[int],
    max_reply_length: int,
    samples: int | None = None,
    temperature: float = 1.0,
) -> list[list[int]]:
    """Replies to prompts, up to their first end token and with it.

    What the model's own generation_config asks for, such as beams or a penalty, is left out: the replies are those of
    the policy as it is trained.

    Args:
        model: an LM, decoder-only or encoder-decoder, in evaluation mode.
        prompt_ids, prompt_mask: (B, P), padded on the left for a decoder-only LM.
        end_token_ids: tokens that end a reply.
        max_reply_length: in tokens, the end token included.
        samples: replies that are sampled to each prompt from the whole vocabulary, with torch's global generator; None:
            the likeliest token at each place, one reply.
        temperature: of the samples.

    Returns:
        Token ids of B x samples replies, those of a prompt one after the other.
    """
    # Adapters hand their own on to the model that they are around.
    holders = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    kept, ends = [holder.generation_config for holder in holders], sorted(end_token_ids)
    own = kept[0]
    pad = next((i for i in (own.pad_token_id, *ends) if i is not None), 0)
    starts = {
        name: getattr(own, name, None) for name in ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id")
    }
    sampling: dict[str, Any] = {"do_sample": False}
    if samples is not None:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "num_return_sequences": samples}
    model.generation_config = GenerationConfig(**starts, eos_token_id=ends or None, pad_token_id=pad)
    try:
        whole: Tensor = model.generate(
            input_ids=prompt_ids, attention_mask=prompt_mask, max_new_tokens=max_reply_length, **sampling
        )
    finally:
        for holder, config in zip(holders, kept, strict=True):
            holder.generation_config = config
    written = whole[:, 1:] if model.config.is_encoder_decoder else whole[:, prompt_ids.shape[1] :]
    found = []
    for row in written.tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        found.append(row[: end + 1])
    return found


@dataclass(frozen=True)
class Replies:
    """The most likely replies of a policy to some prompts, and what they are paid.

    Attributes:
        texts, tokens: of each reply, without special tokens; and its tokens one by one.
        ids: the policy's token ids of each reply, its end token among them.
        rewards: of those tokens.
        scores: of each reply.
        judged: what the judge gives it, where there is one.
    """

    texts: list[str]
    tokens: list[list[str]]
    ids: list[list[int]]
    rewards: list[list[float]]
    scores: list[float]
    judged: list[float] | None

    def figures(self) -> dict[str, float]:
        """Means over the replies."""
        figures = {
            "score": sum(self.scores) / len(self.scores),
            "reply_length": sum(map(len, self.tokens)) / len(self.tokens),
        }
        return figures if self.judged is None else figures | {"judge": sum(self.judged) / len(self.judged)}

    def columns(self, number: int) -> dict[str, Any]:
        """One reply as ``predictions.jsonl`` has it."""
        columns = {"prediction": self.texts[number], "ids": self.ids[number], "score": self.scores[number]}
        return columns if self.judged is None else columns | {"judge": self.judged[number]}


class PolicyPrompt(NamedTuple):
    """A prompt of ranking sets: as it stands there, and as a policy reads it, which is in its template."""

    source: Text
    read: Text


def write_predictions(path: Path, prompts: Sequence[PolicyPrompt], before: Replies, after: Replies) -> None:
    """Write ``predictions.jsonl``: a line for each held-out prompt, both replies to it."""
    rows = []
    for number, prompt in enumerate(prompts):
        earlier = {f"{key}_before": cell for key, cell in before.columns(number).items()}
        rows.append({"prompt": prompt.source, "prompt_read": prompt.read} | after.columns(number) | earlier)
    write_jsonl_atomic(path, rows)


@torch.no_grad()
def write_replies(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    rewards: ReplyRewards,
    end_token_ids: Sequence[int],
    max_reply_length: int,
    batch_size: int,
    judge: Judge | None = None,
) -> Replies:
    """The most likely replies to prompts.

    Args:
        model, tokenizer: the policy; its tokenizer pads on the left.
        prompts: texts or messages.
        rewards: what replies are paid by.
        end_token_ids: tokens that end a reply.
        max_reply_length: in tokens, the end token included.
        batch_size: replies that are written at once.
        judge: see `Judge`.
    """
    device = model.device
    tokens, paid_tokens, texts, scores = [], [], [], []
    all_ids: list[list[int]] = []
    with evaluation_mode(model):
        for start in progress(range(0, len(prompts), batch_size), "likeliest replies", "batch"):
            prompt_ids, prompt_mask = (
                part.to(device) for part in prompt_tokens(tokenizer, prompts[start : start + batch_size])
            )
            replies = generate_replies(model, prompt_ids, prompt_mask, end_token_ids, max_reply_length)
            ids, mask = padded(replies, device)
            paid = rewards(prompt_ids, ids, (prompt_mask, mask), end_token_ids)
            scores += paid.scores.tolist()
            for reply, row_rewards in zip(replies, paid.rewards.tolist(), strict=True):
                tokens.append([tokenizer.decode([token]) for token in reply])
                paid_tokens.append(row_rewards[: len(reply)])
                texts.append(tokenizer.decode(reply, skip_special_tokens=True))
            all_ids += replies
    judged = None if judge is None else [float(value) for value in judge(prompts, texts, all_ids)]
    return Replies(texts, tokens, all_ids, paid_tokens, scores, judged)
