"""Low-rank adapters (LoRA) inside a model, by the optional package peft."""

import importlib.util
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from common.errors import UserError

_BASE = ".base_layer."


def check_adapters(rank: int) -> None:
    """Check, before any work is done, that the package is there if adapters are asked for.

    Raises:
        UserError: it is not; the message says how to install it.
    """
    if rank > 0 and importlib.util.find_spec("peft") is None:
        raise UserError("lora_rank: adapters need the package peft; install it with: python -m pip install peft")


def add_adapters(model: PreTrainedModel, rank: int, alpha: float) -> None:
    """Put adapters into all linear layers but the output layer, and freeze the rest; rank 0 does nothing.

    Args:
        model: changed in place.
        rank: of the product B A that is added to a layer's weight.
        alpha: the product is scaled by ``alpha / rank``.
    """
    if rank == 0:
        return
    from peft import LoraConfig, inject_adapter_in_model  # an optional package

    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": "all-linear"}
    inject_adapter_in_model(LoraConfig(**options), model)


def merged_state_dict(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """The weights with the adapters added to those they belong to, under the names of a model without adapters.

    The model stays as it is. None where it has no adapters.
    """
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    if not adapted:
        return None
    weights = {}
    for name, value in model.state_dict().items():
        owner, base, rest = name.rpartition(_BASE)
        if base:
            changed = rest == "weight"
            delta = sum(adapted[owner].get_delta_weight(a) for a in adapted[owner].active_adapters) if changed else 0
            weights[f"{owner}.{rest}"] = value + delta
        elif ".lora_" not in name:
            weights[name] = value
    return weights
