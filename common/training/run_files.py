"""The files that say what a run was and what came of it, read in one way: what they must be, or one line.

They lie about for months; they are torn by full disks, edited by hand and copied into folders where they do not belong.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.training.inputs import Fingerprint


@dataclass(frozen=True)
class Made:
    """What a run was made from, of ``config.yaml`` or a checkpoint.

    Attributes:
        options: every option.
        inputs: see `fingerprints`; older runs have none.
        events: in ``metrics.jsonl`` when the checkpoint was written; 0 of ``config.yaml``.
        seconds: that the run had worked by then.
    """

    options: dict[str, Any]
    inputs: dict[str, Fingerprint]
    events: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, content: Any, where: Path) -> "Made":
        """Check what a file holds.

        Raises:
            UserError: it is not what a run writes.
        """
        found = content if isinstance(content, dict) else {}
        options, inputs = found.get("options"), found.get("inputs", {})
        events, seconds = found.get("events", 0), found.get("seconds", 0.0)
        right = {
            "options": isinstance(options, dict) and all(isinstance(key, str) for key in options),
            "inputs": isinstance(inputs, dict) and all(map(_is_fingerprint, inputs.values())),
            "events": type(events) is int and events >= 0,
            "seconds": type(seconds) in (int, float) and 0 <= seconds < float("inf"),
        }
        wrong = [name for name, is_right in right.items() if not is_right]
        if wrong:
            raise UserError(f"'{where}' is not what a run writes: {wrong[0]} is missing or damaged")
        return cls(options, inputs, events, seconds)  # type: ignore[arg-type]  # checked by name above


def read_config(path: Path) -> Made:
    """A run's ``config.yaml``.

    Raises:
        UserError: it cannot be read, or is not what a run writes.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise UserError(f"'{path}' cannot be read: {_first_line(error)}") from None
    if not isinstance(content, dict) or not {"command", "options", "environment"} <= content.keys():
        raise UserError(f"'{path}' is not what a run writes: it lacks command, options or environment")
    return Made.of(content, path)


def read_results(path: Path) -> dict[str, Any]:
    """A run's ``results.json``: at least its ``status``, a text.

    Raises:
        UserError: it cannot be read, or is not what a run writes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read: {_first_line(error)}") from None
    if not isinstance(content, dict) or not isinstance(content.get("status"), str):
        raise UserError(f"'{path}' is not what a run writes: its status is missing or no text")
    found: dict[str, Any] = content
    return found


def saved_fields(path: Path, of: type) -> dict[str, Any]:
    """The fields of a dataclass as a JSON file holds them, dataclasses among them made.

    Raises:
        UserError: it cannot be read, or holds what the dataclass does not name, or values of other kinds.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _fields(content, of)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {_first_line(error)}") from None


def _fields(content: Any, of: type) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"it holds no {of.__name__}")
    hints, found = typing.get_type_hints(of), {}
    for name, value in content.items():
        kinds = typing.get_args(hints.get(name)) or (hints.get(name),)
        made: Any = next((kind for kind in kinds if dataclasses.is_dataclass(kind) and isinstance(value, dict)), None)
        allowed = {int, float} & {*kinds} if type(value) is int else {type(value)} & {*kinds}
        if made is None and (not allowed or (isinstance(value, float) and not math.isfinite(value))):
            raise ValueError(f"'{name}' is unknown, or of another kind")
        found[name] = value if made is None else made(**_fields(value, made))
    return found


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(text, str) for item in value.items() for text in item)


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return (str(error).strip() or type(error).__name__).splitlines()[0]
