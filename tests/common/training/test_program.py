"""A program that is interrupted while it is still being imported ends in one line."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("chat_task", "prompt_task", "scripts", "sum_task")
PROGRAMS = sorted(
    file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")
    if '\nif __name__ == "__main__":\n    run_command(main)' in file.read_text(encoding="utf-8")
)  # fmt: skip
SLOW_TO_IMPORT = ("torch", "transformers", "numpy", "pandas", "hydra", "yaml", "omegaconf", "nltk", "huggingface_hub")


@pytest.fixture(autouse=True)
def _usual_signals():
    """Those of a shell in the foreground: programs inherit what this process, or an earlier test, has put aside."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_program_is_ready_for_signals_before_it_imports_anything_else(program):
    first = next(node for node in ast.parse(program.read_text(encoding="utf-8")).body[1:])
    assert isinstance(first, ast.ImportFrom) and first.module == "common.training.program"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", ["prompt_task/run_fsc.py", "scripts/sweep.py", "scripts/benchmarks/memory.py"])
def test_a_signal_among_the_imports_is_one_line(program, number, tmp_path):
    for name in SLOW_TO_IMPORT:  # in its place a module in which the signal comes, and that catches whatever it can
        code = f"import os\ntry:\n    os.kill(os.getpid(), {int(number)})\nexcept BaseException:\n    pass\n"
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    done = started(program, tmp_path)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == f"stopped by {number.name}\n"


def test_a_signal_that_was_put_aside_stays_so(tmp_path):
    (tmp_path / "transformers.py").write_text(
        f"import os\nos.kill(os.getpid(), {int(signal.SIGINT)})\nraise SystemExit(7)\n", encoding="utf-8"
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a job in the background
    try:
        assert started("prompt_task/run_fsc.py", tmp_path).returncode == 7
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_importing_a_program_leaves_the_signals_of_others_alone():
    code = "import signal, prompt_task.run_fsc\nassert signal.getsignal(2) is signal.default_int_handler\n"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def test_a_mistake_whose_reader_is_gone_keeps_its_exit_code():
    command = [sys.executable, str(ROOT / "prompt_task" / "run_fsc.py"), "no_such=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait() == 2


def started(program, path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    command = [sys.executable, str(ROOT / program), "--help"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
