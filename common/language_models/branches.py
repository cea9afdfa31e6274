"""Other tokens in the place of each token of a sequence, read in the one pass that reads the sequence.

Each alternative stands behind the sequence, at the position of the token that it replaces, and sees what that token
sees: the sequence before it, and itself. No alternative sees another, and nothing of the sequence sees one. So the
states are those of a pass for each alternative, of which there would be as many as tokens times alternatives.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.errors import UserError
from common.language_models.attention import SHARED_SOURCE
from common.language_models.capabilities import agree, exactly, probe_ids, takes, without_cache
from common.language_models.evaluation_mode import evaluation_mode
from common.language_models.shared_prompts import SHARED_PROMPTS

logger = logging.getLogger(__name__)

PROBE_TOLERANCE = 1e-5  # of the largest number, in float32


def read_branches(
    body: PreTrainedModel, inputs: Mapping[str, Any], alternatives: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """Last hidden states of sequences, and of other tokens in the places from `first` on.

    Args:
        body: a model without an LM head for which :func:`can_branch` holds.
        inputs: what it reads: the sequences (N, P), ``decoder_input_ids`` or ``input_ids``, have their padding at the
            right end, so that no real token sees it.
        alternatives: (N, P - first, K) token ids.
        first: 0 <= first < P.

    Returns:
        States (N, P, d) of the sequences, and (N, P - first, K, d) of the alternatives.

    Raises:
        UserError: the sequences are longer than the window of the model's attention.
    """
    name, mask_name = "input_ids", "attention_mask"
    if body.config.is_encoder_decoder:
        name, mask_name = "decoder_input_ids", "decoder_attention_mask"
    ids = inputs[name]
    length, device = ids.shape[1], ids.device
    window = getattr(body.config.get_text_config(), "sliding_window", None)
    if window is not None and length > window:
        raise UserError(f"a {body.config.model_type} sees {window} tokens back, and alternatives to {length} are asked")
    places = torch.arange(length, device=device)
    positions = torch.cat([places, places[first:].repeat_interleave(alternatives.shape[2])])  # (L,)
    everything = torch.cat([ids, alternatives.flatten(1)], 1)  # (N, L)
    visible = positions < positions.unsqueeze(1)
    visible[:, length:] = False
    visible.fill_diagonal_(True)
    mask = visible.expand(len(ids), 1, -1, -1)
    if body.config._attn_implementation not in ("sdpa", SHARED_SOURCE, SHARED_PROMPTS):  # the others add their masks
        mask = torch.zeros_like(mask, dtype=body.dtype).masked_fill_(~mask, torch.finfo(body.dtype).min)
    given = {**inputs, name: everything, mask_name: mask}
    if takes(body, "position_ids"):
        given["position_ids"] = positions.expand(len(ids), -1)
    with _biases_between(body, positions):
        states = body(**given, **without_cache(body)).last_hidden_state
    return states[:, :length], states[:, length:].unflatten(1, alternatives.shape[1:])


@exactly()
def can_branch(body: PreTrainedModel) -> bool:
    """Whether :func:`read_branches` gives what a pass for each alternative gives: tried once, on a few tokens.

    A model fails it that takes neither positions nor, as T5 has, biases between positions, or no mask of its own.
    """
    ids = probe_ids(body)
    sequences, others, first = ids.view(2, 5), ids.flip(1).view(2, 5)[:, 1:], 1
    alternatives = torch.stack([others, sequences[:, 1:].flip(0)], -1)  # (2, 4, 2)
    source = {"input_ids": ids[:, :4].expand(2, -1)} if body.config.is_encoder_decoder else {}
    name = "decoder_input_ids" if source else "input_ids"
    try:
        with evaluation_mode(body):
            main, branches = read_branches(body, {**source, name: sequences}, alternatives, first)

            def same(found: Tensor, replaced: Tensor) -> bool:
                alone = body(**source, **{name: replaced}, **without_cache(body)).last_hidden_state
                alone = alone if replaced is sequences else alone[:, -1]
                close = (found - alone).abs().max() <= PROBE_TOLERANCE * alone.abs().max()
                return bool(close) if found.dtype == torch.float32 else agree(found, alone)

            def swapped(place: int, k: int) -> Tensor:
                return torch.cat([sequences[:, :place], alternatives[:, place - first, k : k + 1]], 1)

            return same(main, sequences) and all(
                same(branches[:, place - first, k], swapped(place, k)) for place in range(first, 5) for k in range(2)
            )
    except Exception as error:  # what a model raises that takes no such mask
        logger.debug("alternatives in one pass: %s: %s", type(error).__name__, error)
        return False


@contextmanager
def _biases_between(body: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """While open, T5's decoder takes its biases from these positions (L,), where it would count its tokens."""
    decoder = body.get_decoder() if body.config.is_encoder_decoder else body
    layers: list[Any] = [m for m in decoder.modules() if getattr(m, "has_relative_attention_bias", False)]

    def compute_bias_of(layer: Any) -> Callable[..., Tensor]:
        def compute_bias(*sizes: Any, **options: Any) -> Tensor:
            buckets = layer._relative_position_bucket(
                positions - positions.unsqueeze(1),
                bidirectional=False,
                num_buckets=layer.relative_attention_num_buckets,
                max_distance=layer.relative_attention_max_distance,
            )
            return layer.relative_attention_bias(buckets).permute(2, 0, 1).unsqueeze(0)  # (1, H, L, L)

        return compute_bias

    for layer in layers:
        layer.compute_bias = compute_bias_of(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.compute_bias
