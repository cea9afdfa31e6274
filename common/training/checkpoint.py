"""Checkpoints of safetensors and JSON: written whole or not at all, loaded without running anything from them."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.errors import UserError
from common.training.files import write_folder_atomic

FORMAT = 1


class StateTree:
    """Collects named parts of a run's state: tensors under ``part/name``, JSON values under ``part``.

    Attributes:
        run: the folder of the run that it was loaded from, below which it lies in ``checkpoints``; None of a new one.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor] | None = None,
        values: dict[str, Any] | None = None,
        run: Path | None = None,
    ):
        self.tensors = tensors or {}
        self.values = values or {}
        self.run = run

    def put(self, part: str, tensors: Mapping[str, torch.Tensor], values: Any = None) -> None:
        """Add one part."""
        self.tensors |= {f"{part}/{name}": tensor for name, tensor in tensors.items()}
        self.values[part] = values

    def get(self, part: str) -> tuple[dict[str, torch.Tensor], Any]:
        """Return one part as (tensors, JSON)."""
        prefix = f"{part}/"
        tensors = {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}
        return tensors, self.values[part]


def save_checkpoint(folder: Path, state: StateTree) -> None:
    """Write `state` as ``state.safetensors`` and ``state.json`` in `folder`; a kill leaves no half of it."""
    # Tied or expanded tensors share memory, which safetensors refuses; a checkpoint holds plain copies.
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.tensors.items()}
    folder.parent.mkdir(exist_ok=True)  # no parents: the folder of a run that was removed does not come back half
    with write_folder_atomic(folder) as temporary:
        save_file(tensors, temporary / "state.safetensors")
        head = {"format": FORMAT, "tensors": sorted(tensors), "values": state.values}
        head["sha256"] = _checksum(temporary / "state.safetensors", state.values)
        text = json.dumps(head)
        (temporary / "state.json").write_text(text, encoding="utf-8")


def load_checkpoint(folder: Path) -> StateTree:
    """Read what `save_checkpoint` wrote.

    Raises:
        UserError: there is no checkpoint, or it is truncated or of another program.
    """
    if not (folder / "state.json").is_file():
        raise UserError(f"no checkpoint in '{folder}': it has no state.json")
    try:
        head = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        checksum = _checksum(folder / "state.safetensors", head["values"])
        if head.get("sha256", checksum) != checksum:  # those of older versions have none
            raise ValueError("its content is not what was written; it has another checksum")
        tensors = load_file(folder / "state.safetensors")
        if head["format"] != FORMAT or sorted(tensors) != head["tensors"]:
            raise ValueError("its parts do not belong together")
        return StateTree(tensors, head["values"], folder.parent.parent)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise UserError(
            f"the checkpoint '{folder}' cannot be read: {error}; without that folder, resuming takes the one before it"
        ) from None


def _checksum(tensors: Path, values: Any) -> str:
    """Of both files' content; what JSON makes of `values` is the same before and after it is written."""
    digest = hashlib.sha256(json.dumps(values).encode())
    with open(tensors, "rb") as file:
        while piece := file.read(2**22):
            digest.update(piece)
    return digest.hexdigest()


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints below `folder`, which are named ``step-N``, oldest first; what is named otherwise is none."""
    steps = [
        p for p in folder.glob("step-*") if re.fullmatch("[0-9]{1,18}", p.name[5:]) and (p / "state.json").is_file()
    ]
    return sorted(steps, key=lambda p: int(p.name[5:]))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint below `folder`, or None."""
    return next(reversed(checkpoint_folders(folder)), None)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as (tensors, JSON)."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value
        for index, entries in state["state"].items()
        for name, value in entries.items()
        if isinstance(value, torch.Tensor)
    }
    rates = [group["lr"] for group in optimizer.param_groups]
    others = {
        f"{index}.{name}": value
        for index, entries in state["state"].items()
        for name, value in entries.items()
        if not isinstance(value, torch.Tensor)
    }
    values = {"learning_rates": rates, "first_rate": optimizer.defaults["lr"]}
    return tensors, values | ({"others": others} if others else {})


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]
) -> None:
    """Undo `optimizer_state` for an optimizer over the same parameters.

    Where this one was made with another rate, what a schedule has made of the rate so far is made of the new one.
    """
    first, now = values.get("first_rate"), optimizer.defaults["lr"]
    change = 1.0 if first is None or first == now else now / first
    state = optimizer.state_dict()
    entries: dict[int, dict[str, Any]] = {}
    for key, value in (dict(tensors) | values.get("others", {})).items():
        index, name = key.split(".", 1)
        entries.setdefault(int(index), {})[name] = value
    state["state"] = entries
    for group, rate in zip(state["param_groups"], values["learning_rates"], strict=True):
        group["lr"] = rate * change
    optimizer.load_state_dict(state)
