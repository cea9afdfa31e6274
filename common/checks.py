"""Checks of tensor arguments, shared by the public functions of the method.

Each raises ValueError whose message starts with the name of the argument it is about. Values on a GPU are checked
there: the error then comes, with the same message, when the CPU next waits for the GPU, as a RuntimeError.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_name(value: str, name: str, allowed: Sequence[str]) -> None:
    """Refuse a name that is not one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name}: unknown value {value!r}; allowed: {', '.join(allowed)}")


def check_positive(value: float, name: str) -> None:
    """Refuse a number that is not finite and positive."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: must be positive and finite, got {value}")


def check_share(value: float, name: str) -> None:
    """Refuse a number that is not from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: must be from 0 to 1, got {value}")


def check_float(tensor: Tensor, name: str, dimensions: str) -> None:
    """Refuse a tensor that is not of a float dtype or lacks the dimensions, such as ``"(N, T)"`` or ``"(N,)"``."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: must be a float tensor, got {tensor.dtype}")
    if tensor.dim() != dimensions.rstrip(",)").count(",") + 1:
        raise ValueError(f"{name}: must have shape {dimensions}, got {tuple(tensor.shape)}")
    if tensor.numel() == 0:
        raise ValueError(f"{name}: is empty, shape {tuple(tensor.shape)}")


def check_shape(tensor: Tensor, name: str, expected: Sequence[int]) -> None:
    """Refuse a tensor of another shape than ``expected``."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name}: must have shape {tuple(expected)}, got {tuple(tensor.shape)}")


def check_values(hold: Tensor, message: str) -> None:
    """Refuse values for which ``hold``, any shape, is not True throughout.

    A GPU is not waited for: it stops by itself.
    """
    if hold.is_cuda:
        torch._assert_async(hold.all(), message)
    elif not bool(hold.all()):
        raise ValueError(message)


def real_tokens(mask: Tensor, expected: Sequence[int], name: str = "mask") -> Tensor:
    """Turn a mask of zeros and ones (bool, integer or float) into a bool tensor, True at real tokens.

    ValueError where the shape is not ``expected``, where an entry is neither 0 nor 1, or where a sequence (the
    last dimension) has no real token: every average over tokens would be 0/0 there.
    """
    check_shape(mask, name, expected)
    real = mask.bool()
    if mask.dtype != torch.bool:
        check_values(real == mask, f"{name}: entries must be 0 or 1")
    check_values(real.any(dim=-1), f"{name}: every sequence needs at least one real token")
    return real


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half-precision input as float32; float32 and float64 unchanged.

    Log-sum-exps over rewards and vocabularies lose their digits in 8 or 11 bits, and the smallest reward of the
    softplus bound, 1e-8, is zero in float16.
    """
    return tensor.float() if tensor.element_size() < 4 else tensor
