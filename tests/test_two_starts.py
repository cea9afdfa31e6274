"""Two processes that start, stop and go on in one folder as chance has it: one at a time writes, nothing is lost.

What is done next is drawn from a seed. The processes are forks of this one, so that none spends its time importing.
"""

from common.training.program import run_command

import os
import random
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.training.lock import LOCK_VARIABLE
from prompt_task import run_fsc
from tests.prompt_task.test_run_fsc import figures

OPTIONS: dict[str, Any] = {
    "max_train_steps": 8,
    "save_steps": 0,
    "checkpoint_steps": 1,
    "num_candidates": 3,
    "log_every": 1,
}
HOW: tuple[dict[str, Any], ...] = ({"resume": "auto"}, {"resume": "auto"}, {"overwrite": True}, {})
BUSY = "another process is writing the run"
SETTLED = ("; go on with it (resume=auto)", "already holds")


@dataclass
class Child:
    """A process of a run and where its words go."""

    pid: int
    log: Path
    code: int | None = None

    def poll(self, wait: bool = False) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code


def start(world, folder: Path, log: Path, options: dict[str, Any]) -> Child:
    log.touch()  # a kill may come before the child opens it
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = 99
    try:
        os.environ.pop(LOCK_VARIABLE, None)
        words = os.open(log, os.O_WRONLY)
        os.dup2(words, 1)
        os.dup2(words, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        run_fsc.write_run_report = lambda folder, *_: folder.report.write_text("", encoding="utf-8")

        def main() -> None:
            run_fsc.run(world.command(output_folder=folder, **OPTIONS | options))

        run_command(main)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def play(world, folder: Path, seed: int, moves: int) -> None:
    """Make so many moves, then let a last process end the run."""
    draw = random.Random(seed)
    live: list[Child] = []
    ended: list[Child] = []

    def settle(child: Child) -> None:
        live.remove(child)
        ended.append(child)
        said = child.log.read_text(encoding="utf-8", errors="replace")
        story = (seed, len(ended), child.code, said[-2000:])
        assert "Traceback" not in said, story
        assert child.code in (0, 2, 143, -signal.SIGKILL, -signal.SIGTERM), story
        if child.code == 2:
            assert any(words in said for words in (BUSY, *SETTLED)), story

    for number in range(moves):
        move = draw.choice(("start", "start", "stop", "kill", "wait"))
        if move == "start" and len(live) < 2:
            others = list(live)
            child = start(world, folder, folder.with_name(f"log-{number}"), draw.choice(HOW))
            live.append(child)
            if others and draw.random() < 0.7:
                child.poll(wait=True)  # the second one: refused, unless the first came to its end before
                is_shown = (folder / "results.json").exists()  # by one that came to the lock of a whole run first
                assert child.code == 2 or is_shown or others[0].poll() is not None, (seed, number, child)
        elif move in ("stop", "kill") and live:
            os.kill(draw.choice(live).pid, signal.SIGTERM if move == "stop" else signal.SIGKILL)
        else:
            time.sleep(draw.uniform(0, 1.5))
        for child in list(live):
            if child.poll() is not None:
                settle(child)
    for child in list(live):
        child.poll(wait=True)
        settle(child)
    last = start(world, folder, folder.with_name("log-last"), {"resume": "auto"})
    assert last.poll(wait=True) == 0, last.log.read_text()[-2000:]


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    child = start(world, folder, folder.with_name("log"), {})
    assert child.poll(wait=True) == 0, child.log.read_text()[-2000:]
    return figures(folder)


@pytest.mark.parametrize("seed", [3])
def test_a_few_moves(world, whole, tmp_path, seed):
    play(world, tmp_path / "run", seed, 12)
    assert figures(tmp_path / "run") == whole


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(12))
def test_many_moves(world, whole, tmp_path, seed):
    play(world, tmp_path / "run", seed, 40)
    assert figures(tmp_path / "run") == whole
