"""A run from its command to its results: folder, lock, log, checkpoints, signals, and what its last file says.

A runner opens a :class:`Run`, loads data and models, and shows the steps of the method; everything that every run does
is done here, in one order: nothing is written before `Run.begin`, and `Run.finish` writes ``results.json`` last.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from common.errors import UserError
from common.training.checkpoint import StateTree, load_checkpoint, save_checkpoint
from common.training.engine import Engine, start_engine
from common.training.files import is_being_replaced, replace_folder, restore_folder
from common.training.inputs import changed_inputs, fetched_inputs, fingerprints
from common.training.interruption import Checkpointer, StopRequest, telling_how_to_go_on
from common.training.lock import alone_in
from common.training.origin import Origin, extension_folder, find_origin
from common.training.progress import set_quiet, set_verbose
from common.training.run_files import Made, read_config, read_results
from common.training.run_folder import (
    COMPLETE,
    RunFolder,
    changed_options,
    check_resumable,
    environment,
    folders_made,
    start_undone,
)
from common.training.run_options import RunOptions
from common.training.runtime import Runtime, hardware, peak_memory_mib, start_runtime
from common.training.tracking import MetricsLog, check_events, check_trackers, truncate_after

logger = logging.getLogger(__name__)


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
        self._origin = Origin.of(engine.on_main(self._find_origin))
        self.folder = RunFolder(self._origin.folder, None if self._origin.is_elsewhere else self._origin.checkpoint)
        self.finished: dict[str, Any] | None = None
        self.same_options = True
        self._checkpoint: StateTree | None = None
        self._before = Made({}, {})
        self._inputs = engine.on_main(lambda: fingerprints(options.inputs))
        if self._origin.complete:
            check_resumable(self._changes(read_config(self.folder.config)), self.folder.path, COMPLETE)
            self.finished = read_results(self.folder.results)
        elif self._origin.checkpoint is not None:
            self._checkpoint = load_checkpoint(self._origin.checkpoint)
            self._before = Made.of(self._checkpoint.values.get("run"), self._origin.checkpoint)
            self._check_resumable()
            if self._origin.run is not None:
                check_events(self._origin.run.metrics, self._before.events)
            logger.info("going on from %s", self._origin.checkpoint)

    def _check_resumable(self) -> None:
        if self._checkpoint is not None:
            assert self._origin.checkpoint is not None
            advice = None if self.options.resume == "changed" else " (allowed with resume=changed)"
            self.same_options = check_resumable(self._changes(self._before), self._origin.checkpoint, advice)

    def _changes(self, before: Made) -> str:
        """What differs from an earlier run's options and inputs, in words."""
        longer = {self.options.length} if self.options.extend and self._origin.is_elsewhere else set[str]()
        options = changed_options(before.options, self.options.all, longer.union(self.options.neutral))
        inputs = changed_inputs(before.inputs, self._inputs)
        parts = [f"another content of {phrase}" for phrase in inputs] + (
            [f"other options: {options}"] if options else []
        )
        return ", ".join(parts)

    def _find_origin(self) -> list[Any]:
        """From where it starts, as plain data; its folder locked if there is one."""
        if self.options.folder.is_dir() or is_being_replaced(self.options.folder):
            self._lock()
            restore_folder(self.options.folder)
        return find_origin(self.options).plain()

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
        fetched = self.engine.on_main(lambda: fetched_inputs(self.options.inputs))
        if self._inputs | fetched != self._inputs:  # what the hub has and was fetched only now
            self._inputs |= fetched
            self._check_resumable()

        def prepare() -> None:
            self._stack.enter_context(folders_made(self.options.folder.parent))
            self._lock()
            self._stack.enter_context(start_undone(self.folder))
            self.folder.prepare()
            if self._origin.is_elsewhere:
                self._origin.take_over()
            if self.folder.metrics.exists():
                truncate_after(self.folder.metrics, self._before.events)
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
    def checkpoints(self, save_state: Callable[[StateTree], None], in_parts: bool = False) -> Iterator[Checkpointer]:
        """While a run trains: what to call after each step. A signal ends the run there, its state saved.

        Args:
            save_state: notes the state; called by the main process.
            in_parts: every process calls it, as each has a part to write.
        """

        def save(steps: int) -> None:
            if not self.engine.is_main:
                if in_parts:
                    save_state(StateTree())
                return
            self.check_there()
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

    def check_there(self) -> None:
        """Refuse to write a part of a run into a folder that is no longer its own.

        Raises:
            UserError: the run has begun, and its folder is gone.
        """
        if hasattr(self, "log") and not self.folder.config.is_file():
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
            self.check_there()
            write_files()
            self.folder.write_results(results)
            if self.options.extend:
                replace_folder(self.folder.path, self.options.folder)

        self.engine.on_main(write)
        self.folder = RunFolder(self.options.folder)


@contextmanager
def open_run(options: RunOptions) -> Iterator[Run]:
    """A run, with signals caught, the processes joined and its folder locked until the block ends.

    Raises:
        UserError: for what can be seen to be wrong before any model is loaded.
        Interrupted: SIGTERM or SIGINT came; what there is to go on from is on the disk.
    """
    folder = extension_folder(options.folder) if options.extend else options.folder
    how = "the same command" if options.extend else options.how_to_resume
    with telling_how_to_go_on(RunFolder(folder).checkpoints, how), StopRequest() as stop, ExitStack() as stack:
        engine = start_engine(options.device, options.mixed_precision)
        stack.callback(engine.end)
        run = Run(options, engine, stop, stack)
        try:
            yield run
        except FileNotFoundError:
            run.check_there()
            raise
