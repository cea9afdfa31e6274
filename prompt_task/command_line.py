"""From the words after a command to checked settings. Every mistake is found before a model is loaded."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from common.errors import UserError, UserErrors, nearest
from prompt_task.few_shot_data import DatasetSpec
from prompt_task.settings import FewShotSettings

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class Command:
    """A checked command line.

    Attributes:
        settings: the options.
        spec: the data set.
        extra: options that only this command knows.
        options: all of them as plain data, for the run folder.
    """

    settings: FewShotSettings
    spec: DatasetSpec
    extra: dict[str, Any]
    options: dict[str, Any]


def read_command(words: Sequence[str], extra: dict[str, Any] | None = None) -> Command:
    """Compose the configuration of ``[--config-name NAME] [--config-dir DIR] key=value ...`` and check it.

    Args:
        words: the command line without the program's name.
        extra: further keys that the command takes, with their defaults.

    Raises:
        UserError: an unknown key (naming the nearest), an unknown data set or configuration, a value of the wrong
            type or out of range.
    """
    config_name, config_dirs, overrides = _split(words)
    file = _given_file(config_name, config_dirs)
    if file is not None:
        config_name = _store(file)
    else:
        _check_name(config_name, "--config-name", CONFIGS, skip=("dataset",))
    values = _compose(config_name, config_dirs, overrides, extra or {})
    return command_from(values, extra or {})


def check_sweep(words: Sequence[str]) -> None:
    """Check the runs that ``--multirun`` would start: every value of each option, the others at their first.

    Raises:
        UserError: see `read_command`.
    """
    parser = OverridesParser.create()
    choices = []
    for word in words:
        if word in ("--multirun", "-m"):
            continue
        values = [word]
        if "=" in word and not word.startswith("-"):
            try:
                override = parser.parse_override(word)
                if override.is_sweep_override():
                    values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            except HydraException:
                pass  # `read_command` says what is wrong with it
        choices.append(values)
    first = [values[0] for values in choices]
    read_command(first)
    for i, values in enumerate(choices):
        for value in values[1:]:
            read_command([*first[:i], value, *first[i + 1 :]])


def command_from(values: dict[str, Any], extra: dict[str, Any]) -> Command:
    """Check a composed configuration."""
    values = {key: value for key, value in values.items() if key != "hydra"}
    own = {key: values.pop(key) for key in extra}
    dataset = values.pop("dataset", None)
    if not isinstance(dataset, dict):
        raise UserError("dataset: must name a file of configs/dataset")
    settings = FewShotSettings.from_mapping(values)
    spec = DatasetSpec.from_mapping(dataset, settings.classifier.task_lm)
    return Command(settings, spec, own, settings.options() | {"dataset": dataset} | own)


def _split(words: Sequence[str]) -> tuple[str, list[str], list[str]]:
    config_name, config_dirs, overrides = "fsc_config", [], []
    waiting = ""
    for word in words:
        name, equals, value = word.partition("=")
        if waiting or name in ("--config-name", "-cn", "--config-dir", "-cd"):
            if not waiting and not equals:
                waiting = name
                continue
            name, value = (waiting, word) if waiting else (name, value)
            waiting = ""
            if name in ("--config-name", "-cn"):
                config_name = value.removesuffix(".yaml")
            else:
                config_dirs.append(value)
        elif word.startswith("-"):
            flags = ("--config-name", "--config-dir", "--multirun", "--help")
            if name in flags:
                raise UserError(f"'{word}' has no place here")
            raise UserError(f"unknown flag '{word}'{nearest(word, flags)} (options are set as key=value)")
        elif not equals and not word.startswith("~"):
            raise UserError(f"'{word}' is not of the form key=value")
        else:
            overrides.append(word)
    if waiting:
        raise UserError(f"{waiting} needs a value")
    return config_name, config_dirs, overrides


def _given_file(name: str, config_dirs: list[str]) -> Path | None:
    """The user's own configuration that ``--config-name`` means: a path, or a name in one of the ``--config-dir``."""
    candidates = [Path(folder, f"{name}.yaml") for folder in config_dirs]
    if os.sep in name:
        candidates.append(Path(f"{name}.yaml"))
        if not candidates[-1].is_file():
            raise UserError(f"--config-name: there is no file '{name}.yaml'")
    return next((path for path in candidates if path.is_file()), None)


def _store(path: Path) -> str:
    """Make a user's file a configuration that Hydra composes on top of the defaults. Returns its name.

    Such a file is the published one as it stands, or one like those of configs/ with a list of defaults.

    Raises:
        UserError: it is no YAML mapping; `UserErrors`: it has keys that are no options, a line each.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"--config-name: cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config-name: {path} holds no options, such as random_seed: 1")
    names = list(FewShotSettings.kinds())
    known = {*names, "dataset", "defaults", "hydra"}
    unknown = [f"{path}: unknown option '{key}'{nearest(key, names)}" for key in map(str, values) if key not in known]
    if unknown:
        raise UserErrors(unknown)
    defaults = values.setdefault("defaults", ["fsc_config", "_self_"])
    if isinstance(values.get("dataset"), str):  # published: a key; here: one of the files of configs/dataset
        dataset = values.pop("dataset")
        _check_name(dataset, f"{path}: dataset", CONFIGS / "dataset")
        defaults.insert(
            defaults.index("_self_") if "_self_" in defaults else len(defaults), {"override dataset": dataset}
        )
    ConfigStore.instance().store(name="given", node=values)
    return "given"


def _check_name(name: str, what: str, folder: Path, skip: Sequence[str] = ()) -> None:
    known = sorted(path.stem for path in folder.glob("*.yaml") if path.stem not in skip)
    if name not in known:
        raise UserError(
            f"{what}: there is no '{name}' in {folder}{nearest(name, known)} (there are: {', '.join(known)})"
        )


def _compose(config_name: str, config_dirs: list[str], overrides: list[str], extra: dict[str, Any]) -> dict[str, Any]:
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir: '{folder}' is not a folder")
    search = [f"file://{Path(folder).resolve()}" for folder in config_dirs]
    own = [f"hydra.searchpath=[{','.join(search)}]"] if search else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            known = compose(config_name, overrides=own)
            OmegaConf.set_struct(known, False)
            _check_overrides(overrides, [str(key) for key in known], extra, config_dirs)
            plain = [word for word in overrides if word.split("=", 1)[0].lstrip("+~") not in extra]
            config = compose(config_name, overrides=own + plain)
            values = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_first_line(error)) from None
    assert isinstance(values, dict)
    named = {str(key): value for key, value in values.items()}
    typed = {word.split("=", 1)[0].lstrip("+~") for word in overrides}
    if "dataset.verbalizers" in typed and isinstance(named.get("dataset"), dict):
        named["dataset"].pop("verbalizers_by_task_lm", None)  # what is typed wins
    return named | extra | _extra_values(overrides, extra)


def _extra_values(overrides: list[str], extra: dict[str, Any]) -> dict[str, Any]:
    """A command's own keys are taken as they were typed: no parser of options comes between."""
    pairs = (word.split("=", 1) for word in overrides if "=" in word)
    return {key: value for key, value in pairs if key in extra}


def _check_overrides(overrides: list[str], known: list[str], extra: dict[str, Any], config_dirs: list[str]) -> None:
    names = [*known, *extra]
    parser = OverridesParser.create()
    for word in overrides:
        key = word.split("=", 1)[0].lstrip("+~")
        top = re.split(r"[./@]", key)[0]
        if top not in names and top != "hydra":
            raise UserError(f"unknown option '{key}'{nearest(key, names)}")
        if key == "dataset" and "=" in word and not config_dirs:
            _check_name(word.split("=", 1)[1], "dataset", CONFIGS / "dataset")
        if key in extra:
            continue
        try:
            parser.parse_override(word)
        except HydraException as error:
            raise UserError(f"{key}: cannot read the value of '{word}': {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def help_text(program: str, config: Path = CONFIGS / "fsc_config.yaml") -> str:
    """What ``--help`` prints: usage and the configuration file, in which every key is explained."""
    return (
        f"usage: {program} [--config-name NAME] [--config-dir DIR] [key=value ...]\n"
        f"       {program} --multirun key=value1,value2 ...\n\n"
        f"--config-name NAME   a file of configs/ or DIR to start from, for example builtin, or a path to one\n"
        f"--config-dir DIR     a folder with configurations of your own, such as DIR/dataset/mine.yaml\n"
        f"--multirun           run every combination of the comma-separated values\n\n"
        f"The options and their defaults:\n\n{config.read_text(encoding='utf-8')}"
    )
