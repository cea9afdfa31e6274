"""Training the upper layers of a model alone: what lies below them is frozen, and keeps nothing for a backward pass.

Blocks and what comes behind them are found by reading two tokens and looking in which order the modules work.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from common.errors import UserError
from common.language_models.capabilities import probe_ids
from common.language_models.evaluation_mode import evaluation_mode


def train_upper_layers(model: PreTrainedModel, count: int | None) -> None:
    """Freeze all but the last blocks and what works behind them, such as the last norm; None freezes nothing.

    Of an encoder-decoder the blocks are the decoder's, and the encoder is frozen. The output layer is frozen too: as a
    rule its weights are those of the embeddings, for whose gradient all layers would have to keep their states.

    Args:
        model: with or without its LM head; changed in place.
        count: how many blocks are trained.

    Raises:
        UserError: it has fewer, or none that can be found.
    """
    if count is None:
        return
    order = _order_of_work(model)
    body: nn.Module = model.get_decoder() if model.config.is_encoder_decoder else model
    blocks = _blocks(body, order)
    if count > len(blocks):
        raise UserError(f"trained_layers: {count}, but {type(model).__name__} has {len(blocks)} of them")
    done = order[blocks[-1]]
    output = model.get_output_embeddings()
    behind = [module for module in body.modules() if order.get(module, -1) > done and module is not output]
    model.requires_grad_(False)
    for module in [*blocks[-count:], *(module for module in behind if not list(module.children()))]:
        module.requires_grad_(True)


def _blocks(body: nn.Module, order: dict[nn.Module, int]) -> list[nn.Module]:
    """The layers of a model, lowest first: of the lists of modules that worked the one with the most weights."""
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList) and len(module)]
    worked = [list(found) for found in lists if all(module in order for module in found)]
    if not worked:
        raise UserError(f"trained_layers: no list of layers is found in a {type(body).__name__}")
    largest = max(worked, key=lambda found: sum(p.numel() for module in found for p in module.parameters()))
    return sorted(largest, key=order.__getitem__)


@torch.no_grad()
def _order_of_work(model: PreTrainedModel) -> dict[nn.Module, int]:
    """The modules that a pass goes through, each with its place in the order in which they end."""
    order: dict[nn.Module, int] = {}

    def note(module: nn.Module, *_: Any) -> None:
        order[module] = len(order)

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        ids = probe_ids(model)
        targets = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        with evaluation_mode(model):
            model(input_ids=ids, use_cache=False, **targets)
    finally:
        for handle in handles:
            handle.remove()
    return order
