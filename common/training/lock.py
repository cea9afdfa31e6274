"""One process at a time writes a run's folder."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from common.errors import UserError

logger = logging.getLogger(__name__)

# A sweep that holds the lock of a run's folder for the run tells it the number of the open file in this variable.
LOCK_VARIABLE = "TOKEN_GUIDANCE_LOCK"


class Locked(UserError):
    """Another process holds the lock."""


@contextmanager
def alone_in(folder: Path) -> Iterator[IO[bytes]]:
    """Hold the lock of a run's folder, a file beside it that is open as long as this block lasts.

    The system frees it at the end of its holders, however they end, so that no lock is ever left behind. A process
    that was started by its holder (a run of a sweep) holds it too. Where there is no folder at the end, a start that
    failed, the file goes too.

    Raises:
        Locked: another process writes the folder.
        UserError: the lock cannot be made.
    """
    path = folder.with_name(f".{folder.name}.lock")
    inherited = _inherited(path)
    while True:
        try:
            lock = open(path, "ab") if inherited is None else os.fdopen(inherited, "ab", closefd=False)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"output folder '{folder}' cannot be written: {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(f"another process is writing the run in '{folder}'; wait for its end or stop it") from None
            except OSError as error:  # a file system without locks
                logger.warning("'%s' cannot be locked (%s): start no second run in it", folder, error.strerror)
            if not _is_open_file(lock.fileno(), path):
                continue  # its holder removed it in this instant
            try:
                yield lock
            finally:
                if inherited is None and not folder.exists():
                    with suppress(OSError):
                        path.unlink()
            return


def _inherited(path: Path) -> int | None:
    """The open file through which whoever started this process holds the lock, if it is this one."""
    number = os.environ.get(LOCK_VARIABLE, "")
    return int(number) if number.isdigit() and _is_open_file(int(number), path) else None


def _is_open_file(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except OSError:
        return False
