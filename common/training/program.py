"""How a program begins and ends: with one line and the right exit code whatever comes, no traceback.

Programs import this before anything else. Their other imports take seconds, in which a signal would otherwise show
where in some library it came.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from common.errors import Interrupted, UserError, exit_interrupted, exit_with, machine_refusal

_FOLDERS = ("chat_task", "common", "prompt_task", "scripts", "sum_task")
_USUAL: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def _is_program(file: str | None) -> bool:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return file is not None and os.path.relpath(os.path.abspath(file), root).split(os.sep)[0] in _FOLDERS


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{Interrupted(number)}\n".encode())
    os._exit(128 + number)  # no import that catches everything can go on


def _watch_signals(importing: bool) -> None:
    """While a program is imported a signal ends it at once; one that whoever started it has put aside stays so."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number, usual in _USUAL.items():
        now, then = (usual, _leave) if importing else (_leave, usual)
        if signal.getsignal(number) == now:
            signal.signal(number, then)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main` and leave with its exit code.

    A `UserError`, and what the machine refuses (memory, disk), become one line on standard error and exit code 2, a
    signal 130 or 143; a reader of standard output that is gone, such as ``head``, ends the command silently with 141.
    """
    _watch_signals(False)
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        exit_with(error)
    except Interrupted as interrupted:
        exit_interrupted(interrupted)
    except KeyboardInterrupt:
        exit_interrupted(Interrupted(signal.SIGINT))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter fails to flush it
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (MemoryError, OverflowError, RuntimeError, OSError) as error:
        refusal = machine_refusal(error)
        if refusal is None:
            raise
        exit_with(UserError(refusal))
    raise SystemExit(code or 0)


if _is_program(getattr(sys.modules["__main__"], "__file__", None)):
    _watch_signals(True)
