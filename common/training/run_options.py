"""The options that concern a run as such, whatever its task."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.training.settings import RunSettings


@dataclass(frozen=True)
class RunOptions:
    """The options that concern a run as such, whatever its task.

    Attributes:
        task: a short name, such as ``fsc``.
        folder: where it writes.
        all: every option of the command as plain data, for ``config.yaml`` and to tell a continuation's options.
        neutral: names of those that change no result.
        inputs: what those options name that is read: files, folders, models, functions; see `fingerprint`.
        seed, device, num_threads, matmul_precision: see `start_runtime`.
        mixed_precision: see `start_engine`.
        overwrite: replace the run in the folder.
        resume: ``none``, ``auto`` or ``changed``.
        extend: go on with the complete run in the folder, to a greater `length`.
        length: the option that says how long the run's last stage trains.
        how_to_resume: the words that tell a user how to go on, such as ``the same command and --resume``.
        checkpoint_path: a checkpoint of another folder to go on from.
        checkpoint_minutes, checkpoint_steps: between two checkpoints, see `Checkpointer`.
        keep_checkpoints: how many stay.
        trackers: see `MetricsLog`.
        quiet, verbose: how much is shown.
    """

    task: str
    folder: Path
    all: Mapping[str, Any]
    neutral: Collection[str]
    inputs: Mapping[str, str | None]
    seed: int
    device: str
    num_threads: int | None
    matmul_precision: str | None
    mixed_precision: str
    overwrite: bool
    resume: str
    extend: bool
    length: str
    how_to_resume: str
    checkpoint_path: str | None
    checkpoint_minutes: float
    checkpoint_steps: int
    keep_checkpoints: int
    trackers: Sequence[str]
    quiet: bool
    verbose: bool

    @classmethod
    def of(cls, run: RunSettings, **own: Any) -> "RunOptions":
        """From a task's group, whose fields have these names; `own` are those that it calls otherwise or lacks."""
        shared = {f.name: getattr(run, f.name) for f in fields(cls) if f.name not in own}
        return cls(**shared, **own)
