"""From the words after a command to checked settings: YAML defaults, a file of the user's, flags.

Every mistake is found before a model is loaded.
"""

import argparse
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import yaml

from common.errors import UserError, nearest
from common.training.settings import TaskSettings

ROOT = Path(__file__).resolve().parents[2]
NONE_WORDS = ("null", "none", "None")

Settings = TypeVar("Settings", bound=TaskSettings)


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


@dataclass(frozen=True)
class CommandLine(Generic[Settings]):
    """A command whose options are those of a task's settings.

    Attributes:
        settings: of the task, by which what is set is checked.
        defaults: YAML file that sets every option and explains it in a comment, in sections named ``# --- group ---``.
        program: name of the command.
        description: what it does.
    """

    settings: type[Settings]
    defaults: Path
    program: str
    description: str

    def read(self, words: Sequence[str]) -> Settings:
        """Settings from the defaults, then the file after ``--config``, then the flags.

        Raises:
            UserError: an unknown flag or key (naming the nearest), a file that cannot be read, a value of the wrong
                type or out of range.
        """
        given, rest = self._parser().parse_known_args(list(words))
        if rest:
            self._refuse(rest[0])
        flags = {name: value for name, value in vars(given).items() if value is not None and name != "config"}
        values = {**read_yaml(self.defaults), **(self._config_values(given.config) if given.config else {}), **flags}
        return self.settings.from_mapping({name: self._value(name, value) for name, value in values.items()})

    def _config_values(self, path: str) -> dict[str, Any]:
        """The options of a configuration file: a path, also one from the project's folder, or a shipped one's name.

        Raises:
            UserError: it is not there, no YAML mapping, or has an unknown key.
        """
        places = [Path(path), ROOT / path, ROOT / "configs" / f"{path}.yaml"]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            names = [shipped.stem for shipped in sorted((ROOT / "configs").glob("*.yaml"))]
            raise UserError(f"--config: there is no file '{path}'{nearest(path, names)} (shipped: {', '.join(names)})")
        values = read_yaml(file, named=path)
        if values.keys() == {"command", "options", "environment"}:
            values = values["options"]  # the config.yaml of an earlier run
        for key in values:
            if key not in self._kinds:
                raise UserError(f"--config {path}: unknown option '{key}'{nearest(str(key), self._kinds)}")
        return values

    @cached_property
    def explained_options(self) -> tuple[Option, ...]:
        """The options with their groups and explanations, read off the comments of the defaults."""
        options: list[Option] = []
        group = ""
        for line in self.defaults.read_text(encoding="utf-8").splitlines():
            if heading := re.fullmatch(r"# --- (.+) ---", line):
                group = heading[1]
            elif entry := re.fullmatch(r"(\w+):.*?\s# (.*)", line):
                options.append(Option(entry[1], group, entry[2]))
            elif more := re.fullmatch(r"\s+# (.*)", line):
                options[-1] = dataclasses.replace(options[-1], help=f"{options[-1].help} {more[1]}")
        return tuple(options)

    def _parser(self) -> argparse.ArgumentParser:
        parser = _Parser(
            prog=self.program,
            usage=f"{self.program} [--config FILE] [--option value ...]",
            description=self.description,
            allow_abbrev=False,
            add_help=False,
        )
        parser.add_argument("-h", "--help", action="help", help="show this and leave")
        parser.add_argument(
            "--config", metavar="FILE", help="YAML file of options, or a shipped one's name; flags win over it"
        )
        defaults = read_yaml(self.defaults)
        groups: dict[str, Any] = {}
        for option in self.explained_options:
            if option.group not in groups:
                groups[option.group] = parser.add_argument_group(option.group)
            text = f"{option.help} (default: {yaml_word(defaults[option.name])})".replace("%", "%%")
            bare: dict[str, Any] = {"metavar": "VALUE"}
            if self._kinds[option.name][0] is bool:
                bare = {"nargs": "?", "const": "true", "metavar": "true|false"}
            elif option.name == "resume":
                bare = {"nargs": "?", "const": "auto", "metavar": "none|auto|changed"}
            groups[option.group].add_argument(f"--{option.name}", help=text, **bare)
        return parser

    def _refuse(self, word: str) -> NoReturn:
        names = [f"--{option.name}" for option in self.explained_options] + ["--config", "--help"]
        flag = word.split("=")[0]
        if not flag.startswith("-"):
            raise UserError(
                f"'{word}' belongs to no flag; options are set as --name=value{nearest(f'--{flag}', names)}"
            )
        raise UserError(f"unknown flag '{flag}'{nearest(flag, names)}")

    @cached_property
    def _kinds(self) -> dict[str, tuple[Any, bool]]:
        return self.settings.kinds()

    def _value(self, name: str, value: Any) -> Any:
        """A word that stands for nothing or for a list as what it means; of other words the check makes numbers."""
        if not isinstance(value, str) or name not in self._kinds:
            return value
        kind, optional = self._kinds[name]
        if kind is list:
            return [] if value in ("", *NONE_WORDS) else value.split(",")
        return None if optional and value in NONE_WORDS else value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def yaml_word(value: Any) -> str:
    """A default as it is typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, str) and value != value.strip() else str(value)


def read_yaml(path: Path, named: str = "") -> dict[str, Any]:
    """The options of a YAML file.

    Raises:
        UserError: it cannot be read or holds no options; `named` is how the user called it.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config: cannot read '{named or path}': {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config: '{named or path}' is no YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config: '{named or path}' holds no options, such as seed: 1")
    return values
