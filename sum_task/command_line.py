"""From the words after a command to checked settings. Every mistake is found before a model is loaded."""

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import yaml

from common.errors import UserError, nearest
from sum_task.settings import SummarizationSettings

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = ROOT / "configs" / "sum_config.yaml"
NONE_WORDS = ("null", "none", "None")


@dataclass(frozen=True)
class Option:
    """One line of the file of defaults.

    Attributes:
        name: the option.
        group: the section it stands in.
        help: its comment.
    """

    name: str
    group: str
    help: str


def read_command(words: Sequence[str]) -> SummarizationSettings:
    """Settings from the defaults, then the file after ``--config``, then the flags.

    Raises:
        UserError: an unknown flag or key (naming the nearest), a file that cannot be read, a value of the wrong
            type or out of range.
    """
    parser = _parser()
    given, rest = parser.parse_known_args(list(words))
    if rest:
        _refuse(rest[0])
    flags = {name: value for name, value in vars(given).items() if value is not None and name != "config"}
    values = {**_read_yaml(DEFAULTS), **(config_values(given.config) if given.config else {}), **flags}
    return SummarizationSettings.from_mapping(_typed(values))


def config_values(path: str) -> dict[str, Any]:
    """The options of a configuration file; a relative path may also start at the project's folder.

    Raises:
        UserError: it is not there, no YAML mapping, or has an unknown key.
    """
    file = Path(path) if Path(path).is_file() else ROOT / path
    values = _read_yaml(file, named=path)
    if values.keys() == {"command", "options", "environment"}:
        values = values["options"]  # the config.yaml of an earlier run
    names = [field.name for field in dataclasses.fields(SummarizationSettings)]
    for key in values:
        if key not in names:
            raise UserError(f"--config {path}: unknown option '{key}'{nearest(str(key), names)}")
    return values


@cache
def explained_options() -> tuple[Option, ...]:
    """The options with their groups and explanations, read off the comments of configs/sum_config.yaml."""
    options: list[Option] = []
    group = ""
    for line in DEFAULTS.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"# --- (.+) ---", line):
            group = heading[1]
        elif entry := re.fullmatch(r"(\w+):.*?\s# (.*)", line):
            options.append(Option(entry[1], group, entry[2]))
        elif more := re.fullmatch(r"\s+# (.*)", line):
            options[-1] = dataclasses.replace(options[-1], help=f"{options[-1].help} {more[1]}")
    return tuple(options)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run_sum.py",
        usage="run_sum.py [--config FILE] [--option value ...]",
        description="Trains a summarizer with learned token-level guidance and tests it.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help="show this and leave")
    parser.add_argument("--config", metavar="FILE", help="YAML file with defaults; flags win over it")
    defaults = _read_yaml(DEFAULTS)
    groups: dict[str, Any] = {}
    for option in explained_options():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        text = f"{option.help} (default: {yaml_word(defaults[option.name])})".replace("%", "%%")
        if _kind(option.name)[0] is bool:
            groups[option.group].add_argument(
                f"--{option.name}", nargs="?", const="true", metavar="true|false", help=text
            )
        elif option.name == "resume":
            groups[option.group].add_argument(
                "--resume", nargs="?", const="auto", metavar="none|auto|changed", help=text
            )
        else:
            groups[option.group].add_argument(f"--{option.name}", metavar="VALUE", help=text)
    return parser


def yaml_word(value: Any) -> str:
    """A default as it is typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, str) and value != value.strip() else str(value)


def _refuse(word: str) -> NoReturn:
    names = [f"--{option.name}" for option in explained_options()] + ["--config", "--help"]
    flag = word.split("=")[0]
    if not flag.startswith("-"):
        raise UserError(f"'{word}' belongs to no flag; options are set as --name=value{nearest(f'--{flag}', names)}")
    raise UserError(f"unknown flag '{flag}'{nearest(flag, names)}")


def _read_yaml(path: Path, named: str = "") -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config: cannot read '{named or path}': {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config: '{named or path}' is no YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config: '{named or path}' holds no options, such as seed: 1")
    return values


@cache
def _hints() -> Mapping[str, Any]:
    return typing.get_type_hints(SummarizationSettings)


def _kind(name: str) -> tuple[Any, bool]:
    """The type of an option and whether it may be None."""
    hint = _hints()[name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(option for option in options if option is not type(None))
    return typing.get_origin(kind) or kind, type(None) in options


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Words as numbers, truth values and lists where the option is one; what does not fit is left for the check.

    YAML needs this too: it reads 5e-5 as a word.
    """
    return {name: _value(name, value) for name, value in values.items()}


def _value(name: str, value: Any) -> Any:
    if not isinstance(value, str) or name not in _hints():
        return value
    kind, optional = _kind(name)
    if optional and value in NONE_WORDS:
        return None
    if kind is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    if kind is tuple:
        return [] if value in ("", *NONE_WORDS) else value.split(",")
    if kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            return value
    return value
