"""Runs of one task over data sets, seeds and options; see scripts/sweep_fsc.sh, sweep_sum.sh and sweep_chat.sh.

The steps: the words become combinations, each is checked as the runner would check it, what is complete is left out,
and a plan of the rest is written. Hydra's multirun then hands the numbers of the planned runs to one of its launchers
(in order, joblib, submitit, Ray), and whatever process that gives a number to carries it out
(`common.training.sweep_run`).

The joblib and submitit launchers of Hydra were last released in 2022, and the one of Ray asks for an older cloudpickle;
with hydra-core 1.3.8 all three work. One weakness matters: a launcher gives up waiting once it has lost one job, to a
node that went down for example. A run is therefore judged by what it wrote beside the plan, never by what the launcher
returns.
"""

from common.training.program import run_command

import argparse
import importlib.util
import itertools
import os
import re
import shlex
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig

from chat_task import run_chat
from chat_task import settings as chat_settings
from common.errors import Interrupted, UserError, nearest, printable_text
from common.training.checkpoint import latest_checkpoint
from common.training.console import Parser, as_typed
from common.training.interruption import SIGNALS
from common.training.ranges import COUNT
from common.training.run_files import read_config
from common.training.run_folder import RunFolder, check_same_options
from common.training.sweep_run import PLANS, Plan, PlannedRun, carry_out, is_complete
from prompt_task import run_fsc
from prompt_task import settings as fsc_settings
from sum_task import run_sum
from sum_task import settings as sum_settings

ROOT = Path(__file__).resolve().parent.parent
MAX_NAME = 150
NOT_TEXT = ("null", "true", "false", "inf", "nan")
FIRST_IN_NAMES = ("agg_func", "guidance")  # these name a method also where they have one value


class Launcher(NamedTuple):
    """One word of ``--launcher``: Hydra's name of it, the package it needs, and the extra of setup.py with that."""

    hydra_name: str
    package: str
    extra: str


LAUNCHERS = {
    "serial": Launcher("basic", "hydra", ""),
    "local": Launcher("joblib", "hydra_plugins.hydra_joblib_launcher", "sweep"),
    "slurm": Launcher("submitit_slurm", "hydra_plugins.hydra_submitit_launcher", "slurm"),
    "ray": Launcher("ray", "hydra_plugins.hydra_ray_launcher", "ray"),
}


HERE = ("serial", "local")
"""Launchers whose runs are processes of this machine, which end with the sweep."""


class Choice(NamedTuple):
    """One value on one axis of a sweep: the words that set it, and its part of the folder's name."""

    words: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class Task:
    """What a sweep must know of a task.

    Attributes:
        name: "fsc", "sum" or "chat".
        program: the runner.
        dataset: the option that names the data set.
        seeds: the options that hold seeds, each with the word for it in a folder's name.
        own: options that a sweep sets itself.
        neutral: options that change no result, which name no folder.
        word: an option as the runner's command line takes it, from its name and value.
        options: the resolved options of a command line, checked.
        dataset_name: the data set in them.
    """

    name: str
    program: Path
    dataset: str
    seeds: dict[str, str]
    own: tuple[str, ...]
    neutral: set[str]
    word: Callable[[str, Any], str]
    options: Callable[[Sequence[str]], dict[str, Any]]
    dataset_name: Callable[[dict[str, Any]], str]


def dataset_or_file(options: dict[str, Any]) -> str:
    """The data set's name, or that of the file of training rows."""
    return str(options["dataset_name"] or Path(str(options["train_file"])).stem)


TASKS = {
    "fsc": Task(
        name="fsc",
        program=ROOT / "prompt_task" / "run_fsc.py",
        dataset="dataset",
        seeds={"dataset_seed": "split", "random_seed": "seed"},
        own=("output_folder", "overwrite", "resume", "extend", "checkpoint_path"),
        neutral=fsc_settings.NEUTRAL,
        word=lambda name, value: f"{name}={hydra_word(value)}",
        options=lambda words: run_fsc.read_command(words).options,
        dataset_name=lambda options: str(options["dataset"]["name"]),
    ),
    "sum": Task(
        name="sum",
        program=ROOT / "sum_task" / "run_sum.py",
        dataset="dataset_name",
        seeds={"seed": "seed"},
        own=("output_dir", "overwrite", "resume", "extend", "checkpoint_path"),
        neutral=sum_settings.NEUTRAL,
        word=lambda name, value: f"--{name}={plain_word(value)}",
        options=lambda words: run_sum.read_command(words).options(),
        dataset_name=dataset_or_file,
    ),
    "chat": Task(
        name="chat",
        program=ROOT / "chat_task" / "run_chat.py",
        dataset="dataset_name",
        seeds={"seed": "seed"},
        own=("output_dir", "overwrite", "resume", "extend", "checkpoint_path"),
        neutral=chat_settings.NEUTRAL,
        word=lambda name, value: f"--{name}={plain_word(value)}",
        options=lambda words: run_chat.read_command(words).options(),
        dataset_name=dataset_or_file,
    ),
}


def main() -> int:
    """Plan the sweep, run it and say what came of it."""
    words = sys.argv[1:]
    if not words or words[0] not in TASKS:
        if words and words[0] in ("--help", "-h"):
            own = "".join(f"\n  bash scripts/sweep_{name}.sh --help" for name in TASKS)
            print(as_typed(f"Runs of a task over data sets, seeds and options. Each task has its own words:\n{own}"))
            return 0
        raise UserError("the first word says which task: fsc, sum or chat")
    task = TASKS[words[0]]
    if any(word in ("--help", "-h") for word in words):
        print(as_typed(help_text(ROOT / "scripts" / f"sweep_{task.name}.sh")))
        return 0
    flags, rest = _flags(words[1:], task)
    to_launcher = [word for word in rest if word.lstrip("+~").startswith("hydra.")]
    check_launcher(flags.launcher)
    found = combinations(task, flags, [word for word in rest if word not in to_launcher])
    output = Path(flags.output or Path("outputs", "sweep", task.name)).absolute()
    alone = ",".join(word for word in rest if "," not in word and word not in to_launcher)
    advice = f"--output={shlex.quote(f'{output}-{safe_name(alone)}' if alone else f'{output}-2')}"
    states = [state_of(output / name, options, task, advice) for name, _, options in found]
    print_overview(output, [name for name, _, _ in found], states)
    open_runs = [
        PlannedRun(name, command(task, words, output / name))
        for (name, words, _), state in zip(found, states, strict=True)
        if state.to_run
    ]
    if flags.dry_run:
        for run in open_runs:
            print(shlex.join(run.command))
        return 0
    refused = {name: state.text for (name, _, _), state in zip(found, states, strict=True) if state.is_wrong}
    bad = dict(refused)
    if open_runs:
        folder = output / PLANS / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        plan = Plan(folder, task.name, os.getcwd(), open_runs)
        plan.write()
        lost = launch(plan, flags.launcher, flags.jobs, to_launcher)
        bad |= failures(plan, lost)
    return print_end(output, len(found), bad)


def _flags(words: Sequence[str], task: Task) -> tuple[argparse.Namespace, list[str]]:
    """The sweep's own flags, and the words that are the runs'."""
    parser = Parser("scripts/sweep.py", None)
    parser.add_argument("--datasets")
    parser.add_argument("--seeds")
    parser.add_argument("--output")
    parser.add_argument("--launcher", default="serial", choices=list(LAUNCHERS))
    parser.add_argument("--jobs", type=COUNT)
    parser.add_argument("--dry_run", "--dry-run", action="store_true")
    configs = ("--config-name", "--config-dir") if task.name == "fsc" else ("--config",)
    for name in configs:
        parser.add_argument(name)
    flags, rest = parser.parse_known_args(list(words))
    known = ["--datasets", "--seeds", "--output", "--launcher", "--jobs", "--dry_run", "--help", *configs]
    for i, word in enumerate(rest):
        if word.startswith("--") and "=" in word and task.name != "fsc":
            rest[i] = word[2:]  # as run_sum.py itself takes its options
        elif word.startswith("-") or "=" not in word:
            raise UserError(f"'{word}' is neither a flag nor of the form key=value{nearest(word, known)}")
    if flags.jobs is not None and flags.launcher != "local":
        raise UserError(f"--jobs: is for --launcher local; --launcher {flags.launcher} has options of its own")
    flags.jobs = flags.jobs or 2
    flags.config_words = [
        f"{name}={value}" for name in configs if (value := getattr(flags, name[2:].replace("-", "_"))) is not None
    ]
    return flags, rest


def help_text(script: Path) -> str:
    """The comment at the top of a script."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), script.read_text(encoding="utf-8").splitlines()[1:])
    return "\n".join(line[2:] for line in lines)


def check_launcher(word: str) -> None:
    """Raise UserError where a launcher cannot work on this machine."""
    launcher = LAUNCHERS[word]
    try:
        missing = importlib.util.find_spec(launcher.package) is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise UserError(f"--launcher {word}: its packages are not installed; pip install -e '.[{launcher.extra}]'")
    if word == "slurm" and shutil.which("sbatch") is None:
        raise UserError("--launcher slurm: there is no sbatch here; call this on a machine that hands in Slurm's jobs")


def combinations(
    task: Task, flags: argparse.Namespace, overrides: Sequence[str]
) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Every run of the sweep: (its folder's name, the words of its command, its resolved options).

    Raises:
        UserError: an option that does not exist, a value that cannot be, or an option that is the sweep's own.
    """
    values = _values(task, overrides)
    datasets = _dataset_axis(task, flags.datasets, values)
    seeds = _seed_axes(task, flags.seeds, values)
    # Named by what is swept, in an order that does not depend on how it was typed.
    kept = sorted(values.keys() - {task.dataset, *task.seeds}, key=lambda key: (key not in FIRST_IN_NAMES, key))
    named = {key for key in kept if key in FIRST_IN_NAMES or len(values[key]) > 1}
    methods = [
        [
            Choice((task.word(key, value),), f"{key}={plain_word(value)}" if key in named else "")
            for value in values[key]
        ]
        for key in kept
    ]
    base = Choice(tuple(flags.config_words), _config_label(flags.config_words))
    found: dict[str, tuple[str, list[str], dict[str, Any]]] = {}
    for dataset in datasets:
        for method in itertools.product(*methods):
            for seed in itertools.product(*seeds):
                words = [w for choice in (base, dataset, *method, *seed) for w in choice.words]
                options = task.options(words)
                labels = [
                    choice.label
                    for key, choice in zip(("", *kept), (base, *method), strict=True)
                    if choice.label and key not in task.neutral
                ]
                parts = (
                    safe_name(dataset.label or task.dataset_name(options)),
                    safe_name(",".join(labels) or "default"),
                    safe_name("-".join(choice.label for choice in seed if choice.label)),
                )
                name = "/".join(parts)
                if name in found:
                    raise UserError(f"two runs would have the folder '{name}'; name each value once")
                found[name] = (name, words, options)
    return list(found.values())


def _values(task: Task, overrides: Sequence[str]) -> dict[str, list[Any]]:
    """The values that are typed for each option."""
    parser = OverridesParser.create()
    values: dict[str, list[Any]] = {}
    for word in overrides:
        key = word.split("=", 1)[0]
        if key in task.own:
            raise UserError(f"{key}: a sweep sets this itself; --output says where its runs lie")
        if key in values:
            raise UserError(f"{key}: given twice; several values are written {key}=A,B")
        try:
            override: Override = parser.parse_override(word)
            found = list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]
        except HydraException as error:
            first = str(error).strip().split("\n")[0]
            raise UserError(
                f"{key}: cannot read '{word}': {first}; odd characters need quotes: {key}=\"'...'\""
            ) from None
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(f"{key}: '{word}' names no values; write them as {key}=A,B")
        values[key] = found
    return values


def _dataset_axis(task: Task, typed: str | None, values: dict[str, list[Any]]) -> list[Choice]:
    if typed is None:
        named = values.get(task.dataset)
        if named is None:
            return [Choice((), "")]
        return [Choice((task.word(task.dataset, value),), plain_word(value)) for value in named]
    if task.dataset in values:
        raise UserError(f"--datasets and {task.dataset}= both name the data sets; give one of them")
    names = [name.strip() for name in typed.split(",")]
    if not all(names):
        raise UserError(f"--datasets: '{typed}' is no list such as A,B")
    axis = []
    for name in names:
        name, colon, config = name.partition(":") if task.name != "fsc" else (name, "", "")
        words = [task.word(task.dataset, name), *([task.word("dataset_config", config)] if colon else [])]
        axis.append(Choice(tuple(words), f"{name}-{config}" if colon else name))
    return axis


def _seed_axes(task: Task, typed: str | None, values: dict[str, list[Any]]) -> list[list[Choice]]:
    given = [key for key in task.seeds if key in values]
    if given:
        if typed is not None:
            raise UserError(f"--seeds and {given[0]}= both give the seeds; give one of them")
        return [
            [Choice((task.word(key, value),), f"{task.seeds[key]}-{plain_word(value)}") for value in values[key]]
            for key in given
        ]
    numbers = seed_list("0,1,2" if typed is None else typed)
    return [[Choice(tuple(task.word(key, seed) for key in task.seeds), f"seed-{seed}") for seed in numbers]]


def seed_list(typed: str) -> list[int]:
    """``"0,1,5"`` or ``"0-4"``, or both mixed, as numbers.

    Raises:
        UserError: it is something else, or names a seed twice.
    """
    seeds: list[int] = []
    for part in typed.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + 1000:
            raise UserError(f"--seeds: '{typed}' is no list such as 0,1,2 or 0-4")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: '{typed}' names a seed twice")
    return seeds


def plain_word(value: Any) -> str:
    """A parsed value as one types it."""
    if isinstance(value, QuotedString):
        return str(value.text)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return ",".join(plain_word(item) for item in value)
    return str(value)


def hydra_word(value: Any) -> str:
    """A parsed value as Hydra reads it back to the same: text of any marks in quotes, where they have no meaning."""
    text = value.text if isinstance(value, QuotedString) else value
    if not isinstance(text, str):
        return Override._get_value_element_as_str(value)
    is_plain = re.fullmatch(r"[a-zA-Z][\w./-]*", text, re.ASCII) and text.lower() not in NOT_TEXT
    return text if is_plain else quoted(text)


def quoted(text: str) -> str:
    """Text as a quoted value of Hydra, in which only ``${``, a quote, and backslashes before either mean something."""
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), literal) + "'"


def safe_name(label: str) -> str:
    """A label as the name of a folder. What had to be changed or cut is told apart by a checksum."""
    name = re.sub(r"[^\w.,=+-]+", "-", label, flags=re.ASCII).strip("-") or "-"
    name = "_" + name[1:] if name.startswith(".") else name
    if name in (label, label.replace("/", "-")) and len(name) <= MAX_NAME:
        return name
    return f"{name[:MAX_NAME]}-{uuid.uuid5(uuid.NAMESPACE_OID, label).hex[:8]}"


def _config_label(words: Sequence[str]) -> str:
    """The configuration that a sweep starts from, as part of its folders' names."""
    names = [Path(word.split("=", 1)[1]).stem for word in words if not word.startswith("--config-dir")]
    return ",".join(names)


class State(NamedTuple):
    """What a run's folder holds: whether the run is to be started, whether it must not be, and that in words."""

    to_run: bool
    is_wrong: bool
    text: str


def state_of(folder: Path, options: dict[str, Any], task: Task, advice: str) -> State:
    """Look at a run's folder, and whether what it holds is the run that is asked for.

    Folders are named by what a sweep varies: where another one had another value of something else, `advice` names a
    place for this one.
    """
    try:
        whole = is_complete(folder)
        config = RunFolder(folder).config
        if config.exists():
            check_same_options(read_config(config).options, options, task.neutral, folder)
        elif whole:
            raise UserError(f"'{folder}' holds results of no run; it has no config.yaml")
    except (UserError, OSError) as error:
        return State(False, True, f"{' '.join(str(error).split())}; a sweep of its own lies elsewhere: {advice}")
    if whole:
        return State(False, False, "complete")
    return State(True, False, "goes on" if latest_checkpoint(folder / "checkpoints") else "starts")


def command(task: Task, words: Sequence[str], folder: Path) -> list[str]:
    """The command of one run, as a list of words: no shell comes between."""
    output = "output_folder" if task.name == "fsc" else "output_dir"
    own = [task.word("resume", "auto"), task.word(output, str(folder))]
    return [sys.executable, str(task.program), *words, *own]


def print_overview(output: Path, names: Sequence[str], states: Sequence[State]) -> None:
    """Each run and what becomes of it."""
    print(f"{len(names)} runs in {output}")
    for name, state in zip(names, states, strict=True):
        print(f"  {name}: {printable_text(state.text)}", flush=True)


# `launch` fills in the plan and the numbers; a launcher calls this in whichever process it has chosen.
@hydra.main(version_base=None, config_path=str(ROOT / "configs"))
def one_run(config: DictConfig) -> None:
    """One job of Hydra's multirun: one run of a plan."""
    carry_out(Path(config.plan), int(config.run))


def launch(plan: Plan, launcher: str, jobs: int, to_launcher: Sequence[str]) -> str:
    """Hand all runs of a plan to a launcher and wait. Returns why the launcher itself ended early, if it did.

    Raises:
        UserError: an option of the launcher that does not exist, before any run starts.
    """
    words = [
        "--multirun",
        f"hydra/launcher={LAUNCHERS[launcher].hydra_name}",
        *([f"hydra.launcher.n_jobs={jobs}", "hydra.launcher.batch_size=1"] if launcher == "local" else []),
        *([f"hydra.launcher.name=sweep-{plan.task}"] if launcher == "slurm" else []),
        *to_launcher,
        "hydra/hydra_logging=none",
        "hydra/job_logging=none",
        "hydra.output_subdir=null",
        "hydra.job.chdir=false",
        f"hydra.sweep.dir={quoted(str(plan.folder))}",
        "hydra.sweep.subdir='.'",
        f"+plan={quoted(str(plan.folder))}",
        f"+run={','.join(map(str, range(len(plan.runs))))}",
    ]
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [sys.argv[0], *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors are to arrive here, not to be printed and to end this process
    try:
        with stopping(plan, waits=launcher in HERE):
            one_run()
        return ""
    except HydraException as error:
        raise UserError(f"--launcher {launcher}: {str(error).strip().splitlines()[0]}") from None
    except Exception as error:  # of any kind: a lost worker, a cluster that answers no more
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full


@contextmanager
def stopping(plan: Plan, waits: bool) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the running runs in their orderly way, and then the sweep; a second one ends it at once.

    Runs that are not waited for, those of a cluster, go on by themselves.

    Raises:
        Interrupted: one came.
    """
    advice = "the same command goes on from here" + ("" if waits else "; jobs that were handed in run on")
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1 or not waits:
            raise Interrupted(number, advice)
        plan.stop()

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise Interrupted(came[0], advice)


def failures(plan: Plan, lost: str) -> dict[str, str]:
    """The runs that did not end well, each with the reason; `lost` is why the launcher ended early, if it did."""
    bad = {}
    for number, run in enumerate(plan.runs):
        outcome = plan.outcome(number)
        if outcome is None:
            reason = f"no word from it ({lost or 'its process was ended'}); it may still run or wait in a queue"
        elif not outcome.is_good:
            reason = outcome.reason
        else:
            continue
        bad[run.name] = f"{reason}; log: {plan.log(number)}"
    return bad


def print_end(output: Path, count: int, bad: dict[str, str]) -> int:
    """Say what came of the runs, naming each that failed, and return the exit code."""
    print(f"\n{count - len(bad)} of {count} runs are complete")
    print(as_typed(f"python scripts/collect_results.py {shlex.quote(str(output))}"))
    for name, reason in bad.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    run_command(main)
