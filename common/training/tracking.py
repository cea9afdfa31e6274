"""The metrics of a run: `metrics.jsonl` always, and the trackers that people ask for by name.

One event is one JSON object: `{"phase": "reward", "round": 0, "step": 12, "seconds": 3.41, "reward/loss": 1.2}`.
`seconds` counts the time the run has worked, over all its resumptions.
"""

import importlib
import importlib.util
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
from accelerate import Accelerator
from accelerate.utils import LoggerType

from common.errors import UserError, nearest
from common.training.files import JsonLinesWriter

# Name of a tracker -> the module that has to be there and the package that brings it.
TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "trackio": ("trackio", "trackio"),
}
POLICY_STEP = "policy_step"  # what trackers draw against


def check_trackers(report_to: Sequence[str]) -> None:
    """Raise a UserError for a tracker that is unknown or not installed, before any work is done."""
    for name in report_to:
        if name not in TRACKERS:
            raise UserError(f"report_to: no tracker '{name}', only {', '.join(TRACKERS)}{nearest(name, TRACKERS)}")
        module, package = TRACKERS[name]
        if importlib.util.find_spec(module) is None:
            raise UserError(f"report_to: '{name}' is not installed; install it with: pip install {package}")


class MetricsLog:
    """Writes the events of a run.

    Args:
        path: `metrics.jsonl` of the run folder, continued if it is there; None where this process is to write nothing
            (all but the first of a distributed run).
        report_to: names of trackers (`TRACKERS`) that get every event too. Their step is that of the policy, which
            stands still during a round of reward learning; the step within a phase goes along as `<phase>/step`.
        accelerator: of the run; it starts them and, at the run's end, ends them.
        project: the project name under which the trackers file the run.
        config: options of the run, shown by the trackers.
        seconds_before: `seconds` of the checkpoint that is resumed.

    Raises:
        UserError: a tracker is unknown or not installed, or the file cannot be written.
    """

    def __init__(
        self,
        path: str | Path | None,
        report_to: Sequence[str] = (),
        accelerator: Accelerator | None = None,
        *,
        project: str = "token-rewards",
        config: Mapping[str, Any] | None = None,
        seconds_before: float = 0.0,
    ) -> None:
        check_trackers(report_to)
        self._began = time.monotonic() - seconds_before
        self._events = 0
        self._policy_step = 0
        self._writer: JsonLinesWriter | None = None
        self._accelerator: Accelerator | None = None
        if path is None:
            return
        path = Path(path)
        self._writer = JsonLinesWriter(path)
        self._events = path.read_bytes().count(b"\n")
        if accelerator is not None and report_to:
            known = (event for event in read_metrics(path) if event["phase"] != "reward")
            self._policy_step = max((event["step"] for event in known), default=0)
            self._accelerator = accelerator
            _start_trackers(accelerator, report_to, project, path.parent, config or {})

    @property
    def seconds(self) -> float:
        """Time the run has worked so far, in seconds. A checkpoint keeps it for `seconds_before`."""
        return time.monotonic() - self._began

    @property
    def events(self) -> int:
        """Events in the file. A checkpoint keeps the number for `truncate_after`."""
        return self._events

    def log(self, phase: str, round: int, step: int, **values: float) -> None:
        """Write one event.

        Args:
            phase: "reward", "policy" or "eval".
            round: number of the reward-learning round, from 0.
            step: optimizer step within the phase.
            values: metrics by name, such as `**{"reward/loss": 1.2}`; a value that is not finite is written as null.
        """
        if self._writer is None:
            return
        event = {"phase": phase, "round": round, "step": step, "seconds": self._rounded_seconds()}
        clash = event.keys() & values.keys()
        if clash:
            raise ValueError(f"values: {', '.join(sorted(clash))} is set by the log itself")
        self._writer.write({**event, **values})
        if phase != "reward":
            self._policy_step = step
        for tracker in () if self._accelerator is None else self._accelerator.trackers:
            # wandb keeps one event a step of its own: it counts by itself, and draws against the policy's
            own_step = None if tracker.name == "wandb" else self._policy_step
            told = {**values, f"{phase}/round": round, f"{phase}/step": step, POLICY_STEP: self._policy_step}
            tracker.log(told, step=own_step)
        self._events += 1

    def texts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the trackers a few of the policy's texts, one a row; the file keeps figures alone.

        Args:
            step: that of the policy.
            rows: all with the same names.
        """
        columns = list(rows[0]) if rows else []
        data = [[str(row[name]) for name in columns] for row in rows]
        for tracker in () if self._accelerator is None or not rows else self._accelerator.trackers:
            if tracker.name == "tensorboard":
                blocks = ["\n".join(f"{n}: {v}" for n, v in zip(columns, row, strict=True)) for row in data]
                lines = "\n\n".join(blocks).splitlines()  # indented, they are a block of code and no mark-up
                tracker.tracker.add_text("samples", "\n".join(f"    {line}" for line in lines), global_step=step)
            elif tracker.name == "wandb":
                tracker.log_table("samples", columns=columns, data=data)
            else:
                trackio = importlib.import_module("trackio")  # it is there where it was asked for
                table = trackio.Table(dataframe=pd.DataFrame(data, columns=columns))
                tracker.log({"samples": table}, step=step)

    def sync(self) -> None:
        """Wait until all events are on the disk. To be called before a checkpoint that counts them is written."""
        if self._writer is not None:
            self._writer.sync()

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rounded_seconds(self) -> float:
        return float(f"{self.seconds:.3f}")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The events of a `metrics.jsonl`, oldest first. A last line without its line end (a run was killed) is left out.

    Raises:
        UserError: the file cannot be read, or a line of it is no JSON object.
    """
    return [_event(path, number, line) for number, line in enumerate(_whole_lines(Path(path)), start=1)]


def _event(path: str | Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}: not JSON ({error})") from None
    if not isinstance(event, dict):
        raise UserError(f"{path}, line {number}: not a JSON object")
    for name, value in event.items():
        kinds = {"phase": (str,), "round": (int,), "step": (int,)}.get(name, (int, float, type(None)))
        if not isinstance(value, kinds):
            raise UserError(f"{path}, line {number}: {name} is {type(value).__name__}, which no run writes")
    if not {"phase", "round", "step", "seconds"} <= event.keys():
        raise UserError(f"{path}, line {number}: no event of a run; it lacks phase, round, step or seconds")
    return event


def truncate_after(path: str | Path, events: int) -> None:
    """Keep the first `events` events of a `metrics.jsonl`: those that the checkpoint to be resumed knows of.

    Raises:
        UserError: see `check_events`, or it cannot be written.
    """
    path = Path(path)
    lines = check_events(path, events)
    if path.exists():
        try:
            os.truncate(path, sum(len(line) for line in lines[:events]))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error


def check_events(path: Path, events: int) -> list[bytes]:
    """The lines of a `metrics.jsonl` of which a checkpoint knows the first `events`.

    Raises:
        UserError: the file has fewer, so that it is not that of the checkpoint, one of them is damaged, or it cannot be
            read.
    """
    lines = _whole_lines(path) if path.exists() or events else []
    if len(lines) < events:
        raise UserError(f"{path} has {len(lines)} events, but the checkpoint was written after {events}")
    for number, line in enumerate(lines[:events], start=1):
        _event(path, number, line)
    return lines


def _whole_lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def _start_trackers(
    accelerator: Accelerator, names: Sequence[str], project: str, folder: Path, config: Mapping[str, Any]
) -> None:
    # What a tracker writes locally lies inside the run folder.
    accelerator.log_with = [LoggerType(name) for name in names]
    accelerator.project_configuration.logging_dir = str(folder / "tensorboard")
    name = _run_name(folder)
    options = {"wandb": {"name": name, "dir": str(folder)}, "trackio": {"name": name}}
    try:
        accelerator.init_trackers(project, _flat(config), options)
        for tracker in accelerator.trackers:
            if tracker.name == "wandb":
                tracker.tracker.define_metric("*", step_metric=POLICY_STEP)
    except Exception as error:  # each tracker has its own kinds: no login, no network, no folder to write to
        raise UserError(f"report_to: {', '.join(names)} could not start: {error}") from error


def _run_name(folder: Path) -> str:
    """A run by its path below the sweep that it belongs to; by its folder where it belongs to none."""
    sweep = next((parent for parent in folder.absolute().parents if (parent / ".sweep").is_dir()), None)
    return folder.name if sweep is None else folder.absolute().relative_to(sweep).as_posix()


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Trackers take only plain scalars; everything else is shown as its text."""
    return {str(k): v if isinstance(v, bool | int | float | str) else str(v) for k, v in config.items()}
