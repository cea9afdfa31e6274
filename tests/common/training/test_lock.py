import os
import subprocess
import sys

import pytest

from common.training.lock import LOCK_VARIABLE, Locked, alone_in

CHILD = """
import sys
from pathlib import Path
from common.training.lock import Locked, alone_in
try:
    with alone_in(Path(sys.argv[1])):
        print("held")
except Locked as error:
    print(error)
"""


def child(folder, **options):
    command = [sys.executable, "-c", CHILD, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, **options)
    return done.stdout.strip()


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    folder = tmp_path / "run"
    with alone_in(folder):
        assert child(folder) == f"another process is writing the run in '{folder}'; wait for its end or stop it"
        with pytest.raises(Locked), alone_in(folder):
            pass
    assert child(folder) == "held"


def test_a_process_started_by_the_holder_holds_it_too_and_outlives_it(tmp_path):
    folder = tmp_path / "run"
    with alone_in(folder) as lock:
        handed = {"pass_fds": [lock.fileno()], "env": os.environ | {LOCK_VARIABLE: str(lock.fileno())}}
        assert child(folder, **handed) == "held"
        # the number of some other file, or of none, is no lock
        assert child(folder, env=os.environ | {LOCK_VARIABLE: "1"}).startswith("another process")
        assert child(folder, env=os.environ | {LOCK_VARIABLE: "99"}).startswith("another process")
        assert child(tmp_path / "other", **handed) == "held"  # a lock is one folder's alone
    assert child(folder) == "held"


def test_two_folders_have_nothing_to_do_with_each_other(tmp_path):
    with alone_in(tmp_path / "a"), alone_in(tmp_path / "b"):
        pass
