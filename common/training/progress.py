"""How far a loop has come and how long it still takes: a bar in a terminal, a plain line now and then in a log file."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

FIRST_LINE_SECONDS = 5.0
LINE_SECONDS = 30.0

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Show no progress at all from now on (`--quiet`, and every process but the first of a distributed run)."""
    global _quiet
    _quiet = quiet


def set_verbose(verbose: bool) -> None:
    """Log what the program does (data, models, checkpoints, validations) as lines of level INFO, or only warnings."""
    for package in ("chat_task", "common", "prompt_task", "sum_task"):
        logging.getLogger(package).setLevel(logging.INFO if verbose else logging.NOTSET)


class Rate:
    """Steps a second since it was last asked; `steps_done` is the count at which it starts."""

    def __init__(self, steps_done: int = 0) -> None:
        self._steps, self._began = steps_done, time.monotonic()

    def steps_per_second(self, steps_done: int) -> float:
        """The rate since the last call, or since the start."""
        now = time.monotonic()
        rate = (steps_done - self._steps) / max(now - self._began, 1e-9)
        self._steps, self._began = steps_done, now
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Other work, whose time is none of these steps'."""
        before = time.monotonic()
        try:
            yield
        finally:
            self._began += time.monotonic() - before


class Progress:
    """Progress of a piece of work whose steps are counted with `update`; used as a context manager.

    Args:
        total: number of steps, or None if it is not known.
        description: what is being done, such as "Learning rewards".
        unit: one step, in the singular.
        initial: steps already done (a resumed run); they count as done but not in the rate.
        stream: where to write; the error stream by default. A terminal gets a bar. Anything else gets a line after
            5 seconds, then one every 30 seconds, and one at the end of work that took long enough to have shown any.
    """

    def __init__(
        self,
        total: int | None,
        description: str,
        unit: str = "step",
        *,
        initial: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        stream = stream if stream is not None else sys.stderr
        bar_class: type[tqdm[Any]] = tqdm if stream.isatty() else _PlainLines
        self._bar = bar_class(
            total=total,
            desc=description,
            unit=f" {unit}",
            initial=initial,
            file=stream,
            disable=_quiet,
            dynamic_ncols=True,
        )

    def update(self, n: int = 1, **postfix: float | str) -> None:
        """Count `n` more steps; `postfix` holds figures to show beside them, such as `loss=0.31`."""
        if postfix:
            self._bar.set_postfix(postfix, refresh=False)
        self._bar.update(n)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Other work, whose time is none of these steps' and does not count in what they are said to take."""
        before = self._elapsed
        try:
            yield
        finally:
            if not self._bar.disable:
                away = self._elapsed - before
                self._bar.start_t += away
                self._bar.last_print_t += away

    @property
    def _elapsed(self) -> float:
        return float(self._bar.format_dict["elapsed"])

    def close(self) -> None:
        """End the bar; closing twice does no harm."""
        self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def progress(
    items: Iterable[T], description: str, unit: str = "step", *, total: int | None = None, stream: TextIO | None = None
) -> Iterator[T]:
    """The items, one by one, with their progress shown. `total` is their number where `len(items)` is not known."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(total, description, unit, stream=stream) as bar:
        for item in items:
            yield item
            bar.update()


class _PlainLines(tqdm):
    """tqdm's counting and clock with whole lines instead of a bar that is drawn over and over."""

    monitor_interval = 0  # no thread that refreshes between updates

    def __init__(self, **options: Any) -> None:
        super().__init__(mininterval=FIRST_LINE_SECONDS, miniters=1, delay=FIRST_LINE_SECONDS, leave=False, **options)
        self._shown = False

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:
            self.fp.write(self._line() + "\n")
            self.fp.flush()
            self._shown = True
            self.mininterval = LINE_SECONDS

    def close(self) -> None:
        if not self.disable and self._shown and self.n != self.last_print_n:
            self.display()
        super().close()

    def _line(self) -> str:
        state = self.format_dict
        done, elapsed, unit = self.n, state["elapsed"], self.unit.strip()
        units = f"{unit}es" if unit.endswith(("ch", "s", "x")) else f"{unit}s"
        of_total = "" if self.total is None else f"/{self.total}"
        parts = [f"{self.desc.removesuffix(': ')}: {done}{of_total} {units}"]
        rate = state["rate"] or (done - self.initial) / max(elapsed, 1e-9)
        if rate > 0:
            parts.append(f"{rate:.1f} {units}/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit}")
            if self.total is not None and done < self.total:
                parts.append(f"{self.format_interval((self.total - done) / rate)} left")
        if self.total is None or done >= self.total:
            parts.append(f"{self.format_interval(elapsed)} in all")
        if self.postfix:
            parts.append(str(self.postfix))
        return ", ".join(parts)
