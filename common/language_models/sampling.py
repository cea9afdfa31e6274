"""Drawing of tokens: uniform numbers from a CPU generator, all the rest on the device that holds the logits."""

import torch
from torch import Tensor

from common.checks import at_least_float32


def draw_tokens(
    logits: Tensor, uniforms: Tensor, top_k: int | None = None, top_p: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Draw a token a row by inverting the cumulative distribution, so that one number decides one token.

    Nothing else in the batch, nor the device, changes what is drawn but for rounding. With `top_k` or `top_p` tokens
    stand in the order of their probability, else in that of their ids. A token of probability 0 is never drawn.

    Args:
        logits: (N, V).
        uniforms: (N,) numbers in [0, 1), on any device.
        top_k: draw from the k most probable tokens, exactly k also among equal logits; None: from all.
        top_p: draw from the smallest set of most probable tokens whose probability, at this temperature and within
            `top_k`, reaches it.
        temperature: divides the logits.

    Returns:
        Token ids, (N,), on the device of the logits.
    """
    values, ids = at_least_float32(logits), None
    if top_k is not None and top_k < values.shape[-1]:
        values, ids = values.topk(top_k, -1)
    elif top_p < 1.0:
        values, ids = values.sort(-1, descending=True)
    probabilities = (values / temperature).softmax(-1)
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    if top_p < 1.0:
        in_nucleus = cumulative - probabilities < top_p
        total = cumulative.gather(-1, in_nucleus.sum(-1, keepdim=True).clamp(min=1) - 1)
    scaled = uniforms.to(total).unsqueeze(1) * total
    # Rounding may lift a product up to the total: then the last token that has a probability.
    place = torch.minimum(torch.searchsorted(cumulative, scaled, right=True), torch.searchsorted(cumulative, total))
    place = place.clamp(max=values.shape[-1] - 1)  # logits that are no numbers
    return (place if ids is None else ids.gather(-1, place)).squeeze(1)
