"""What a frozen language model expects of replies: entropies and log-probabilities of their tokens."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.likelihood_head import chosen_log_probabilities
from common.segments import next_token_entropies
from common.token_reward_model import with_start_token

Masks = tuple[Tensor, Tensor]


def reply_entropies(
    model: PreTrainedModel, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks, batch_size: int = 16
) -> Tensor:
    """How uncertain an LM is after each token of replies: entropies of the next token in nats, (B, T); 0 at padding.

    Args:
        model: the frozen LM.
        prompt_ids, completion_ids: (B, P), padded on the left, and (B, T), padded on the right.
        masks: of both, 1 at real tokens.
        batch_size: replies that are read at once.
    """

    def entropies(logits: Tensor, ids: Tensor) -> Tensor:
        return next_token_entropies(logits)

    return _of_reply_tokens(entropies, model, prompt_ids, completion_ids, masks, batch_size)


def reply_entropies_before(
    model: PreTrainedModel, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks, batch_size: int = 16
) -> Tensor:
    """How uncertain an LM is of each token of replies before it has read it, (B, T). See :func:`reply_entropies`."""

    def entropies(logits: Tensor, ids: Tensor) -> Tensor:
        return torch.nn.functional.pad(next_token_entropies(logits[:, :-1]), (1, 0))

    return _of_reply_tokens(entropies, model, prompt_ids, completion_ids, masks, batch_size)


def reply_log_probabilities(
    model: PreTrainedModel, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks, batch_size: int = 16
) -> Tensor:
    """Log-probability of each token of replies by an LM, (B, T); 0 at padding. See :func:`reply_entropies`."""

    def chosen(logits: Tensor, ids: Tensor) -> Tensor:
        return torch.nn.functional.pad(chosen_log_probabilities(logits[:, :-1].contiguous(), ids[:, 1:]), (1, 0))

    return _of_reply_tokens(chosen, model, prompt_ids, completion_ids, masks, batch_size)


@torch.no_grad()
def _of_reply_tokens(
    figure: Callable[[Tensor, Tensor], Tensor],
    model: PreTrainedModel,
    prompt_ids: Tensor,
    completion_ids: Tensor,
    masks: Masks,
    batch_size: int,
) -> Tensor:
    """What `figure` makes of logits (N, L, V) and token ids (N, L), at the tokens of replies: (B, T), float32."""
    home = completion_ids.device
    if model.config.is_encoder_decoder:
        found = []
        inputs = (x.to(model.device).split(batch_size) for x in (prompt_ids, completion_ids, *masks))
        for prompts, replies, prompt_mask, mask in zip(*inputs, strict=True):
            decoder_ids, _ = with_start_token(replies, mask, model.config.decoder_start_token_id)
            decoder_ids[:, 1:].masked_fill_(~mask.bool(), 0)
            logits = model(input_ids=prompts, attention_mask=prompt_mask.long(), decoder_input_ids=decoder_ids).logits
            found.append(figure(logits, decoder_ids)[:, 1:].float().masked_fill(~mask.bool(), 0))
        return torch.cat(found).to(home)
    ids = torch.cat([prompt_ids, completion_ids], 1).to(model.device)
    real = torch.cat(masks, 1).to(model.device).bool()
    order = (~real).to(torch.uint8).argsort(dim=-1, stable=True)  # real tokens to the left: padding shifts no position
    ids, width = ids.masked_fill(~real, 0).gather(1, order), completion_ids.shape[1]
    packed = real.gather(1, order)
    figures = torch.zeros(ids.shape, device=ids.device)
    for start in range(0, len(ids), batch_size):
        rows = slice(start, start + batch_size)
        longest = int(packed[rows].sum(-1).max())
        logits = model(input_ids=ids[rows, :longest], attention_mask=packed[rows, :longest].long()).logits
        figures[rows, :longest] = figure(logits, ids[rows, :longest]).float()
    placed = torch.zeros_like(figures).scatter(1, order, figures)
    return placed.masked_fill(~real, 0)[:, -width:].to(home)
