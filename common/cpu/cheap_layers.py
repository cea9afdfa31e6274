"""Layers of language models, of the same numbers as transformers', in less time and memory on CPUs.

Between two matrix products transformers' layers go over their states several times and keep several copies of them for
the backward pass. Those of this module go over them once or twice, in pieces that stay in a processor's cache:

* dropout, see :mod:`common.cpu.dropout`;
* the norm of the T5 and Llama families, which keeps its input alone;
* ReLU and dropout between the two layers of T5's feed-forward blocks, in place: their output tells the backward pass
  all it has to know;
* GELU by its tanh formula as one operation, as transformers has it too.

On other devices dropout and norms are PyTorch's and transformers' own, and norms are in half precision too.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, NewGELUActivation

from common.cpu import kernels_in_use
from common.cpu.dropout import PIECE, CheapDropout, draw_kept, kept_factors, kept_scale

# Norms without mean and bias whose forward pass is: weight * states / sqrt(mean(states^2) + variance_epsilon).
_NORMS = ("T5LayerNorm", "MT5LayerNorm", "LlamaRMSNorm")
# wo(dropout(act(wi(states))))
_FEED_FORWARD = ("T5DenseActDense", "MT5DenseActDense")


def use_cheap_layers(model: nn.Module) -> None:
    """Put the layers of this module in the place of those of `model` that they can stand for. Weights keep their names.

    Classes that are derived from those, and dropout that works in place, stay as they are; all do where the kernels are
    switched off.
    """
    if not kernels_in_use():
        return
    for module in model.modules():
        is_feed_forward = type(module).__name__ in _FEED_FORWARD
        if is_feed_forward and type(module.act) is nn.ReLU and type(module.dropout) is nn.Dropout:
            module.act = ReLUDropout(module.dropout.p).train(module.dropout.training)
            module.dropout = nn.Identity()
        for name, child in module.named_children():
            if type(child) is nn.Dropout and not child.inplace:
                setattr(module, name, CheapDropout(child.p).train(child.training))
            elif type(child) is NewGELUActivation:
                setattr(module, name, GELUTanh())
            elif type(child).__name__ in _NORMS:
                kind: Any = type(child)
                child.__class__ = _cheap_norm(kind)


class ReLUDropout(nn.Module):
    """Dropout of the ReLU of states, which are overwritten: no operation may need them for its backward pass."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, states: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return states.relu_()
        if states.device.type != "cpu":
            return nn.functional.dropout(states.relu_(), self.p)
        return _ReLUDropout.apply(states.contiguous(), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class _ReLUDropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, states: Tensor, dropout: float) -> Tensor:
        scale = kept_scale(dropout)
        kept = draw_kept((states.numel(),), dropout)
        for part, kept_part in zip(states.view(-1).split(PIECE), kept.split(PIECE), strict=True):
            part.relu_().mul_(kept_factors(kept_part, scale, states.dtype))
        context.mark_dirty(states)
        context.save_for_backward(states)
        context.scale = scale
        return states

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (output,) = context.saved_tensors
        # 0 where the output is: there the ReLU has cut it or dropout has dropped it.
        return torch.ops.aten.threshold_backward(gradient, output, 0).mul_(context.scale), None


@functools.cache
def _cheap_norm(kind: Any) -> Any:
    """A norm of that kind which computes as this module does where it can."""

    class CheapNorm(kind):
        def forward(self, hidden_states: Tensor) -> Tensor:
            if hidden_states.device.type == "cpu" and hidden_states.dtype == self.weight.dtype == torch.float32:
                return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)
            return super().forward(hidden_states)

    return CheapNorm


class _RMSNorm(torch.autograd.Function):
    """y = w x / s with s = sqrt(mean(x^2) + epsilon) over the last dimension of x (..., d)."""

    @staticmethod
    def forward(context: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        width = states.shape[-1]
        inverse = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square_().div_(width).add_(epsilon).rsqrt_()
        context.save_for_backward(states, weight, inverse)
        return (states * inverse).mul_(weight)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        states, weight, inverse = context.saved_tensors
        width = states.shape[-1]
        d_states = torch.empty_like(states, memory_format=torch.contiguous_format)
        d_weight = torch.zeros_like(weight) if context.needs_input_grad[1] else None
        rows = max(1, PIECE // width)
        flat = (gradient.reshape(-1, width), states.reshape(-1, width), inverse.view(-1, 1), d_states.view(-1, width))
        for dy, x, over_s, dx in zip(*(tensor.split(rows) for tensor in flat), strict=True):
            normed = x * over_s
            if d_weight is not None:
                d_weight += (dy * normed).sum(0)
            # dx = (w dy - n mean(n w dy)) / s with n = x / s
            torch.mul(dy, weight, out=dx)
            normed *= (dx * normed).sum(-1, keepdim=True).div_(width)
            dx.sub_(normed).mul_(over_s)
        return d_states, d_weight, None
