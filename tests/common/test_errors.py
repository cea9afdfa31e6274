from common.training.program import run_command

import math
import os
import shlex
import subprocess
import sys

import pytest
import torch

from common.errors import Interrupted, UserError, machine_refusal, nearest


def test_the_nearest_allowed_name_is_offered():
    assert nearest("learning_rat", ["learning_rate", "top_k"]) == "; did you mean 'learning_rate'?"
    assert nearest("zzz", ["learning_rate", "top_k"]) == ""
    assert nearest("a", []) == ""


def test_what_is_far_off_is_not_offered():
    flags = ["--report_to", "--help", "--num_train_epochs", "--model_type", "--per_device_train_batch_size"]
    assert [nearest(word, flags) for word in ("--foo", "--lr", "--dropout", "loss")] == [""] * 4
    assert nearest("--epochs", flags) == "; did you mean '--num_train_epochs'?"
    assert nearest("--batch_size", flags) == "; did you mean '--per_device_train_batch_size'?"
    assert nearest("--mode_type", flags) == nearest("model_type", flags) == "; did you mean '--model_type'?"


def test_a_users_mistake_is_one_line_and_exit_code_2(capsys):
    def main():
        raise UserError("option 'x':\n  is   wrong")

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: option 'x': is wrong\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_a_commands_own_result_is_its_exit_code(returned, code):
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: returned)
    assert caught.value.code == code


def test_a_mistake_of_the_program_keeps_its_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main)


def test_an_interruption_is_nothing_that_a_library_catches():
    assert not issubclass(Interrupted, Exception)


@pytest.mark.parametrize(
    ("work", "line"),
    [
        (lambda: torch.empty(2**50), "error: the machine has not enough memory: "),
        (lambda: torch.empty(2**62, 2**62), "error: a number is larger than the machine can work with: "),
        (lambda: bytearray(2**62), "error: the machine has not enough memory: MemoryError"),
        (lambda: math.exp(1e300), "error: a number is larger than the machine can work with: math range error"),
        (lambda: os.open("/dev/full/x", os.O_RDONLY), None),
    ],
)
def test_what_the_machine_refuses_is_one_line(work, line, capsys):
    with pytest.raises(SystemExit if line else OSError, match="2" if line else None):
        run_command(work)
    if line:
        found = capsys.readouterr().err
        assert found.startswith(line) and found.count("\n") == 1


def test_a_full_disk_and_a_closed_pipe_are_no_tracebacks(tmp_path):
    code = "from common.training.program import run_command\ndef main(): {}\nrun_command(main)"
    full = "raise OSError(28, 'No space left on device', '/x/y')"
    done = subprocess.run([sys.executable, "-c", code.format(full)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: cannot write or read /x/y: No space left on device\n")
    shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(code.format('print(1)'))}; echo $? >&2"
    done = subprocess.run(f"({shell}) | true", shell=True, capture_output=True, text=True)
    assert done.stderr in ("141\n", "0\n")  # 0 where the reader was not gone yet
    wide = code.format("[print('x' * 9999) for _ in range(99)]")
    shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(wide)}; echo $? >&2"
    done = subprocess.run(f"({shell}) | true", shell=True, capture_output=True, text=True)
    assert done.stderr == "141\n"


def test_an_error_that_speaks_of_memory_is_not_yet_a_lack_of_it():
    found = machine_refusal(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert found is not None and "not enough memory" in found
    assert machine_refusal(RuntimeError("required rank 4 tensor to use channels_last memory format")) is None
