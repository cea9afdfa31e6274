"""Attention of T5's kind for training on CPUs and for several sequences of one source.

The models of this family add a learned bias to the attention scores. PyTorch's fused kernels give no gradient for it,
so what transformers falls back on keeps several tensors of the size of the scores a layer until the backward pass.
:func:`shared_source_attention` takes the place of that: it computes a few heads at a time, keeps no more than the
dropout mask, a byte a score, and computes the scores again in the backward pass. And it takes queries of B * K
sequences with keys and values of B sources, so that those are computed and stored once a source.

The numbers are those of transformers' own attention; where it is computed here (fp32 on CPUs), what dropout draws is
that of :mod:`common.dropout`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from common.dropout import draw_kept, kept_share

SHARED_SOURCE = "shared_source"
FAMILIES = ("t5", "mt5")

_SCORES_AT_ONCE = 2**19  # 2 MiB, which stay in a processor's cache


def share_sources(model: PreTrainedModel) -> bool:
    """Let a model use :func:`shared_source_attention`, if it is of a family whose decoder can.

    Returns:
        Whether its decoder now takes B * K sequences with the encoder states of B sources.
    """
    if model.config.model_type not in FAMILIES:
        return False
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(SHARED_SOURCE)
    return model.config._attn_implementation == SHARED_SOURCE


def shared_source_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for each attention layer.

    Args:
        module: T5's attention layer.
        query: (N, H, T, d); N is B, or in cross-attention B * K with the K sequences of a source one after the other.
        key, value: (B, H, S, d).
        attention_mask: bool, (B, 1, T, S), True where attention is allowed; None: everywhere it is causal.
        dropout: share of the attention weights that is dropped.
        scaling: factor of the scores.
        position_bias: (1, H, T, S), is added to the scores; in cross-attention it is zero.

    Returns:
        (N, T, H, d), and no attention weights.
    """
    count, _, length, width = query.shape
    crosses = bool(module.is_decoder) and not module.is_causal
    per_source = count // key.shape[0] if crosses else 1
    if crosses:
        position_bias = None
        attention_mask = None if attention_mask is None else attention_mask[:, :, :1]  # all queries see the same keys
    if per_source > 1:
        query = query.unflatten(0, (-1, per_source)).transpose(1, 2).flatten(2, 3)  # (B, H, K * T, d)
    needs_gradient = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (query, key, value, position_bias)
    )
    if needs_gradient and query.device.type == "cpu" and query.dtype == torch.float32:
        if attention_mask is None and module.is_causal and length > 1:
            attention_mask = query.new_ones(length, key.shape[2], dtype=torch.bool).tril()[None, None]
        scale = width**-0.5 if scaling is None else scaling
        if scale != 1.0:
            query = query * scale
        output = _Attention.apply(query, key, value, position_bias, attention_mask, dropout).transpose(1, 2)
    else:
        is_causal = False if crosses else None
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, position_bias, **kwargs
        )
    if per_source > 1:
        output = output.unflatten(1, (per_source, length)).flatten(0, 1)
    return output.contiguous(), None


class _Attention(torch.autograd.Function):
    """softmax(q k' + bias), masked, with dropout, times v; scores are computed again in the backward pass."""

    @staticmethod
    def forward(
        context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        dropout: float,
    ) -> Tensor:
        count, heads, length, _ = query.shape
        kept = None
        if dropout > 0:
            kept = draw_kept((count, heads, length, key.shape[2]), dropout)
        output = _like(query)
        work = _Work(query, key, bias, mask)
        for row, part in work.parts:
            weights = work.weights(row, part)
            if kept is not None:
                weights.mul_(kept[row, part])
            torch.bmm(weights, value[row, part], out=output[row, part])
        if dropout > 0:
            output.div_(kept_share(dropout))
        context.save_for_backward(query, key, value, bias, mask, kept, output)
        context.dropout = dropout
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, mask, kept, output = context.saved_tensors
        d_query, d_key, d_value = _like(query), _like(key), _like(value)
        d_bias = None if bias is None or not context.needs_input_grad[3] else torch.zeros_like(bias)
        # sum_j p_ij dp_ij, which the backward pass of softmax subtracts: dropout included, it is that of the outputs.
        inner = (gradient * output).sum(-1, keepdim=True)  # (N, H, T, 1)
        gradient = gradient / kept_share(context.dropout) if context.dropout > 0 else gradient
        work = _Work(query, key, bias, mask)
        for row, part in work.parts:
            weights = work.weights(row, part)
            d_scores = torch.bmm(gradient[row, part], value[row, part].transpose(1, 2), out=work.second(part))
            if kept is not None:
                d_scores.mul_(kept[row, part])
            d_scores.sub_(inner[row, part]).mul_(weights)
            if kept is not None:
                weights.mul_(kept[row, part])
            torch.bmm(weights.transpose(1, 2), gradient[row, part], out=d_value[row, part])
            torch.bmm(d_scores, key[row, part], out=d_query[row, part])
            torch.bmm(d_scores.transpose(1, 2), query[row, part], out=d_key[row, part])
            if d_bias is not None:
                d_bias[0, part].add_(d_scores)
        return d_query, d_key, d_value, d_bias, None, None


def _like(states: Tensor) -> Tensor:
    """Memory for (N, H, T, d), laid out as (N, T, H, d): what the linear layers around attention write and read."""
    count, heads, length, width = states.shape
    return states.new_empty(count, length, heads, width).transpose(1, 2)


class _Work:
    """Attention weights of a few heads of one row at a time, in the same memory.

    Attributes:
        parts: (row, slice of heads), all of them.
    """

    def __init__(self, query: Tensor, key: Tensor, bias: Tensor | None, mask: Tensor | None):
        count, heads, length, _ = query.shape
        self.query, self.key = query, key
        self.bias = None if bias is None else bias.detach()
        self.hidden = None if mask is None else ~mask
        self._shape = (length, key.shape[2])
        at_once = max(1, min(heads, _SCORES_AT_ONCE // math.prod(self._shape)))
        self.parts = [
            (row, slice(h, min(h + at_once, heads))) for row in range(count) for h in range(0, heads, at_once)
        ]
        self._memory = [query.new_empty(at_once, *self._shape) for _ in range(2)]

    def weights(self, row: int, part: slice) -> Tensor:
        """softmax(q k' + bias), (heads, T, S); valid until the next call."""
        scores = self._memory[0][: part.stop - part.start]
        query, key = self.query[row, part], self.key[row, part].transpose(1, 2)
        if self.bias is None:
            torch.bmm(query, key, out=scores)
        else:
            torch.baddbmm(self.bias[0, part], query, key, out=scores)
        if self.hidden is not None:
            scores.masked_fill_(self.hidden[min(row, len(self.hidden) - 1)], torch.finfo(scores.dtype).min)
        return torch.softmax(scores, -1, out=scores)

    def second(self, part: slice) -> Tensor:
        """More memory of the same shape."""
        return self._memory[1][: part.stop - part.start]


AttentionInterface.register(SHARED_SOURCE, shared_source_attention)
AttentionMaskInterface.register(SHARED_SOURCE, sdpa_mask)
