"""The true rewards of tokens, where data that ship with the project say what is wrong in any reply."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from common.builtin.planted_errors import KnownErrors
from common.language_models.token_carry import token_spans
from common.reply_rewards import Masks, Paid, ReplyRewards


class KnownRewards(ReplyRewards):
    """Minus the changes that a reply needs, each at the last token of the word where it shows.

    What is missing at the end is paid at the end token, which leaves it out: rewards that are read pay that token
    nothing, so that under rewards below zero to end is always better than to go on.

    Args:
        known: what is wrong in a reply.
        tokenizer: of the policy.
        payment: as of :class:`ReplyRewards`; of a score that is a sum of rewards they are the increments.
    """

    def __init__(self, known: KnownErrors, tokenizer: Any, payment: str = "reward") -> None:
        super().__init__(self, payment=payment)
        self._known, self._tokenizer = known, tokenizer

    def __call__(
        self, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks, end_token_ids: Collection[int]
    ) -> Paid:
        """See there; the score of a reply is the sum of its rewards.

        Raises:
            UserError: a prompt without a report that is built in.
        """
        rewards = self.score_tokens(prompt_ids, completion_ids, masks)
        return Paid(rewards, rewards.sum(-1))

    def score_tokens(self, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks) -> Tensor:
        """See :meth:`common.reply_rewards.TokenScorer.score_tokens`."""
        rewards = torch.zeros(completion_ids.shape)
        prompt_mask, mask = (part.bool() for part in masks)
        for row, (prompt, ids) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
            reply = ids[mask[row]].tolist()
            text, spans = token_spans(self._tokenizer, reply)
            prompt_text = self._tokenizer.decode(prompt[prompt_mask[row]], skip_special_tokens=True)
            for (start, stop), count in self._known.edits(prompt_text, text) if reply else ():
                inside = [place for place, (begin, end) in enumerate(spans) if begin < stop and start < end]
                rewards[row, inside[-1] if inside else len(reply) - 1] -= count
        return rewards.to(completion_ids.device)
