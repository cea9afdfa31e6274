"""What a policy writes to held-out prompts, and what it is paid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from chat_task.judges import Judge
from common.language_models.evaluation_mode import evaluation_mode
from common.reply_rewards import ReplyRewards, prompt_tokens
from common.training.progress import progress


@dataclass(frozen=True)
class Replies:
    """The most likely replies of a policy to some prompts, and what they are paid.

    Attributes:
        texts, tokens: of each reply, without special tokens; and its tokens one by one.
        rewards: of those tokens.
        scores: of each reply.
        judged: what the judge gives it, where there is one.
    """

    texts: list[str]
    tokens: list[list[str]]
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
    tokens, paid_tokens, texts, scores, all_ids = [], [], [], [], []
    with evaluation_mode(model):
        for start in progress(range(0, len(prompts), batch_size), "likeliest replies", "batch"):
            prompt_ids, prompt_mask = (
                part.to(device) for part in prompt_tokens(tokenizer, prompts[start : start + batch_size])
            )
            whole = model.generate(
                input_ids=prompt_ids, attention_mask=prompt_mask, do_sample=False, eos_token_id=list(end_token_ids),
                max_new_tokens=max_reply_length, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            ids = whole[:, prompt_ids.shape[1] :]
            ended = torch.isin(ids, torch.tensor(list(end_token_ids), device=device)).long()
            mask = (ended.cumsum(-1) - ended == 0).long()  # up to the first end token, with it
            paid = rewards(prompt_ids, ids, (prompt_mask, mask), end_token_ids)
            scores += paid.scores.tolist()
            for row_ids, row_rewards, row_mask in zip(ids, paid.rewards, mask.bool(), strict=True):
                reply = row_ids[row_mask].tolist()
                all_ids.append(reply)
                tokens.append([tokenizer.decode([token]) for token in reply])
                paid_tokens.append(row_rewards[row_mask].tolist())
                texts.append(tokenizer.decode(reply, skip_special_tokens=True))
    judged = None if judge is None else [float(value) for value in judge(prompts, texts, all_ids)]
    return Replies(texts, tokens, paid_tokens, scores, judged)
