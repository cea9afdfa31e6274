"""The soak benchmark: its memory slope, and that it sees what differs."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass

import psutil
import pytest

from common.errors import UserError
from scripts.benchmarks import soak


def test_the_slope_of_a_straight_line_is_its_growth_an_hour():
    memory = [(float(second), 1000 + 10 * second / 3600) for second in range(0, 7200, 60)]
    assert soak.growth_per_hour(memory, 600) == pytest.approx(10 / 1010, rel=0.02)


def test_a_few_peaks_and_the_warm_up_do_not_turn_it():
    memory = [(float(second), 500.0 if second < 600 else 1000.0) for second in range(0, 3600, 10)]
    memory[200:205] = [(second, 3000.0) for second, _ in memory[200:205]]
    assert soak.growth_per_hour(memory, 600) == 0


def test_an_outcome_leaves_out_what_the_clock_and_the_machine_decide(tmp_path):
    command = soak.prompt_command()
    for name in command.files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "results.json").write_text(json.dumps({"wall_seconds": 3, "test_accuracy": 0.5}))
    first = command.outcome(tmp_path)
    assert first["results.json"] == {"test_accuracy": 0.5}
    (tmp_path / "results.json").write_text(json.dumps({"wall_seconds": 4, "test_accuracy": 0.5}))
    assert command.outcome(tmp_path) == first
    (tmp_path / "prompts.csv").write_bytes(b"y")
    assert command.outcome(tmp_path) != first


def test_an_output_folder_that_is_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="exists already"):
        soak.main(["--task", "prompt", "--output", str(tmp_path)])


SLEEPING_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_workers_in_sessions_of_their_own_are_killed_too():
    process = subprocess.Popen([sys.executable, "-c", SLEEPING_CHILD], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    soak.kill(process)
    assert process.poll() == -signal.SIGKILL
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    soak.kill(process)  # of one that has ended: nothing


GOOD = {"kills": 9, "minutes_broken": 61.0, "different": [], "growth_per_hour": 0.001}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"kills": 0}, False),
        ({"minutes_broken": 59.0}, False),
        ({"different": ["prompts.csv"]}, False),
        ({"growth_per_hour": 0.03}, False),
        ({"growth_per_hour": float("nan")}, False),
    ],
)
def test_what_passes(change, expected):
    assert soak.passed(GOOD | change, 60) is expected


RUN = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir(exist_ok=True)
ticks = folder / "ticks"
for tick in range(int(ticks.read_text()) if ticks.exists() else 0, 8):
    time.sleep(0.5)
    ticks.write_text(str(tick + 1))
(folder / "out").write_text(sys.argv[2] if folder.name == "broken" else "same")
(folder / "results.json").write_text(json.dumps({"wall_seconds": time.time()}))
sys.exit(int(sys.argv[3]) if folder.name == "broken" else 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("text", "different"), [("same", []), ("other", ["out"])])
def test_a_killed_run_is_compared_with_one_that_was_not(tmp_path, text, different):
    command = words(text, 0)
    figures = soak.soak(command, tmp_path / "soak", 0.1, seed=0, between=(1, 2))
    assert figures["kills"] >= 1
    assert figures["different"] == different
    assert (tmp_path / "soak" / "memory.csv").read_text().startswith("run,seconds,life,mib")


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_its_memory_kept(tmp_path):
    with pytest.raises(RuntimeError, match=r"broken' failed with exit code 3; .*broken.log"):
        soak.soak(words("same", 3), tmp_path / "soak", 0, seed=0, between=(1, 2))
    assert "whole" in (tmp_path / "soak" / "memory.csv").read_text()


@dataclass(frozen=True)
class Words(soak.Command):
    """A command of any program, with words after the folder."""

    last: tuple[str, ...] = ()

    def start(self, folder, log, resume=False):
        return subprocess.Popen([*self.words, str(folder), *self.last], start_new_session=True)


def words(text, code):
    """`RUN`, which writes `text` and ends with `code` where it is the one that is killed."""
    return Words((sys.executable, "-c", RUN), "{}", "", ("out",), (text, str(code)))


@pytest.mark.slow
def test_a_short_soak_of_a_short_run(tmp_path, monkeypatch):
    short = ("--max_train_samples=64", "--max_eval_samples=16", "--max_predict_samples=16", "--preference=rouge1")
    monkeypatch.setattr(soak, "soak_command", lambda task, length: soak.summary_command(*short, "--checkpoint_steps=2"))
    words = ["--task", "summary", "--output", str(tmp_path / "soak"), "--minutes", "1", "--between", "4", "12"]
    soak.main(words)  # its exit code judges memory too, which a run of seconds says nothing of
    figures = json.loads((tmp_path / "soak" / "soak.json").read_text())
    assert figures["kills"] >= 1
    assert figures["different"] == []
