"""How a command ends early: for a user's mistake (exit code 2) or a signal (130, 143), each with one clear line."""

import difflib
import errno
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NoReturn

DISK_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EFBIG,
)  # fmt: skip
"""What a disk refuses. That a file is not there is none of it: whoever looks for one says so himself."""


class UserError(Exception):
    """Bad input from the user. Its message is one line: what is wrong, where, what is allowed."""


class UserErrors(UserError):
    """Several mistakes that were found at once, such as the options of a file; each is a line of its own.

    Attributes:
        messages: the lines.
    """

    def __init__(self, messages: Sequence[str]):
        super().__init__("; ".join(messages))
        self.messages = list(messages)


class Interrupted(BaseException):
    """A signal ended the run. As KeyboardInterrupt it is no `Exception`, which libraries catch to go on.

    Attributes:
        number: of the signal.
        exit_code: by the convention of shells, 128 + number.
    """

    def __init__(self, number: int, advice: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}" + (f"; {advice}" if advice else ""))
        self.number = number
        self.exit_code = 128 + number


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the allowed name closest to `name`, or an empty string if none is close.

    Close is what differs in few letters, and what has `name` as one of its parts, as ``num_train_epochs`` has
    ``epochs``.
    """
    names = {str(candidate).lstrip("-"): candidate for candidate in allowed}  # dashes make all flags alike
    core = name.lstrip("-")
    close = difflib.get_close_matches(core, names, n=1, cutoff=0.65)
    if not close and len(core) > 2:
        parts = re.compile(rf"(^|[_-]){re.escape(core)}")
        close = sorted(filter(parts.search, names), key=len)[:1]
    return f"; did you mean '{names[close[0]]}'?" if close else ""


def printable_text(text: object) -> str:
    """`text` with a replacement character for each one that does not print, where no mark-up can stand."""
    return "".join(character if character.isprintable() else "\ufffd" for character in str(text))


def exit_with(error: UserError) -> NoReturn:
    """Print the error on one line of standard error (each of several on its own) and leave with exit code 2."""
    with suppress(BrokenPipeError):  # whoever read it is gone
        for message in error.messages if isinstance(error, UserErrors) else [str(error)]:
            print(f"error: {printable_text(' '.join(message.split()))}", file=sys.stderr, flush=True)
    raise SystemExit(2)


def exit_interrupted(interrupted: Interrupted) -> NoReturn:
    """Say on one line of standard error what a signal ended, and leave with 128 + its number."""
    with suppress(BrokenPipeError):
        print(interrupted, file=sys.stderr, flush=True)
    raise SystemExit(interrupted.exit_code)


def machine_refusal(error: Exception) -> str | None:
    """What the machine refuses, in one line: memory, numbers beyond its range, a disk; None for any other error."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, OSError):
        if error.errno not in DISK_ERRORS or error.filename is None:
            return None
        return f"cannot write or read {error.filename}: {error.strerror}"
    if isinstance(error, OverflowError) or "overflow" in first.lower():
        return f"a number is larger than the machine can work with: {first}"
    # Not every error that speaks of memory: one of a memory format is a defect, and keeps its traceback.
    if isinstance(error, MemoryError) or re.search(r"(out of|not enough|allocate) memory", first.lower()):
        return f"the machine has not enough memory: {first}; smaller batches, lengths or models need less"
    return None
