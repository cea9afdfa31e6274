"""Attention of T5's kind for training on CPUs and for several sequences of one source.

The models of this family add a learned bias to the attention scores. PyTorch's fused kernels give no gradient for it,
so what transformers falls back on keeps several tensors of the size of the scores a layer until the backward pass.
:func:`shared_source_attention` takes the place of that: it computes a few heads at a time, keeps no more than the
dropout mask, a byte a score, and computes the scores again in the backward pass. Padding at the end of the keys is not
read at all. And it takes queries of B * K sequences with keys and values of B sources, so that those are computed and
stored once a source.

The numbers are those of transformers' own attention; where it is computed here (fp32 on CPUs), what dropout draws is
that of :mod:`common.cpu.dropout`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from common.cpu import kernels_in_use
from common.cpu.dropout import draw_kept, kept_factors, kept_scale

SHARED_SOURCE = "shared_source"
FAMILIES = ("t5", "mt5")

_SCORES_AT_ONCE = 2**19  # 2 MiB, which stay in a processor's cache
_SCORES_IN_CACHE = 2**22  # 16 MiB, where the fused kernels and the way of this module are equally fast


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
    # The fused kernels take bias and mask as one tensor of the size of all scores, which costs more than they save once
    # it does not fit into a processor's cache.
    has_large_bias = position_bias is not None and query[..., 0].numel() * key.shape[2] > _SCORES_IN_CACHE
    own = needs_gradient or has_large_bias or dropout > 0
    if own and kernels_in_use() and query.device.type == "cpu" and query.dtype == torch.float32:
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
        work = _Work(query, key, value, bias, mask, kept, kept_scale(dropout))
        for piece in work.pieces():
            weights = piece.weights()
            if kept is not None:
                weights.mul_(piece.factors())
            torch.bmm(weights, piece.value, out=piece.of(output))
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
        work = _Work(query, key, value, bias, mask, kept, kept_scale(context.dropout))
        for piece in work.pieces():
            weights = piece.weights()
            d_output = piece.of(gradient)
            d_scores = torch.bmm(d_output, piece.value.transpose(1, 2))
            if kept is None:
                d_scores.sub_(piece.of(inner)).mul_(weights)
            else:
                factors = piece.factors()
                d_scores.mul_(factors).sub_(piece.of(inner)).mul_(weights)
                weights.mul_(factors)
            if piece.hidden is not None:  # only a query that sees nothing has weights there
                d_scores.masked_fill_(piece.hidden, 0)
            torch.bmm(weights.transpose(1, 2), d_output, out=piece.of_keys(d_value))
            torch.bmm(d_scores, piece.key, out=piece.of(d_query))
            torch.bmm(d_scores.transpose(1, 2), piece.query, out=piece.of_keys(d_key))
            if d_bias is not None:
                d_bias[0, piece.heads, :, : piece.width].add_(d_scores)
        for row, width in enumerate(work.widths):
            d_key[row, :, width:] = 0
            d_value[row, :, width:] = 0
        return d_query, d_key, d_value, d_bias, None, None


def _like(states: Tensor) -> Tensor:
    """Memory for (N, H, T, d), laid out as (N, T, H, d): what the linear layers around attention write and read."""
    count, heads, length, width = states.shape
    return states.new_empty(count, length, heads, width).transpose(1, 2)


@dataclass
class _Work:
    """What attention is computed from, to be taken a few heads of one row at a time.

    Attributes:
        query, key, value, bias: see `shared_source_attention`.
        mask: True where attention is allowed, (1 or N, 1, 1 or T, S); None: everywhere.
        kept: True at the weights that dropout keeps, (N, H, T, S); None: it keeps all.
        scale: the factor of what is kept.
        widths: of each row, the number of keys up to the last that a query of it may see.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    mask: Tensor | None
    kept: Tensor | None
    scale: float

    def __post_init__(self) -> None:
        count, size = self.query.shape[0], self.key.shape[2]
        self.widths = [size] * count
        if self.mask is not None:
            seen = self.mask[:, 0].any(1)  # (1 or N, S)
            last = (seen * torch.arange(1, size + 1)).amax(-1)
            # A query that sees nothing gives all keys the same weight, as it does in transformers.
            last = last.where(self.mask[:, 0].any(-1).all(-1), size)
            self.widths = last.expand(count).tolist()

    def pieces(self) -> Iterator["_Piece"]:
        """All the work."""
        count, heads, length, _ = self.query.shape
        for row in range(count):
            width = self.widths[row]
            hidden = None
            if self.mask is not None:
                visible = self.mask[min(row, len(self.mask) - 1), :, :, :width]
                hidden = None if bool(visible.all()) else ~visible
            at_once = max(1, min(heads, _SCORES_AT_ONCE // (length * width)))
            for head in range(0, heads, at_once):
                yield _Piece(self, row, slice(head, min(head + at_once, heads)), width, hidden)


@dataclass
class _Piece:
    """A few heads of one row.

    Attributes:
        work: of which this is a piece.
        row, heads: where it lies in it.
        width: its number of keys.
        hidden: True at the keys that a query may not see, (1, 1 or T, width); None: nowhere.
    """

    work: _Work
    row: int
    heads: slice
    width: int
    hidden: Tensor | None

    def of(self, states: Tensor) -> Tensor:
        """This piece of a tensor (N, H, T, ...)."""
        return states[self.row, self.heads]

    def of_keys(self, states: Tensor) -> Tensor:
        """This piece of a tensor (N, H, S, d)."""
        return states[self.row, self.heads, : self.width]

    @property
    def query(self) -> Tensor:
        return self.of(self.work.query)

    @property
    def key(self) -> Tensor:
        return self.of_keys(self.work.key)

    @property
    def value(self) -> Tensor:
        return self.of_keys(self.work.value)

    def weights(self) -> Tensor:
        """softmax(q k' + bias), (heads, T, width)."""
        query, key = self.query, self.key.transpose(1, 2)
        if self.work.bias is None:
            scores = torch.bmm(query, key)
        else:
            scores = torch.baddbmm(self.work.bias.detach()[0, self.heads, :, : self.width], query, key)
        if self.hidden is not None:
            scores.masked_fill_(self.hidden, torch.finfo(scores.dtype).min)
        return torch.softmax(scores, -1, out=scores)

    def factors(self) -> Tensor:
        """What dropout multiplies the weights by."""
        assert self.work.kept is not None
        return kept_factors(self.of(self.work.kept)[..., : self.width], self.work.scale, self.work.query.dtype)


AttentionInterface.register(SHARED_SOURCE, shared_source_attention)
AttentionMaskInterface.register(SHARED_SOURCE, sdpa_mask)
