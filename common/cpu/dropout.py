"""Dropout for CPUs: which elements are kept is decided by 16 random bits each.

PyTorch draws a double for each element there, which takes longer than many of the layers around it, and keeps a factor
of four bytes an element for the backward pass. Here a draw takes a quarter of the time and a byte is kept. The
probability is rounded to a multiple of 2^-16, and what is kept is scaled by the rounded one, so that the mean is right.
On other devices everything is PyTorch's own.

What is large is worked on in pieces that stay in a processor's cache.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_LEVELS = 2**16
PIECE = 2**17  # elements, half a MiB of fp32


def kept_share(dropout: float) -> float:
    """The probability with which `draw_kept` keeps an element: 1 - dropout, to 2^-17."""
    return 1 - round(dropout * _LEVELS) / _LEVELS


def draw_kept(shape: Sequence[int], dropout: float) -> Tensor:
    """Bool tensor on the CPU, True with probability `kept_share(dropout)`; drawn from torch's default generator."""
    count = math.prod(shape)
    threshold = round(dropout * _LEVELS) - _LEVELS // 2
    if threshold >= _LEVELS // 2:
        return torch.zeros(tuple(shape), dtype=torch.bool)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    return (words.view(torch.int16)[:count] >= threshold).view(tuple(shape))


def kept_factors(kept: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """`scale` where a bool tensor is True, else 0; of its shape, for states of `dtype`.

    For half precision they are in fp32: rounded to 8 bits the scale would move the mean of what it multiplies.
    """
    factors = kept.view(torch.int8).to(torch.promote_types(dtype, torch.float32))  # twice as fast as from bool
    return factors.mul_(scale)


class CheapDropout(nn.Dropout):
    """`torch.nn.Dropout` with the draws of this module on CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        return _Dropout.apply(input, self.p)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, states: Tensor, dropout: float) -> Tensor:
        kept = draw_kept(states.shape, dropout)
        context.save_for_backward(kept)
        context.scale = kept_scale(dropout)
        return _scaled(states, kept, context.scale)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = context.saved_tensors
        return _scaled(gradient, kept, context.scale), None


def _scaled(states: Tensor, kept: Tensor, scale: float) -> Tensor:
    output = torch.empty_like(states, memory_format=torch.contiguous_format)
    tensors = (states.reshape(-1), kept.view(-1), output.view(-1))
    for part, kept_part, place in zip(*(tensor.split(PIECE) for tensor in tensors), strict=True):
        torch.mul(part, kept_factors(kept_part, scale, states.dtype), out=place)
    return output


def kept_scale(dropout: float) -> float:
    """The factor of what is kept."""
    share = kept_share(dropout)
    return 1 / share if share > 0 else 0.0
