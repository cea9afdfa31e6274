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


def reply_expectations(
    model: PreTrainedModel, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks, batch_size: int = 16
) -> tuple[Tensor, Tensor]:
    """What an LM expects of each token of replies before it has read it: log-probabilities and entropies, (B, T) each.

    See :func:`reply_entropies`.
    """

    def both(logits: Tensor, ids: Tensor) -> Tensor:
        before = logits[:, :-1].contiguous()
        columns = [chosen_log_probabilities(before, ids[:, 1:]), next_token_entropies(before)]
        return torch.stack([_shifted(column) for column in columns], -1)

    log_p, entropies = _of_reply_tokens(both, model, prompt_ids, completion_ids, masks, batch_size).unbind(-1)
    return log_p, entropies


def reply_log_probabilities(
    model: PreTrainedModel, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks, batch_size: int = 16
) -> Tensor:
    """Log-probability of each token of replies by an LM, (B, T); 0 at padding. See :func:`reply_entropies`."""

    def chosen(logits: Tensor, ids: Tensor) -> Tensor:
        return _shifted(chosen_log_probabilities(logits[:, :-1].contiguous(), ids[:, 1:]))

    return _of_reply_tokens(chosen, model, prompt_ids, completion_ids, masks, batch_size)


def likeliest_others(
    model: PreTrainedModel, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks, batch_size: int = 16
) -> Tensor:
    """What an LM finds likeliest in the place of each token of replies but that token: ids (B, T).

    See :func:`reply_entropies`.
    """

    def others(logits: Tensor, ids: Tensor) -> Tensor:
        first, second = logits[:, :-1].topk(2).indices.unbind(-1)
        return _shifted(torch.where(first == ids[:, 1:], second, first))

    return _of_reply_tokens(others, model, prompt_ids, completion_ids, masks, batch_size)


def _shifted(figures: Tensor) -> Tensor:
    """What (N, L - 1) states say of the token after each, at these tokens: (N, L), the first one's being 0."""
    return torch.nn.functional.pad(figures, (1, 0))


@torch.no_grad()
def _of_reply_tokens(
    figure: Callable[[Tensor, Tensor], Tensor],
    model: PreTrainedModel,
    prompt_ids: Tensor,
    completion_ids: Tensor,
    masks: Masks,
    batch_size: int,
) -> Tensor:
    """What `figure` makes of logits (N, L, V) and ids (N, L), (N, L) or (N, L, C), at the tokens of replies: (B, T) or
    (B, T, C), 0 at padding."""
    found = []
    if model.config.is_encoder_decoder:
        inputs = (x.to(model.device).split(batch_size) for x in (prompt_ids, completion_ids, *masks))
        for prompts, replies, prompt_mask, mask in zip(*inputs, strict=True):
            decoder_ids, _ = with_start_token(replies, mask, model.config.decoder_start_token_id)
            decoder_ids[:, 1:].masked_fill_(~mask.bool(), 0)
            logits = model(input_ids=prompts, attention_mask=prompt_mask.long(), decoder_input_ids=decoder_ids).logits
            found.append(figure(logits, decoder_ids)[:, 1:])
    else:
        ids = torch.cat([prompt_ids, completion_ids], 1).to(model.device)
        real = torch.cat(masks, 1).to(model.device).bool()
        order = (~real).to(torch.uint8).argsort(dim=-1, stable=True)  # real tokens to the left: padding shifts none
        ids, packed = ids.masked_fill(~real, 0).gather(1, order), real.gather(1, order)
        places = (real.cumsum(-1) - 1).clamp(min=0)[:, prompt_ids.shape[1] :]  # of the replies' tokens, there
        for start in range(0, len(ids), batch_size):
            rows = slice(start, start + batch_size)
            longest = int(packed[rows].sum(-1).max())
            logits = model(input_ids=ids[rows, :longest], attention_mask=packed[rows, :longest].long()).logits
            of_tokens = figure(logits, ids[rows, :longest])
            found.append(of_tokens[torch.arange(len(of_tokens), device=ids.device).unsqueeze(1), places[rows]])
    figures = torch.cat(found).to(completion_ids.device)
    figures = figures.float() if figures.is_floating_point() else figures
    return figures.masked_fill(~masks[1].bool().view(masks[1].shape + (1,) * (figures.dim() - 2)), 0)
