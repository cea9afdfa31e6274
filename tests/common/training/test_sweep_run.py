import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import UserError
from common.training.sweep_run import Outcome, Plan, PlannedRun, carry_out, is_complete, last_line

ROOT = Path(__file__).resolve().parents[3]
WRITE = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "words.json").write_text(json.dumps(sys.argv[2:]))
(folder / "results.json").write_text('{"status": "complete"}')
"""


def planned(tmp_path, *codes, words=()):
    """A plan of one run a piece of Python code."""
    names = [f"data/method/seed-{i}" for i in range(len(codes))]
    runs = [
        PlannedRun(name, [sys.executable, "-c", code, str(tmp_path / "out" / name), *words])
        for name, code in zip(names, codes, strict=True)
    ]
    plan = Plan(tmp_path / "out" / ".sweep" / "one", "fsc", str(tmp_path), runs)
    plan.write()
    return plan


def test_a_run_is_started_and_its_end_is_written(tmp_path):
    plan = planned(tmp_path, WRITE)
    assert plan.outcome(0) is None
    outcome = carry_out(plan.folder, 0)
    assert outcome.status == "done"
    assert outcome.seconds > 0
    assert plan.outcome(0) == outcome
    assert is_complete(tmp_path / "out" / "data" / "method" / "seed-0")


def test_words_arrive_as_they_are(tmp_path):
    words = ["a b", "$(touch x); `id`", "'\"\\", "", "ü\n|*"]
    plan = planned(tmp_path, WRITE, words=words)
    assert carry_out(plan.folder, 0).status == "done"
    assert Path(plan.run_folder(0), "words.json").read_text() == json.dumps(words)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('first'); print('error: no luck\\n\\n'); raise SystemExit(2)", "error: no luck (exit code 2)"),
        ("import os; os.kill(os.getpid(), 9)", "it said nothing (signal 9)"),
        ("print('all well')", "all well (exit code 0)"),  # and yet there is no results.json
        ("raise ValueError('odd')", "ValueError: odd (exit code 1)"),
    ],
)
def test_a_run_that_fails_is_a_line_and_no_error(code, reason, tmp_path):
    plan = planned(tmp_path, code)
    outcome = carry_out(plan.folder, 0)
    assert (outcome.status, outcome.reason) == ("failed", reason)
    assert not outcome.is_good


def test_a_program_that_is_not_there_is_a_failed_run(tmp_path):
    plan = Plan(tmp_path / "out" / ".sweep" / "one", "fsc", str(tmp_path), [PlannedRun("a/b", ["/no/such/program"])])
    plan.write()
    assert carry_out(plan.folder, 0).status == "failed"


def test_a_complete_run_is_not_started_again(tmp_path):
    plan = planned(tmp_path, WRITE)
    carry_out(plan.folder, 0)
    (plan.run_folder(0) / "words.json").unlink()
    assert carry_out(plan.folder, 0).status == "complete"
    assert not (plan.run_folder(0) / "words.json").exists()


def test_a_damaged_result_is_not_overwritten(tmp_path):
    plan = planned(tmp_path, WRITE)
    plan.run_folder(0).mkdir(parents=True)
    (plan.run_folder(0) / "results.json").write_text('{"status": "compl')
    outcome = carry_out(plan.folder, 0)
    assert outcome.status == "failed"
    assert "cannot be read" in outcome.reason


def test_the_log_keeps_what_earlier_tries_said(tmp_path):
    plan = planned(tmp_path, "print('once more'); raise SystemExit(1)")
    carry_out(plan.folder, 0)
    carry_out(plan.folder, 0)
    assert plan.log(0).read_text() == "once more\nonce more\n"


def test_a_folder_stays_locked_while_its_run_lives_even_if_its_launcher_was_killed(tmp_path):
    code = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    plan = planned(tmp_path, code)
    launcher = subprocess.Popen(
        [sys.executable, "-c", f"from common.training.sweep_run import *; carry_out(Path({str(plan.folder)!r}), 0)"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        assert launcher.poll() is None
        time.sleep(0.05)
    assert carry_out(plan.folder, 0).status == "busy"
    launcher.kill()
    launcher.wait()
    assert carry_out(plan.folder, 0).status == "busy"
    os.kill(int(pid.read_text()), signal.SIGKILL)
    runs = [PlannedRun(plan.runs[0].name, [sys.executable, "-c", WRITE, str(plan.run_folder(0))])]
    after = Plan(plan.folder.with_name("two"), "fsc", str(tmp_path), runs)
    after.write()
    until = time.monotonic() + 10
    while (outcome := carry_out(after.folder, 0)).status == "busy" and time.monotonic() < until:
        time.sleep(0.05)
    assert outcome.status == "done"


def test_a_plan_is_read_as_it_was_written_also_where_the_sweep_was_moved(tmp_path):
    plan = planned(tmp_path, WRITE)
    assert Plan.read(plan.folder) == plan
    (tmp_path / "out").rename(tmp_path / "moved")
    moved = Plan.read(tmp_path / "moved" / ".sweep" / "one")
    assert moved.run_folder(0) == tmp_path / "moved" / "data" / "method" / "seed-0"


@pytest.mark.parametrize(
    "text", ["", "{", '{"runs": []}', '{"runs": [{"nam": 1}], "task": "", "working_directory": ""}']
)
def test_a_damaged_plan_is_one_line(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        Plan.read(tmp_path)


def test_the_last_line_of_a_long_log(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 100_000 + b"\n\xff last \n\n")
    assert last_line(log) == "\ufffd last"
    assert last_line(tmp_path / "none") == ""


def test_only_done_and_complete_are_good():
    assert [Outcome(status).is_good for status in ("done", "complete", "busy", "failed")] == [True, True, False, False]
