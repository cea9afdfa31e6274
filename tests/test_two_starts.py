"""Two processes that start, stop and go on in one folder as chance has it: one at a time writes, nothing is lost.

What is done next is drawn from a seed. The processes are forks of this one, so that none spends its time importing.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from common.training.lock import LOCK_VARIABLE
from prompt_task import run_fsc
from tests.forks import Child, fork
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


def start(world, folder: Path, log: Path, options: dict[str, Any]) -> Child:
    def main() -> None:
        os.environ.pop(LOCK_VARIABLE, None)
        run_fsc.write_run_report = lambda folder, *_: folder.report.write_text("", encoding="utf-8")
        run_fsc.run(world.command(output_folder=folder, **OPTIONS | options))

    return fork(main, log)


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
