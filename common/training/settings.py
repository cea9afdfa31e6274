"""Settings as data: a dataclass says each field's type and range, one function checks a mapping against it."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from common.errors import UserError, UserErrors, nearest
from common.training.runtime import MATMUL_PRECISIONS

Settings = TypeVar("Settings")


def setting(
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field with the values it allows: ``minimum <= x``, ``above < x``, ``x <= maximum``, `choices`."""
    return dataclasses.field(metadata={"minimum": minimum, "above": above, "maximum": maximum, "choices": choices})


def plain_options(settings: Any) -> dict[str, Any]:
    """The options of a settings dataclass as plain data."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(settings).items()}


# The options of a run as such that may differ between it and its continuation: none of them changes a result.
NEUTRAL = {
    "overwrite", "resume", "checkpoint_minutes", "checkpoint_steps", "keep_checkpoints", "device", "num_threads",
    "report_to", "quiet", "verbose",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The options that every task has, under the same names; the files of configs/ explain them."""

    device: str = setting()
    num_threads: int | None = setting(minimum=1)
    matmul_precision: str | None = setting(choices=MATMUL_PRECISIONS)
    overwrite: bool = setting()
    resume: str = setting(choices=("none", "auto", "changed"))
    checkpoint_minutes: float = setting(minimum=0)
    checkpoint_steps: int = setting(minimum=0)
    keep_checkpoints: int = setting(minimum=1)
    log_every: int = setting(minimum=1)
    report_to: tuple[str, ...] = setting()
    quiet: bool = setting()
    verbose: bool = setting()

    def check_switches(self) -> None:
        """Refuse those that contradict each other."""
        if self.resume != "none" and self.overwrite:
            raise UserError(f"resume={self.resume} keeps the run there is and overwrite=true replaces it; set one")
        if self.quiet and self.verbose:
            raise UserError("quiet and verbose contradict each other; set one")


def build_settings(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Make the dataclass `cls` from `values`; each key, type and range is checked.

    A switch takes true and false, and 1 and 0, as published commands write it.

    Raises:
        UserError: an unknown key (naming the nearest valid one), a missing one, a value of the wrong type or
            out of range; `UserErrors` where there are several.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    mistakes = [f"unknown option '{key}'{nearest(str(key), fields)}" for key in values if key not in fields]
    hints = typing.get_type_hints(cls)
    checked = {}
    for name, field in fields.items():
        if name not in values:
            mistakes.append(f"option '{name}' is not set")
            continue
        try:
            checked[name] = _checked(name, values[name], hints[name], field.metadata)
        except UserError as error:
            mistakes.append(str(error))
    if len(mistakes) > 1:
        raise UserErrors(mistakes)
    if mistakes:
        raise UserError(mistakes[0])
    return cls(**checked)


def _checked(name: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None:
        if type(None) in options:
            return None
        raise UserError(f"{name}: a value is needed")
    kind = next(option for option in options if option is not type(None))
    if kind is bool and isinstance(value, int) and value in (0, 1):
        value = bool(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # a folder or a data set may be called 2024
    origin = typing.get_origin(kind) or kind
    if origin is tuple and isinstance(value, list):
        value = tuple(value)
        wrong = [item for item in value if not isinstance(item, str)]
        if wrong:
            raise UserError(f"{name}: {wrong[0]!r} in the list is not text")
    if not isinstance(value, origin) or (isinstance(value, bool) and kind is not bool):
        kinds = {
            bool: "true or false (or 1 or 0)",
            int: "a whole number",
            float: "a number",
            str: "text",
            tuple: "a list",
        }
        raise UserError(f"{name}: {value!r} is not {kinds.get(origin, str(origin))}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: {value} is not a finite number")
    choices = limits.get("choices")
    if choices is not None and value not in choices:
        raise UserError(f"{name}: '{value}' is not one of {', '.join(choices)}{nearest(str(value), choices)}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        for limit, holds, words in (
            ("minimum", lambda bound: value >= bound, "at least"),
            ("above", lambda bound: value > bound, "more than"),
            ("maximum", lambda bound: value <= bound, "at most"),
        ):
            bound = limits.get(limit)
            if bound is not None and not holds(bound):
                raise UserError(f"{name}: {value} is out of range; it must be {words} {bound:g}")
    return value
