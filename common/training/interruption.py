"""Ending a run on SIGTERM (preemption) or SIGINT (Ctrl-C): finish the step, write a checkpoint, leave with 143 or 130.

While a run trains, a signal is only noted; `Checkpointer.after_step` sees it once the step is finished. Outside of
training, where nothing would be lost, and at the second signal, the run ends at once.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from common.errors import Interrupted
from common.training.checkpoint import latest_checkpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def telling_how_to_go_on(checkpoints: Path, how: str) -> Iterator[None]:
    """Let an `Interrupted` from within say from which checkpoint below `checkpoints` the run goes on, and `how`."""
    try:
        yield
    except Interrupted as interrupted:
        newest = latest_checkpoint(checkpoints)
        advice = "it had no checkpoint yet" if newest is None else f"go on from '{newest}' with {how}"
        raise Interrupted(interrupted.number, advice) from None


class StopRequest:
    """Whether a signal asked the run to stop.

    `with stop:` catches the signals (in a thread other than the main one, where python cannot, it does nothing);
    `with stop.after_steps():` inside of it puts the end off to `Checkpointer.after_step`.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._put_off = False
        self._before: list[signal._HANDLER] = []

    @contextmanager
    def after_steps(self) -> Iterator[None]:
        """Only note the first signal from here on; one that no step saw any more ends the run at the block's end."""
        self._put_off = True
        try:
            yield
        finally:
            self._put_off = False
        if self.number is not None:
            raise Interrupted(self.number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._put_off or self.number is not None:
            raise Interrupted(number)
        self.number = number

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = [signal.signal(number, self._handle) for number in SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(SIGNALS, self._before, strict=False):
            signal.signal(number, handler)
        self._before = []


class Checkpointer:
    """Writes a checkpoint where one is due, and ends the run once a signal asked for it.

    Args:
        write: writes the checkpoint; its argument is the number of optimizer steps, over all models, done so far.
        every: optimizer steps between two checkpoints; 0: their number makes none due.
        minutes: minutes after which the next step ends with one; 0: time makes none due. On a clock, because steps take
            from milliseconds to minutes and a checkpoint up to gigabytes.
        stop: the signals.
        agree: turns this process's "a signal came" (the signal's number or 0) into the answer of all processes.
    """

    def __init__(
        self,
        write: Callable[[int], None] = lambda steps: None,
        every: int = 0,
        minutes: float = 0,
        stop: StopRequest | None = None,
        agree: Callable[[int], int] = lambda number: number,
    ):
        self._write = write
        self._every = every
        self._seconds = 60 * minutes
        self._written = time.monotonic()
        self._stop = stop or StopRequest()
        self._agree = agree

    @property
    def periodic(self) -> bool:
        """Whether checkpoints are written as the run goes on, not only where a signal asks for one."""
        return self._every > 0 or self._seconds > 0

    @property
    def stop_requested(self) -> bool:
        """Whether any process was asked to stop. As in `after_step`, all of them have to ask."""
        return self._agree(self._stop.number or 0) > 0

    def after_step(self, steps: int, due: bool = False) -> None:
        """To be called when a step is finished and the run's state can be saved.

        Args:
            steps: optimizer steps done so far.
            due: write a checkpoint whatever their number.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
        """
        number = self._agree(self._stop.number or 0)
        by_steps = self._every > 0 and steps % self._every == 0
        by_time = 0 < self._seconds <= time.monotonic() - self._written
        if number or due or by_steps or by_time:
            self._write(steps)
            self._written = time.monotonic()
        if number:
            raise Interrupted(number)
