"""Clocks, memory and tables of the benchmarks."""

import ctypes
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from common.training.files import write_json_atomic
from common.training.runtime import peak_memory_mib

MIB = 2**20


@dataclass
class Clock:
    """Repeated measurements of one piece of work.

    On a machine that others use too, wall time counts their work; CPU time of the process does not, and with one
    thread the two are the same on an idle machine.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def time(self, work: Callable[[], Any], steps: int = 1) -> Any:
        """Run `work` once more and take the time of each of its steps; gives back what it gives."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.cpu.append((time.process_time() - cpu) / steps)
        self.wall.append((time.perf_counter() - wall) / steps)
        return result

    @property
    def seconds(self) -> float:
        """Median CPU seconds with one thread, median wall seconds with more."""
        return statistics.median(self.cpu if torch.get_num_threads() == 1 else self.wall)

    @property
    def wall_seconds(self) -> float:
        """Median wall seconds."""
        return statistics.median(self.wall)


def resident_mib() -> float:
    """Memory that the process holds now; where the system does not tell, the most it has held so far."""
    return _status("VmRSS")


def peak_mib() -> float:
    """The most memory that the process has held, or has held since `reset_peak`.

    Linux reports it in /proc. Elsewhere it is ``ru_maxrss``, which a process inherits from the one that started it.
    """
    return _status("VmHWM")


def reset_peak() -> None:
    """Count the peak anew from here, where the system can; memory that is free but still held is given back first."""
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5", encoding="ascii")


def _status(name: str) -> float:
    file = Path("/proc/self/status")
    if not file.exists():
        return peak_memory_mib()["cpu"]
    lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def environment() -> dict[str, Any]:
    """What the figures were measured on; the load is the system's own average over one and five minutes."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "load": list(os.getloadavg()[:2]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def described(before: dict[str, Any]) -> str:
    """One line for the head of a report: `before` is the environment at the start."""
    one, five = os.getloadavg()[:2]
    time_kind = "CPU seconds of the one thread" if torch.get_num_threads() == 1 else "wall seconds"
    return (
        f"{before['machine']}, {before['threads']} thread(s), torch {before['torch']}, transformers "
        f"{before['transformers']}; times are {time_kind}; load (1 and 5 minutes) {before['load'][0]:.1f} "
        f"{before['load'][1]:.1f} at the start, {one:.1f} {five:.1f} at the end"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def number(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if value == 0:
        return "0"
    digits = max(0, 2 - int(torch.tensor(abs(value)).log10().floor()))
    return f"{value:,.{digits}f}"


def finish(output: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures where the user wants them."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(output, figures)
        print(f"\n{output}", file=sys.stderr)
