"""Programs in forks of the process that tests them, so that none spends its time importing."""

from common.training.program import run_command

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def fork(main: Callable[[], Any], log: Path) -> Child:
    """A child that runs `main` as a program does; its exit code is 99 where even that raises."""
    log.touch()  # a kill may come before the child opens it
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = 99
    try:
        words = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(words, 1)
        os.dup2(words, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        run_command(lambda: main() and None)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
