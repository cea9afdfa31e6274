"""The swap test: of two tokens in the same state, does the learned reward prefer the better one?

Rank accuracy compares whole sequences and says little about which token of one was good. Here one token of a sequence
is replaced by the likeliest other one, the state before it being the same, so that form alone does not give it away.
:func:`common.grounding_loss.rank_accuracy` of the pairs is the swap accuracy; 0.5 is chance.
"""

import torch
from torch import Tensor

from common.checks import check_float, check_shape, real_tokens


def draw_places(mask: Tensor, noise: Tensor) -> Tensor:
    """A place of each sequence: any of its tokens but the last (the end token), which is taken only where it is alone.

    Args:
        mask: (N, T), 1 or True at real tokens, which stand at the start of each row.
        noise: (N,) uniform numbers in [0, 1).

    Returns:
        (N,) columns.

    Raises:
        ValueError: naming the argument with a wrong shape, or a sequence without a real token.
    """
    lengths = real_tokens(mask, mask.shape).sum(-1)
    check_shape(noise, "noise", lengths.shape)
    choices = (lengths - 1).clamp(min=1)
    return torch.minimum((noise.to(lengths.device) * choices).long(), choices - 1)


def swap_tokens(tokens: Tensor, places: Tensor, logits: Tensor) -> Tensor:
    """The sequences with one token each replaced by the likeliest other one.

    Args:
        tokens: (N, T).
        places: (N,) column of the token that is replaced.
        logits: (N, V) of what could stand there, such as the policy's.

    Returns:
        A new (N, T).

    Raises:
        ValueError: naming the argument with a wrong shape.
    """
    check_float(logits, "logits", "(N, V)")
    check_shape(places, "places", tokens.shape[:1])
    places = places.unsqueeze(1)
    others = logits.scatter(1, tokens.gather(1, places).to(logits.device), -torch.inf).argmax(-1, keepdim=True)
    return tokens.scatter(1, places, others.to(tokens.device))
