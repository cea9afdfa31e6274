"""One run of a sweep: a process of its own, alone in its folder, with a log beside it.

A sweep writes what it is going to run to a plan, and each run's end beside the plan. Whatever launches the runs (this
process, a pool, a cluster) needs nothing but the plan's path and the number of a run; a run that ends in whichever way
takes no other with it, and starts with memory and threads of its own.
"""

import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, printable_text
from common.training.files import write_json_atomic, write_text_atomic
from common.training.lock import LOCK_VARIABLE, Locked, alone_in
from common.training.ranges import no_text
from common.training.run_files import read_results

PLANS = ".sweep"
STOPPED = "stopped"
LAST_LOG_BYTES = 20_000


@dataclass(frozen=True)
class PlannedRun:
    """One run that a sweep is to start.

    Attributes:
        name: its folder below the sweep's, such as ``sst-2/agg_func=max/seed-0``.
        command: the program and its words.
    """

    name: str
    command: list[str]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: "done", "complete" (it was so before), "busy" (another process writes its folder) or "failed".
        reason: one line, where it is not done.
        seconds: its wall time.
    """

    status: str
    reason: str = ""
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.status in ("done", "complete")


@dataclass(frozen=True)
class Plan:
    """What one call of a sweep runs.

    Attributes:
        folder: the plan's own folder, ``<sweep>/.sweep/<id>``.
        task: "fsc" or "sum".
        working_directory: where the commands start, for relative paths in them.
        runs: the runs.
    """

    folder: Path
    task: str
    working_directory: str
    runs: list[PlannedRun]

    @property
    def output(self) -> Path:
        """The sweep's folder. It follows from the plan's place, so that a sweep can be moved."""
        return self.folder.parent.parent

    def run_folder(self, number: int) -> Path:
        return self.output / self.runs[number].name

    def log(self, number: int) -> Path:
        return log_of(self.run_folder(number))

    def write(self) -> None:
        """Write ``plan.json``."""
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"--output: '{self.folder}' cannot be written: {error.strerror}") from None
        content = {key: value for key, value in dataclasses.asdict(self).items() if key != "folder"}
        write_json_atomic(self.folder / "plan.json", content)

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """Read ``plan.json``.

        Raises:
            UserError: it is not there or not whole.
        """
        try:
            content = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
            runs = [PlannedRun(**run) for run in content.pop("runs")]
            if not all(isinstance(run.name, str) and not no_text(run.name) for run in runs):
                raise ValueError("the name of a run is no text")
            return cls(folder, runs=runs, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"the plan in '{folder}' cannot be read: {error}") from None

    def stop(self) -> None:
        """Let every run of this machine end as at a SIGTERM of its own, its state saved, and start no further one."""
        (self.folder / STOPPED).touch()
        for file in self.folder.glob("run-*.pid"):
            with suppress(OSError, ValueError):
                machine, pid = file.read_text(encoding="utf-8").split(" ")
                if machine == platform.node():
                    os.kill(int(pid), signal.SIGTERM)

    def is_stopped(self) -> bool:
        return (self.folder / STOPPED).exists()

    def write_outcome(self, number: int, outcome: Outcome) -> None:
        """Write how a run ended, beside the plan."""
        write_json_atomic(self.folder / f"run-{number:04d}.json", dataclasses.asdict(outcome))

    def outcome(self, number: int) -> Outcome | None:
        """How a run ended, or None if it did not."""
        try:
            found = Outcome(**json.loads((self.folder / f"run-{number:04d}.json").read_text(encoding="utf-8")))
            return found if isinstance(found.reason, str) else None
        except (OSError, ValueError, TypeError, RecursionError):
            return None


def log_of(run_folder: Path) -> Path:
    """Where a run's words go. It stands beside the folder, which a run that starts again empties."""
    return run_folder.with_name(f"{run_folder.name}.log")


def is_complete(run_folder: Path) -> bool:
    """Whether a folder holds a whole run.

    Raises:
        UserError: its ``results.json`` cannot be read.
    """
    file = run_folder / "results.json"
    if not file.exists():
        return False
    return bool(read_results(file)["status"] == "complete")


def carry_out(plan_folder: Path, number: int) -> Outcome:
    """Start a planned run, wait for its end, and write that beside the plan. Nothing that a run does raises here."""
    plan = Plan.read(plan_folder)
    name = plan.runs[number].name
    started = time.monotonic()
    try:
        outcome = _run(plan, number)
    except (UserError, OSError) as error:
        outcome = Outcome("failed", " ".join(str(error).split()))
    outcome = dataclasses.replace(outcome, seconds=time.monotonic() - started)
    plan.write_outcome(number, outcome)
    end = f"{outcome.status} after {outcome.seconds:.0f} s" + (f": {outcome.reason}" if outcome.reason else "")
    print(f"{name}: {end}", file=sys.stderr, flush=True)
    return outcome


def _run(plan: Plan, number: int) -> Outcome:
    folder, log, command = plan.run_folder(number), plan.log(number), plan.runs[number].command
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(alone_in(folder))
        except Locked:
            return Outcome("busy", "another process is writing this run")
        words = stack.enter_context(open(log, "ab"))
        if is_complete(folder):
            return Outcome("complete")
        if plan.is_stopped():
            return Outcome("failed", "the sweep was stopped before it began")
        # The child holds the lock too: it stays locked if this process is killed and the run lives on.
        environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
        environment[LOCK_VARIABLE] = str(lock.fileno())
        # In a session of its own: Ctrl-C reaches the sweep alone, which hands it on once (a second one would be hasty).
        with subprocess.Popen(
            command, cwd=plan.working_directory, env=environment, stdin=subprocess.DEVNULL, stdout=words,
            stderr=subprocess.STDOUT, pass_fds=[lock.fileno()], start_new_session=True,
        ) as child, _known_as(child.pid, plan.folder / f"run-{number:04d}.pid"):  # fmt: skip
            if plan.is_stopped():  # just now
                child.terminate()
            code = child.wait()
        if code == 0 and is_complete(folder):
            return Outcome("done")
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return Outcome("failed", f"{last_line(log) or 'it said nothing'} ({ended})")


@contextmanager
def _known_as(pid: int, file: Path) -> Iterator[None]:
    """While the block lasts the file says which process a run is; a worker of a launcher leaves Ctrl-C to the sweep."""
    is_worker = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_worker and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    write_text_atomic(file, f"{platform.node()} {pid}")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def last_line(log: Path) -> str:
    """The last line of a log that is not blank."""
    try:
        with open(log, "rb") as file:
            file.seek(max(log.stat().st_size - LAST_LOG_BYTES, 0))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable_text(lines[-1][:300]) if lines else ""
