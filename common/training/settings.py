"""Options as data: dataclasses in groups, which OmegaConf checks as structured configs.

A task's settings are a dataclass of groups, and a group is what one part of the code reads. Names are flat on the
command line and in files: an option that two parts read is a field of both groups and has one value.
"""

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from common.aggregation import AGGREGATIONS
from common.errors import UserError, UserErrors, nearest
from common.training.own_pieces import check_aggregation, is_own
from common.training.plateau import PlateauSettings
from common.training.ranges import KINDS, MOST_SHOWN, no_text, out_of_range, shown
from common.training.runtime import MATMUL_PRECISIONS


def setting(
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    own: Callable[[str, str], None] | None = None,
) -> Any:
    """A dataclass field with the values it allows: ``minimum <= x``, ``above < x``, ``x <= maximum``, `choices`.

    Numbers without bounds have those of `out_of_range`.
    Beside the choices, ``package.module:function`` where `own` tries such a function out, by the option and its value.
    """
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "choices": choices, "own": own}
    return dataclasses.field(metadata=limits)


@dataclass(frozen=True)
class TaskSettings:
    """A task's options. A subclass has a field for each group."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> typing.Self:
        """From the value of each option: a word is converted to what the option is, a switch also takes 1 and 0.

        Raises:
            UserError: an unknown option (naming the nearest), a missing one, a value of the wrong type or out of range,
                or options that contradict each other; `UserErrors` where there are several.
        """
        kinds = cls.kinds()
        mistakes = {str(key): f"unknown option '{key}'{nearest(str(key), kinds)}" for key in values if key not in kinds}
        groups = {}
        for name, group in typing.get_type_hints(cls).items():
            config = OmegaConf.structured(group)
            OmegaConf.set_readonly(config, False)  # until it is filled
            for field in dataclasses.fields(group):
                try:
                    _set(config, field, kinds[field.name], values)
                except UserError as error:
                    mistakes[field.name] = str(error)
            groups[name] = config
        if len(mistakes) > 1:
            raise UserErrors(list(mistakes.values()))
        if mistakes:
            raise UserError(*mistakes.values())
        settings = cls(**{name: OmegaConf.to_object(config) for name, config in groups.items()})
        settings.check()
        return settings

    @classmethod
    def kinds(cls) -> dict[str, tuple[Any, bool]]:
        """Of each option its type, and whether it may be None."""
        kinds = {}
        for group in typing.get_type_hints(cls).values():
            for name, hint in typing.get_type_hints(group).items():
                kind, *none = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
                kinds[name] = (typing.get_origin(kind) or kind, bool(none))
        return kinds

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            UserError: they do.
        """

    def options(self) -> dict[str, Any]:
        """Every option with its value, as plain data."""
        return {name: value for group in dataclasses.asdict(self).values() for name, value in group.items()}

    def replaced(self, **changes: Any) -> typing.Self:
        """The same with some options changed, checked again."""
        return self.from_mapping(self.options() | changes)


def option_names(*groups: type) -> frozenset[str]:
    """The options of groups of settings."""
    return frozenset(field.name for group in groups for field in dataclasses.fields(group))


def _set(config: Any, field: dataclasses.Field[Any], kind: tuple[Any, bool], values: Mapping[str, Any]) -> None:
    """Give an option of a structured config its value. What OmegaConf would take and no user means is refused."""
    name, (of, _) = field.name, kind
    if name not in values:
        raise UserError(f"option '{name}' is not set")
    value = values[name]
    wrong = UserError(f"{name}: {f'{shown(value)} is not {KINDS[of]}' if value is not None else 'a value is needed'}")
    no_switch = of is bool and value is not None and str(value).lower() not in ("true", "false", "1", "0")
    if no_switch or (of is str and isinstance(value, bool)):
        raise wrong
    try:
        config[name] = _literal(value)
        value = OmegaConf.to_object(config[name]) if of is list else config[name]
    except (OverflowError, ValidationError):
        raise wrong from None
    except OmegaConfBaseException as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}") from None
    choices, own = field.metadata["choices"], field.metadata["own"]
    if own is not None and isinstance(value, str) and is_own(value):
        own(name, value)
    elif choices is not None and value is not None and value not in choices:
        close = nearest(str(value)[:MOST_SHOWN], choices)
        raise UserError(f"{name}: {shown(value)} is not one of {', '.join(choices)}{close}")
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and (words := no_text(text)):
            raise UserError(f"{name}: {words}")
    if of in (int, float) and value is not None and (words := out_of_range(value, field.metadata)):
        raise UserError(f"{name}: {words}")


def _literal(value: Any) -> Any:
    """What OmegaConf reads as the same value: ${ in a text is no interpolation, of which Hydra has resolved its own."""
    if isinstance(value, list | tuple):
        return [_literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


# The options of a run as such that may differ between it and its continuation: none of them changes a result.
NEUTRAL = {
    "overwrite", "resume", "extend", "checkpoint_path", "checkpoint_minutes", "checkpoint_steps", "keep_checkpoints",
    "device", "num_threads", "log_every", "report_to", "quiet", "verbose",
}  # fmt: skip


# Groups, and parts of groups, that tasks have in common. The files of configs/ explain the options.


@dataclass(frozen=True)
class RunSettings:
    """What every run as such reads."""

    device: str = setting()
    num_threads: int | None = setting(minimum=1, maximum=1024)
    matmul_precision: str | None = setting(choices=MATMUL_PRECISIONS)
    mixed_precision: str = setting(choices=("no", "bf16", "fp16"))
    overwrite: bool = setting()
    resume: str = setting(choices=("none", "auto", "changed"))
    extend: bool = setting()
    checkpoint_path: str | None = setting()
    checkpoint_minutes: float = setting(minimum=0)
    checkpoint_steps: int = setting(minimum=0)
    keep_checkpoints: int = setting(minimum=1)
    report_to: list[str] = setting()
    quiet: bool = setting()
    verbose: bool = setting()

    def check_switches(self) -> None:
        """Refuse those that contradict each other."""
        if self.resume != "none" and self.overwrite:
            raise UserError(f"resume={self.resume} keeps the run there is and overwrite=true replaces it; set one")
        if self.extend and (self.overwrite or self.checkpoint_path is not None):
            raise UserError("extend goes on from the end of the run there is: set no overwrite and no checkpoint_path")
        if self.quiet and self.verbose:
            raise UserError("quiet and verbose contradict each other; set one")


@dataclass(frozen=True)
class NamedRunSettings(RunSettings):
    """A run whose folder and randomness have the names of the newer tasks."""

    seed: int = setting(minimum=0, maximum=2**32 - 1)
    output_dir: str | None = setting()
    expid: str | None = setting()

    def folder(self, task: str, data: str, arm: str) -> Path:
        """``output_dir``, or by default ``outputs/TASK/DATA/ARM-SEED``: what distinguishes runs."""
        if self.output_dir is not None:
            return Path(self.output_dir)
        name = "-".join([arm, str(self.seed), *([] if self.expid is None else [self.expid])])
        return Path("outputs", task, data.replace("/", "-"), name)


@dataclass(frozen=True)
class ScoreSettings:
    """How token rewards become the score of a sequence."""

    agg_func: str = setting(choices=AGGREGATIONS, own=check_aggregation)
    soft_maxmin_temp: float = setting(above=0)


@dataclass(frozen=True)
class ClipSettings:
    """How far one step may go."""

    gradient_clip: bool = setting()
    gradient_clip_norm: float = setting(above=0)

    @property
    def clip_norm(self) -> float | None:
        """Largest gradient norm, or None."""
        return self.gradient_clip_norm if self.gradient_clip else None


@dataclass(frozen=True)
class ScheduleSettings:
    """What validations make of the learning rate, and when they end the training."""

    lr_decay: float = setting(above=0, maximum=1)
    weight_decay_count: int = setting(minimum=0)
    early_stop_count: int = setting(minimum=1)

    def plateau(self, higher_is_better: bool = False) -> PlateauSettings:
        """The rule of :class:`~common.training.plateau.Plateau`."""
        return PlateauSettings(
            factor=self.lr_decay,
            patience=self.weight_decay_count,
            stop_after=self.early_stop_count,
            higher_is_better=higher_is_better,
        )


@dataclass(frozen=True)
class AdapterSettings:
    """What of a model is trained, and in how much memory."""

    gradient_checkpointing: bool = setting()
    lora_rank: int = setting(minimum=0, maximum=2**16)
    lora_alpha: float = setting(above=0, maximum=1e6)
