"""Low-rank adapters (LoRA) inside a model, by the optional package peft."""

import importlib.util
import re
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from common.errors import UserError
from common.language_models.evaluation_mode import evaluation_mode

_BASE = r"(\.base_layer)+\."


def check_adapters(rank: int) -> None:
    """Check, before any work is done, that the package is there if adapters are asked for.

    Raises:
        UserError: it is not; the message says how to install it.
    """
    if rank > 0 and importlib.util.find_spec("peft") is None:
        raise UserError("lora_rank: adapters need the package peft; install it with: python -m pip install peft")


def check_rank(option: str, rank: int, model: PreTrainedModel) -> None:
    """Refuse a rank that no weight of a model has: a product of so wide factors holds nothing more, and takes for ever.

    Raises:
        UserError: it is one, naming the option.
    """
    largest = max(min(weight.shape[-2:]) for weight in model.parameters() if weight.dim() > 1)
    if rank > largest:
        raise UserError(f"{option}: {rank} is more than the rank of any weight of this model, {largest} at most")


def add_adapters(model: PreTrainedModel, rank: int, alpha: float) -> None:
    """Put adapters into all linear layers but the output layer, and freeze the rest; rank 0 does nothing.

    In a mixture of experts peft adapts the fused weights of the experts too.

    Args:
        model: changed in place.
        rank: of the product B A that is added to a layer's weight.
        alpha: the product is scaled by ``alpha / rank``.

    Raises:
        UserError: `rank` is too large for it, its layers take none, or it cannot be read with them.
    """
    if rank == 0:
        return
    check_rank("lora_rank", rank, model)
    from peft import LoraConfig, inject_adapter_in_model  # an optional package

    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": "all-linear"}
    try:
        inject_adapter_in_model(LoraConfig(**options), model)
    except (ValueError, NotImplementedError) as error:  # peft knows families whose layers it cannot adapt
        raise UserError(f"lora_rank: {type(model).__name__} takes no adapters: {error}") from None
    _try(model)


@torch.no_grad()
def _try(model: PreTrainedModel) -> None:
    """Read two tokens: an adapter does not know what some layers, such as routers of experts, give."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    targets = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        with evaluation_mode(model):
            model(input_ids=ids, use_cache=False, **targets)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        problem = str(error).split("\n")[0]
        raise UserError(f"lora_rank: {type(model).__name__} cannot be read with adapters: {problem}") from None


def merged_state_dict(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """The weights with the adapters added to those they belong to, under the names of a model without adapters.

    An adapter belongs to the weight of a layer, or to a parameter of another module, such as the fused experts of a
    mixture; a module with several of them has one wrapped around the other. The model stays as it is. None where it
    has no adapters.
    """
    adapted: list[Any] = [module for module in model.modules() if hasattr(module, "get_delta_weight")]
    if not adapted:
        return None
    deltas: dict[int, Tensor] = {}
    for module in adapted:
        parameter = getattr(module.get_base_layer(), getattr(module, "parameter_name", "weight"))
        delta = sum(module.get_delta_weight(adapter) for adapter in module.active_adapters)
        deltas[id(parameter)] = deltas.get(id(parameter), 0) + delta
    return {
        re.sub(_BASE, ".", name): (value + deltas[id(value)] if id(value) in deltas else value).detach()
        for name, value in model.state_dict(keep_vars=True).items()
        if ".lora_" not in name
    }


def weights_to_save(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """The weights as one process can write them: adapters merged, parts that FSDP keeps in several processes together.

    Every process has to ask for parts, and the first one gets them. None: those of the model, as they are.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # what the last pass left together
    state: dict[str, Any] | None = merged_state_dict(model)
    if not is_in_parts(model):
        return state
    is_first, found = torch.distributed.get_rank() == 0, {}
    whole: dict[tuple[int, str], Tensor] = {}  # weights that are one, such as of embeddings and LM head, stay one
    for name, value in (state or model.state_dict()).items():
        own = value.to_local() if isinstance(value, DTensor) else value
        key = (own.data_ptr(), "") if own.numel() else (0, name)
        if key not in whole:
            gathered = value.full_tensor() if isinstance(value, DTensor) else value
            whole[key] = gathered.detach().cpu() if is_first else own
        if is_first:
            found[name] = whole[key]
    return found


def is_in_parts(model: torch.nn.Module) -> bool:
    """Whether each process holds a part of the weights."""
    return any(isinstance(module, FSDPModule) for module in model.modules())
