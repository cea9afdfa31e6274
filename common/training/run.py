"""A run from its command to its results: folder, lock, log, checkpoints, signals, and what its last file says.

A runner opens a :class:`Run`, loads data and models, and shows the steps of the method; everything that every run does
is done here, in one order: nothing is written before `Run.begin`, and `Run.finish` writes ``results.json`` last.
"""

import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.training.checkpoint import StateTree, load_checkpoint, save_checkpoint
from common.training.engine import Engine, start_engine
from common.training.inputs import Fingerprint, changed_inputs, fingerprints
from common.training.interruption import Checkpointer, StopRequest, telling_how_to_go_on
from common.training.lock import alone_in
from common.training.progress import set_quiet, set_verbose
from common.training.run_files import Made, read_config, read_results
from common.training.run_folder import (
    COMPLETE,
    RunFolder,
    changed_options,
    check_resumable,
    environment,
    open_run_folder,
)
from common.training.runtime import Runtime, hardware, peak_memory_mib, start_runtime
from common.training.settings import RunSettings
from common.training.tracking import MetricsLog, check_events, check_trackers, truncate_after

logger = logging.getLogger(__name__)


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


class Run:
    """One run. Made by `open_run`.

    Attributes:
        options: see `RunOptions`.
        engine: its device, processes and precision.
        runtime: its device and seed.
        folder: its files.
        finished: the results where the folder holds the whole run already, which is all there is to show; else None.
        same_options: False where it goes on with changed options: nothing that was remembered of data or models holds.
        log: its metrics, from `begin` on.
    """

    log: MetricsLog

    def __init__(self, options: RunOptions, engine: Engine, stop: StopRequest, stack: ExitStack):
        self.options = options
        self.engine = engine
        self._started = time.monotonic()
        self._stop = stop
        self._stack = stack
        self._locked = False
        check_trackers(options.trackers)
        set_quiet(options.quiet or not engine.is_main)
        set_verbose(options.verbose and engine.is_main)
        self.runtime: Runtime = start_runtime(
            options.seed, str(engine.device), options.num_threads, options.matmul_precision
        )
        going_on = engine.on_main(self._open_folder)
        self.folder = RunFolder(options.folder, None if going_on is None else Path(going_on))
        self.finished: dict[str, Any] | None = None
        self.same_options = True
        self._checkpoint: StateTree | None = None
        self._before = Made({}, {})
        self._inputs = self._fingerprints()
        if self.folder.is_complete and not options.overwrite:
            check_resumable(self._changes(read_config(self.folder.config)), self.folder.path, COMPLETE)
            self.finished = read_results(self.folder.results)
            return
        where = self.folder.checkpoint or (Path(options.checkpoint_path) if options.checkpoint_path else None)
        if where is not None:
            self._checkpoint = load_checkpoint(where)
            self._before = Made.of(self._checkpoint.values.get("run"), where)
            self._check_resumable()
            if self.folder.checkpoint is not None:
                check_events(self.folder.metrics, self._before.events)
            logger.info("going on from %s", where)

    def _check_resumable(self) -> None:
        if self._checkpoint is not None:
            where = self.folder.checkpoint or Path(str(self.options.checkpoint_path))
            advice = None if self.options.resume == "changed" else " (allowed with resume=changed)"
            self.same_options = check_resumable(self._changes(self._before), where, advice)

    def _fingerprints(self) -> dict[str, Fingerprint]:
        return self.engine.on_main(lambda: fingerprints(self.options.inputs))

    def _changes(self, before: Made) -> str:
        """What differs from an earlier run's options and inputs, in words."""
        options = changed_options(before.options, self.options.all, self.options.neutral)
        inputs = changed_inputs(before.inputs, self._inputs)
        parts = [f"another content of {phrase}" for phrase in inputs] + (
            [f"other options: {options}"] if options else []
        )
        return ", ".join(parts)

    def _open_folder(self) -> str | None:
        """The checkpoint in the run's folder from which it goes on."""
        if self.options.folder.is_dir():
            self._lock()
        resume = self.options.resume != "none"
        checkpoint = open_run_folder(self.options.folder, overwrite=self.options.overwrite, resume=resume).checkpoint
        return None if checkpoint is None else str(checkpoint)

    def _lock(self) -> None:
        if not self._locked:
            self._stack.enter_context(alone_in(self.options.folder))
            self._locked = True

    def begin(self) -> None:
        """Make the folder (or go on in it), write ``config.yaml`` and open the log. The first thing that writes.

        Raises:
            UserError: the folder cannot be written, another process writes it, or what was loaded is not what the
                checkpoint was made from.
        """
        earlier, self._inputs = self._inputs, self._fingerprints()
        if self._inputs != earlier:  # such as what the hub has and was fetched only now
            self._check_resumable()

        def prepare() -> None:
            self.options.folder.parent.mkdir(parents=True, exist_ok=True)
            self._lock()
            if self.folder.checkpoint is not None:
                truncate_after(self.folder.metrics, self._before.events)
            self.folder.prepare()
            self.folder.write_config(self.options.all, sys.argv, self._inputs)

        self.engine.on_main(prepare)
        log = MetricsLog(
            self.folder.metrics if self.engine.is_main else None, self.options.trackers, self.engine.accelerator,
            project=f"token-guidance-{self.options.task}", config=self.options.all, seconds_before=self._before.seconds,
        )  # fmt: skip
        self.log = self._stack.enter_context(log)

    def goes_on_in(self, part: str) -> bool:
        """Whether the checkpoint to go on from holds `part`, so that what comes before it is done."""
        return self._checkpoint is not None and part in self._checkpoint.values

    def restore(self, load_state: Callable[[StateTree], None]) -> bool:
        """Hand the checkpoint to go on from, if there is one, to what saved it. Returns whether there was one.

        Raises:
            UserError: it does not fit.
        """
        if self._checkpoint is None:
            return False
        try:
            load_state(self._checkpoint)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"the checkpoint does not fit this run: {error}") from None
        self._checkpoint = None  # its weights are where they belong
        return True

    @contextmanager
    def checkpoints(self, save_state: Callable[[StateTree], None]) -> Iterator[Checkpointer]:
        """While a run trains: what to call after each step. A signal ends the run there, its state saved."""

        def save(steps: int) -> None:
            if not self.engine.is_main:
                return
            self._check_there()
            self.log.sync()
            state = StateTree()
            save_state(state)
            progress: dict[str, Any] = {"options": dict(self.options.all), "inputs": self._inputs}
            progress |= {"events": self.log.events, "seconds": self.log.seconds}
            state.put("run", {}, progress)
            save_checkpoint(self.folder.checkpoint_folder(steps), state)
            self.folder.drop_old_checkpoints(self.options.keep_checkpoints)
            logger.info("checkpoint after %d optimizer steps: %s", steps, self.folder.checkpoint_folder(steps))

        with self._stop.after_steps():
            yield Checkpointer(
                save, self.options.checkpoint_steps, self.options.checkpoint_minutes, self._stop, self.engine.largest
            )

    def _check_there(self) -> None:
        """Refuse to write a part of a run into a folder that is no longer its own."""
        if not self.folder.config.is_file():
            raise UserError(f"the run's folder '{self.folder.path}' was removed or emptied while it ran")

    def figures(self) -> dict[str, Any]:
        """What ``results.json`` says of any run: time, memory, hardware, versions."""
        return {
            "processes": self.engine.count,
            "wall_seconds": self.log.seconds,
            "seconds_in_this_process": time.monotonic() - self._started,
            "peak_memory_mib": peak_memory_mib(self.runtime.device),
            "hardware": hardware(self.runtime.device),
            "environment": environment(),
        }

    def finish(self, results: Mapping[str, Any], write_files: Callable[[], None]) -> None:
        """Let the main process write the run's files, and ``results.json`` after all others."""

        def write() -> None:
            self._check_there()
            write_files()
            self.folder.write_results(results)

        self.engine.on_main(write)


@contextmanager
def open_run(options: RunOptions) -> Iterator[Run]:
    """A run, with signals caught, the processes joined and its folder locked until the block ends.

    Raises:
        UserError: for what can be seen to be wrong before any model is loaded.
        Interrupted: SIGTERM or SIGINT came; what there is to go on from is on the disk.
    """
    checkpoints = RunFolder(options.folder).checkpoints
    with telling_how_to_go_on(checkpoints, options.how_to_resume), StopRequest() as stop, ExitStack() as stack:
        engine = start_engine(options.device, options.mixed_precision)
        stack.callback(engine.end)
        yield Run(options, engine, stop, stack)
