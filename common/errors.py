"""What a user's mistake looks like to the program: one clear line and exit code 2."""

import difflib
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn


class UserError(Exception):
    """Bad input from the user. Its message is one line: what is wrong, where, what is allowed."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the allowed name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def exit_with(error: UserError) -> NoReturn:
    """Print the error on one line of standard error and leave with exit code 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    raise SystemExit(2)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main`; a `UserError` becomes one line on standard error and exit code 2."""
    try:
        code = main()
    except UserError as error:
        exit_with(error)
    raise SystemExit(code or 0)
