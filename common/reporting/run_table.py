"""From run folders to one table: which runs are whole, which belong together, and what their figures are over seeds.

Runs belong to one row where they are of one data set and their resolved options are equal but for seeds, places and
other things that cannot change a result. Of two runs of one row and one seed only the first counts, and only whole runs
count at all; every run that does not is kept as a `Problem`.
"""

import dataclasses
import os
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from common.errors import UserError
from common.training.run_files import read_config, read_results
from common.training.sweep_run import PLANS, Plan

NUM_RESAMPLES = 10_000
FEWEST_SEEDS = 5  # for an interval
CONFIDENCE = 0.95
METHOD_OPTIONS = ("guidance", "agg_func")


@dataclass(frozen=True)
class Metric:
    """One figure of a run.

    Attributes:
        title: its column.
        key: its name in ``results.json``.
        scale: what it is multiplied with.
    """

    title: str
    key: str
    scale: float = 1.0


@dataclass(frozen=True)
class TaskTable:
    """What the table must know of a task.

    Attributes:
        name: as ``results.json`` has it.
        title: heading of its table.
        dataset: the option that names the data set.
        seeds: the options that are seeds.
        ignored: options that change no result: places, devices, how often something is written.
        metrics: the figures, the most important one first.
        unread: by option and value, the options that a run which has it does not read.
    """

    name: str
    title: str
    dataset: str
    seeds: tuple[str, ...]
    ignored: frozenset[str]
    metrics: tuple[Metric, ...]
    unread: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict, hash=False)

    def unread_by(self, method: Mapping[str, str]) -> frozenset[str]:
        """The options that mean nothing beside the others."""
        return frozenset().union(*(names for (key, value), names in self.unread.items() if method.get(key) == value))


@dataclass(frozen=True)
class Run:
    """One whole run: its `method` is every option that can change its result, flat and as text."""

    folder: Path
    task: TaskTable
    dataset: str
    method: Mapping[str, str]
    seed: tuple[Any, ...]
    figures: Mapping[str, float]
    results: Mapping[str, Any]

    @property
    def row_key(self) -> tuple[Any, ...]:
        return (self.task.name, self.dataset, tuple(sorted(self.method.items())))


@dataclass(frozen=True)
class Problem:
    """A run that is in no mean.

    Attributes:
        kind: "failed", "partial", "missing", "duplicate" or "unreadable".
        where: its folder, or the row and seed that there is no folder for.
        reason: one line.
    """

    kind: str
    where: str
    reason: str = ""


@dataclass
class Row:
    """One row of the table: a data set and a method, with a run for each seed.

    Attributes:
        runs: the run of each seed.
        options: what tells it from the other rows of its data set, guidance and aggregation apart.
    """

    task: TaskTable
    dataset: str
    method: Mapping[str, str]
    runs: dict[tuple[Any, ...], Run] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method in words."""
        parts = [self.method.get(name, "") for name in METHOD_OPTIONS]
        options = [f"{name}={value}" for name, value in self.options.items()]
        return ", ".join([*filter(None, parts), *options]) or "all runs"

    def values(self, metric: Metric) -> dict[tuple[Any, ...], float]:
        """The figure by seed, of the runs that have it."""
        return {seed: run.figures[metric.title] for seed, run in self.runs.items() if metric.title in run.figures}


@dataclass(frozen=True)
class Paired:
    """Two methods over the seeds that both have: mean difference, and its bootstrap interval from five seeds on."""

    dataset: str
    metric: str
    one: str
    other: str
    n: int
    mean_one: float
    mean_other: float
    difference: float
    low: float | None
    high: float | None


def collect(paths: Sequence[Path], tasks: Sequence[TaskTable]) -> tuple[list[Row], list[Problem]]:
    """Every run at or below `paths`.

    Raises:
        UserError: a path that is not there.
    """
    runs, problems, seen = [], [], set()
    folders, plans, damaged = find(paths)
    for folder in folders:
        try:
            runs.append(read_run(folder, tasks))
        except Unfinished as unfinished:
            reason = planned_reason(folder, plans)
            problems.append(Problem("failed" if reason else "partial", str(folder), reason or str(unfinished)))
        except UserError as error:
            problems.append(Problem("unreadable", str(folder), str(error)))
        seen.add(folder.resolve())
    problems += never_begun(plans, seen)
    rows, duplicates = rows_of(runs)
    return rows, problems + damaged + duplicates + missing_seeds(rows)


class Unfinished(Exception):
    """A run without ``results.json``."""


def find(paths: Sequence[Path]) -> tuple[list[Path], list[Plan], list[Problem]]:
    """Run folders, the plans of the sweeps that wrote them (oldest first), each once, and plans that are damaged."""
    folders: dict[Path, Path] = {}
    plans: dict[Path, Plan] = {}
    damaged: dict[Path, Problem] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"'{path}' is no folder; give run folders, or folders that hold some")
        for place, names, files in os.walk(path):
            here = Path(place)
            if PLANS in names:
                for file in sorted(here.glob(f"{PLANS}/*/plan.json")):
                    try:
                        plans.setdefault(file.resolve(), Plan.read(file.parent))
                    except UserError as error:
                        damaged[file.resolve()] = Problem("unreadable", str(file), str(error))
            if "config.yaml" in files and _is_run_config(here / "config.yaml"):
                folders.setdefault(here.resolve(), here)
                names.clear()
            names[:] = sorted(name for name in names if not name.startswith("."))
    return list(folders.values()), [plan for _, plan in sorted(plans.items())], list(damaged.values())


def _is_run_config(file: Path) -> bool:
    """Whether it looks like a run's: one that cannot be parsed is reported later, and not passed over."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return all(f"\n{key}:" in f"\n{text}" for key in ("command", "options"))


def read_run(folder: Path, tasks: Sequence[TaskTable]) -> Run:
    """One whole run.

    Raises:
        Unfinished: it has no ``results.json``.
        UserError: it cannot be read, or is of no known task.
    """
    try:
        options = read_config(folder / "config.yaml").options
        if not (folder / "results.json").exists():
            raise Unfinished("it has no results.json: it was cut off, or is running")
        results = read_results(folder / "results.json")
        if results["status"] != "complete":
            raise Unfinished(f"its status is {results['status']!r}")
        task = next((task for task in tasks if task.name == results["task"]), None)
        if task is None:
            raise UserError(f"results.json is of an unknown task {results['task']!r}")
        figures = {
            metric.title: float(results[metric.key]) * metric.scale
            for metric in task.metrics
            if results.get(metric.key) is not None
        }
        if not figures:
            raise UserError("results.json holds no figure")
        flat = flatten(options)
        method = {
            key: value
            for key, value in flat.items()
            if key not in (task.dataset, f"{task.dataset}.name", *task.seeds) and key not in task.ignored
        }
        unread = task.unread_by(method)
        method = {key: value for key, value in method.items() if key not in unread}
        seed = tuple(options[name] for name in task.seeds)
        return Run(folder, task, str(results["dataset"]), method, seed, figures, results)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"it cannot be read: {' '.join(repr(error).split())[:200]}") from None


def flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Options as text, those of a mapping by names with dots."""
    flat: dict[str, str] = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = (
                "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            )
    return flat


def planned_reason(folder: Path, plans: Sequence[Plan]) -> str:
    """Why a sweep says that a run failed; "" where it does not, or was started again since."""
    for plan in reversed(plans):
        for number, run in enumerate(plan.runs):
            if (plan.output / run.name).resolve() == folder.resolve():
                outcome = plan.outcome(number)
                return outcome.reason if outcome is not None and outcome.status == "failed" else ""
    return ""


def never_begun(plans: Sequence[Plan], seen: set[Path]) -> list[Problem]:
    """Runs that a sweep planned and that have no folder."""
    found: dict[Path, Problem] = {}
    for plan in plans:
        for number, run in enumerate(plan.runs):
            folder = plan.output / run.name
            if folder.resolve() not in seen:
                outcome = plan.outcome(number)
                failed = outcome is not None and outcome.status == "failed"
                reason = outcome.reason if outcome is not None and failed else "it was planned and has not begun"
                found[folder.resolve()] = Problem("failed" if failed else "missing", str(folder), reason)
    return list(found.values())


def rows_of(runs: Sequence[Run]) -> tuple[list[Row], list[Problem]]:
    """Group runs; of several of one row and seed the first in the order of their folders counts."""
    rows: dict[tuple[Any, ...], Row] = {}
    duplicates = []
    runs = _joined_by_seed(runs)
    for run in sorted(runs, key=lambda run: str(run.folder)):
        row = rows.setdefault(run.row_key, Row(run.task, run.dataset, run.method))
        first = row.runs.setdefault(run.seed, run)
        if first is not run:
            same = "the same figures" if first.figures == run.figures else "OTHER FIGURES"
            duplicates.append(Problem("duplicate", str(run.folder), f"the run of '{first.folder}' again, with {same}"))
    ordered = sorted(rows.values(), key=lambda row: (row.task.name, row.dataset, *_method_order(row)))
    for row in ordered:
        row.runs = dict(sorted(row.runs.items(), key=lambda item: [str(part).zfill(12) for part in item[0]]))
        peers = [peer for peer in ordered if (peer.task, peer.dataset) == (row.task, row.dataset)]
        names = {name for peer in peers for name in peer.method} - set(METHOD_OPTIONS)
        unread = row.task.unread_by(row.method)
        row.options = {
            name: row.method.get(name, "(not an option)")
            for name in sorted(names - unread)
            if len({peer.method.get(name) for peer in peers if name not in row.task.unread_by(peer.method)}) > 1
        }
    return ordered, duplicates


def _joined_by_seed(runs: Sequence[Run]) -> list[Run]:
    """Runs, those of one row among them that start from a folder of their own seed each, such as ``run/seed-3/policy``.

    A folder that runs of several seeds start from is an option like any other.
    """
    seeds: dict[tuple[Any, ...], set[tuple[Any, ...]]] = {}
    for run in runs:
        seeds.setdefault(run.row_key, set()).add(run.seed)
    return [
        run if len(seeds[run.row_key]) > 1 else dataclasses.replace(run, method=_without_seed(run.method, run.seed))
        for run in runs
    ]


def _without_seed(method: Mapping[str, str], seed: tuple[Any, ...]) -> dict[str, str]:
    number = f"(?<![^/_-])(?:{'|'.join(re.escape(str(part)) for part in seed)})(?![^/_-])"
    return {key: re.sub(number, "{seed}", value) if key.endswith("_path") else value for key, value in method.items()}


def _method_order(row: Row) -> tuple[Any, ...]:
    return (*(row.method.get(name, "") for name in METHOD_OPTIONS), sorted(row.method.items()))


def missing_seeds(rows: Sequence[Row]) -> list[Problem]:
    """Seeds that one row of a data set has and another lacks: their means are not over the same runs."""
    problems = []
    for row in rows:
        peers = [peer for peer in rows if (peer.task, peer.dataset) == (row.task, row.dataset)]
        lacking = sorted({seed for peer in peers for seed in peer.runs} - row.runs.keys(), key=str)
        if lacking:
            seeds = "; ".join(seed_text(row.task, seed) for seed in lacking)
            problems.append(Problem("missing", f"{row.dataset}, {row.label}", f"no whole run of {seeds}"))
    return problems


def seed_text(task: TaskTable, seed: tuple[Any, ...]) -> str:
    """A seed in words."""
    return ", ".join(f"{name}={value}" for name, value in zip(task.seeds, seed, strict=True))


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample deviation (n - 1); None for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def code_versions(row: Row) -> list[str]:
    """The commits that the runs of a row were made with; more than one is worth a remark."""
    commits = Counter(str((run.results.get("environment") or {}).get("git_commit")) for run in row.runs.values())
    return sorted(commits)


def paired(one: Row, other: Row, metric: Metric) -> Paired | None:
    """Compare two rows of one data set over the seeds that both have; None without one.

    The interval is that of the percentile bootstrap over the seeds' differences, with a fixed generator; of fewer than
    five seeds it would be far too narrow, so that there is none.
    """
    first, second = one.values(metric), other.values(metric)
    seeds = [seed for seed in first if seed in second]
    if not seeds:
        return None
    differences = np.array([first[seed] - second[seed] for seed in seeds])
    low = high = None
    if len(seeds) >= FEWEST_SEEDS:
        interval = stats.bootstrap(
            (differences,), np.mean, n_resamples=NUM_RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=0
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Paired(
        dataset=one.dataset,
        metric=metric.title,
        one=one.label,
        other=other.label,
        n=len(seeds),
        mean_one=statistics.fmean(first[seed] for seed in seeds),
        mean_other=statistics.fmean(second[seed] for seed in seeds),
        difference=float(differences.mean()),
        low=low,
        high=high,
    )
