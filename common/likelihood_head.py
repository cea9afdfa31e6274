"""Token rewards from what the backbone's own language model expects: the likelihood head.

A head that reads the state after a token learns the form of good sequences and hardly which of two tokens fits a
state. This one rewards a token by its log-probability in the state before it, so that it knows what the language model
knows, and ranking teaches the model which sequences are preferred.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from common.checks import at_least_float32

START_SCALE = 0.25
START_OFFSET = 1.0
_LOGITS_AT_ONCE = 2**22  # elements that are turned to float32 at a time, 16 MiB


class LikelihoodHead(nn.Module):
    """Raw reward of a token: ``scale * log p(a | s) + offset``, two learned numbers beside the language model."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(1))
        self.offset = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to where training starts."""
        nn.init.constant_(self.scale, START_SCALE)
        nn.init.constant_(self.offset, START_OFFSET)

    def forward(self, log_probabilities: Tensor) -> Tensor:
        """Raw rewards of the same shape, float32 at least."""
        return at_least_float32(self.scale) * log_probabilities + at_least_float32(self.offset)


def chosen_log_probabilities(logits: Tensor, token_ids: Tensor) -> Tensor:
    """``log softmax(logits)`` of one token each, with no second tensor of the size of the logits at any time.

    The softmax is computed in float32 also for half-precision logits. The backward pass writes the gradient over the
    logits: they must be nobody else's, and there can be only one backward pass.

    Args:
        logits: (..., V), any float dtype; used up.
        token_ids: (...), ids in [0, V).

    Returns:
        Log-probabilities, (...); float32 for half-precision logits, else of their dtype.
    """
    chosen: Tensor = _Chosen.apply(logits.flatten(0, -2), token_ids.flatten())
    return chosen.view(token_ids.shape)


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, logits: Tensor, token_ids: Tensor) -> Tensor:
        normalizers = torch.cat([at_least_float32(logits[part]).logsumexp(-1) for part in parts(*logits.shape)])  # (M,)
        chosen = at_least_float32(logits.gather(1, token_ids.unsqueeze(1)).squeeze(1)) - normalizers
        # Not by save_for_backward, which forbids that they are written over.
        context.kept = (logits, token_ids, normalizers)
        return chosen

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if context.kept is None:
            raise RuntimeError("the logits were used up by an earlier backward pass")
        logits, token_ids, normalizers = context.kept
        context.kept = None
        for part in parts(*logits.shape):
            scaled = at_least_float32(logits[part]) - normalizers[part].unsqueeze(1)
            scaled = scaled.exp_().mul_(-gradient[part].unsqueeze(1))
            scaled.scatter_add_(1, token_ids[part].unsqueeze(1), gradient[part].unsqueeze(1))
            logits[part] = scaled.to(logits.dtype)
        return logits, None


def parts(rows: int, vocabulary: int) -> Iterator[slice]:
    """Slices of the rows of (M, V), few enough at a time that a float32 copy of them is small."""
    at_once = max(1, _LOGITS_AT_ONCE // vocabulary)
    for start in range(0, rows, at_once):
        yield slice(start, start + at_once)
