"""Loading of pretrained models and tokenizers, the same way everywhere: safetensors, no remote code, clear errors."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from common.builtin import resolve
from common.errors import UserError

logger = logging.getLogger(__name__)


def load_pretrained(auto_class: Any, name: str, complete: bool = False, **options: Any) -> Any:
    """``auto_class.from_pretrained`` for a hub id, a folder or a ``builtin/...`` name.

    Args:
        auto_class: AutoConfig or an AutoModelFor... class of transformers.
        name: what to load.
        complete: the file must hold every weight of the class; a missing LM head would otherwise be random.
        options: passed on, for example ``dtype``.

    Raises:
        UserError: it cannot be loaded, or `complete` and weights are missing.
    """
    path = resolve(name)
    check_index(path)
    is_model = "Model" in auto_class.__name__
    if is_model:
        options |= {"use_safetensors": True, "output_loading_info": True}
        # Shapes that differ are collected with the missing weights, for one error below.
        options |= {"ignore_mismatched_sizes": complete}
    # What transformers would warn of while loading, missing weights, is checked below.
    noisy = logging.getLogger("transformers")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        loaded = auto_class.from_pretrained(path, trust_remote_code=False, **options)
    except Exception as error:  # what a stranger's configuration makes transformers raise is not known
        raise UserError(f"cannot load '{name}' with {auto_class.__name__}: {_first_line(error)}") from None
    finally:
        noisy.setLevel(level)
    if not is_model:
        return loaded
    model, info = loaded
    _settle_attention(model, name)
    missing = sorted(key for key in info["missing_keys"] if not (complete and _is_computed(model, key)))
    if complete and (missing or info["mismatched_keys"]):
        missing = missing or sorted(key for key, *_ in info["mismatched_keys"])
        raise UserError(f"'{name}' lacks weights of {type(model).__name__}, among them '{missing[0]}'")
    return model


def load_tokenizer(auto_class: Any, name: str) -> Any:
    """``AutoTokenizer.from_pretrained`` for a hub id, a folder or a ``builtin/...`` name.

    Raises:
        UserError: it cannot be loaded.
    """
    # It looks into the model's configuration, and warns of the kind that a reward model is, which is none of its own.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return auto_class.from_pretrained(resolve(name), trust_remote_code=False)
    except Exception as error:  # as above
        raise UserError(f"cannot load the tokenizer of '{name}': {_first_line(error)}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)


def check_index(name: str) -> None:
    """Refuse a folder, or a model of the hub that was fetched, whose list of weight files leads astray.

    transformers opens what ``*.safetensors.index.json`` names: a pickle among them could run code.

    Raises:
        UserError: it names anything but safetensors files of its own folder.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            fetched = try_to_load_from_cache(name, "config.json")
        except ValueError:  # no id of the hub either, which loading it reports
            return
        if not isinstance(fetched, str):
            return
        folder = Path(fetched).parent
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise UserError(f"'{index}' cannot be read as the list of a model's weight files") from None
        for file in sorted(files, key=str):
            if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file:
                raise UserError(f"'{index}' names {file!r}; only safetensors files of the folder itself are opened")


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Compute activations again in the backward pass instead of keeping them.

    Raises:
        UserError: the family cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(f"gradient_checkpointing: {type(model).__name__} does not support it; leave it false")
    model.activation_checkpointing_enable()


def _settle_attention(model: PreTrainedModel, name: str) -> None:
    """BigBird's kin leave sparse attention for good at the first short text: what was read would change the numbers."""
    switches: list[Any] = [module for module in model.modules() if hasattr(module, "set_attention_type")]
    if not switches:
        return
    if getattr(model.config, "attention_type", "") == "block_sparse":
        logger.warning("'%s': all attention is full; short texts would turn off its sparse attention for good", name)
    model.config.attention_type = "original_full"
    for module in switches:
        module.set_attention_type("original_full")


def _first_line(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    return (
        first if isinstance(error, OSError | ValueError | ImportError) and first else f"{type(error).__name__}: {first}"
    )


def _is_computed(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight is made by the model's class and no file needs to hold it, such as sinusoidal positions.

    Made anew from other random numbers, it is the same; that it is no constant tells it from a bias that starts at 0.
    """
    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    weight = getattr(module, name)
    before = weight.detach().clone()
    if not before.is_floating_point() or bool((before == before.flatten()[0]).all()):
        return False
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        weight.data = torch.full_like(before, torch.nan)
        if hasattr(weight, "_is_hf_initialized"):
            del weight._is_hf_initialized
        model._init_weights(module)
        again = getattr(module, name).detach().clone()
        weight.data = before
    return torch.equal(before, again)
