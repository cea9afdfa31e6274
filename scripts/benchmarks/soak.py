"""Soak run: one long built-in run left alone, and the same run killed (SIGKILL) and resumed at random instants.

    python -m scripts.benchmarks.soak --task prompt --minutes 60 --output DIR
    python -m scripts.benchmarks.soak --task summary --minutes 60 --output DIR

Both go on side by side, with one thread each. The second is killed at random instants until `--minutes` have passed,
and then runs to its end. At that end its results, its sequences and its weights have to equal those of the first to the
last bit, and the memory of the first must not grow by more than 2 % an hour once it is warm. `--length` says how long
the run is, in multiples of the built-in configuration; it has to last for those minutes. Writes soak.json and
memory.csv, the latter also of runs that failed; the exit code is 1 where one of the three does not hold.
"""

from common.training.program import run_command

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from common.training.console import Parser
from common.training.files import write_json_atomic, write_text_atomic
from common.training.progress import Progress

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TIMED = {"wall_seconds", "seconds_in_this_process", "peak_memory_mib"}
GROWTH_ALLOWED = 0.02  # of the memory, an hour


@dataclass(frozen=True)
class Command:
    """A run that is typed again and again.

    Attributes:
        words: what python gets, without output folder and resuming.
        output: the word that names the output folder, with {} for it.
        resume: the word that lets it go on.
        files: what its outcome consists of beside results.json, below the output folder.
    """

    words: tuple[str, ...]
    output: str
    resume: str
    files: tuple[str, ...]

    def start(self, folder: Path, log: Path, resume: bool = False) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own, its output added to `log`."""
        words = [sys.executable, *self.words, self.output.format(folder), *([self.resume] if resume else [])]
        with open(log, "ab") as file:
            return subprocess.Popen(words, env=ENVIRONMENT, stdout=file, stderr=file, start_new_session=True)

    def outcome(self, folder: Path) -> dict[str, object]:
        """Everything that must be equal to the last bit; only clock and memory may differ."""
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        found: dict[str, object] = {"results.json": {k: v for k, v in results.items() if k not in TIMED}}
        return found | {name: (folder / name).read_bytes() for name in self.files}


def prompt_command(*options: str) -> Command:
    """The prompt task on the built-in models."""
    words = (str(ROOT / "prompt_task" / "run_fsc.py"), "--config-name=builtin", "quiet=true", *options)
    files = ("prompts.csv", "policy/adaptor.safetensors", "reward_model/model.safetensors")
    return Command(words, "output_folder={}", "resume=auto", files)


def summary_command(*options: str, launcher: Sequence[str] = ()) -> Command:
    """Summarization on the built-in model."""
    config = f"--config={ROOT / 'configs' / 'sum_builtin.yaml'}"
    words = (*launcher, str(ROOT / "sum_task" / "run_sum.py"), config, "--quiet", *options)
    files = ("predictions.jsonl", "policy/model.safetensors", "reward_model/model.safetensors")
    return Command(words, "--output_dir={}", "--resume", files)


def soak_command(task: str, length: float) -> Command:
    """A run `length` times as long as the built-in one, half of it with a round of reward learning twice an epoch."""
    if task == "prompt":
        return prompt_command(
            f"max_train_steps={math.ceil(500 * length)}", f"early_stop_count={math.ceil(10 * length)}",
            "checkpoint_steps=50",
        )  # fmt: skip
    return summary_command(
        f"--num_train_epochs={2 * length}",
        f"--reward_retrain_epochs={length}",
        "--reward_retrain_period=0.5",
        "--checkpoint_steps=50",
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a run and all its processes at once, wherever they are.

    The workers of a launcher have sessions of their own, so that its process group is not all; the launcher is stopped
    first, lest it starts another one meanwhile.
    """
    with suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(process.pid)
        launcher.suspend()
        for one in [launcher, *launcher.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


@dataclass
class Watched:
    """A run with the memory it held.

    Attributes:
        command, folder: what it is, and where.
        memory: (seconds since the start, number of the process, resident MiB).
        seconds: until it ended; None while it goes on.
    """

    command: Command
    folder: Path
    memory: list[tuple[float, int, float]] = field(default_factory=list)
    lives: int = 0
    seconds: float | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder.with_suffix(".log")

    def start(self) -> None:
        """Start it, or let it go on."""
        self.process = self.command.start(self.folder, self.log, resume=self.lives > 0)
        self.lives += 1

    def kill(self) -> None:
        """End its process, if there is one."""
        if self.process is not None:
            kill(self.process)

    def look(self, now: float) -> None:
        """Note its memory, or that it has ended.

        Raises:
            RuntimeError: it failed.
        """
        if self.seconds is not None or self.process is None:
            return
        code = self.process.poll()
        if code is None:
            try:
                resident = psutil.Process(self.process.pid).memory_info().rss
            except psutil.NoSuchProcess:
                return
            self.memory.append((now, self.lives, resident / 2**20))
        elif code == 0:
            self.seconds = now
        else:
            raise RuntimeError(f"the run '{self.folder}' failed with exit code {code}; {self.log} says why")


def growth_per_hour(memory: Sequence[tuple[float, float]], warm_up: float) -> float:
    """Slope of the resident memory over time, as a share of its median an hour.

    The line is Theil and Sen's, the median of the slopes of all pairs: a few short peaks do not turn it.

    Args:
        memory: (seconds, MiB).
        warm_up: seconds that are left out at the start.

    Returns:
        NaN where there are not two moments to compare.
    """
    warm = [row for row in memory if row[0] >= warm_up]
    if len(warm) < 2:
        return math.nan
    seconds, mib = np.array(warm, dtype=float).T
    step = max(len(seconds) // 1000, 1)  # pairs of a thousand moments are enough
    seconds, mib = seconds[::step], mib[::step]
    first, second = np.triu_indices(len(seconds), 1)
    slope = np.median((mib[second] - mib[first]) / (seconds[second] - seconds[first]))
    return float(slope * 3600 / np.median(mib))


def soak(command: Command, output: Path, minutes: float, seed: int, between: tuple[float, float]) -> dict[str, Any]:
    """The two runs side by side. Returns the figures.

    Args:
        command: the run.
        output: folder of both runs, of their log and of the memory.
        minutes: how long the second is killed again and again.
        seed: of the instants.
        between: fewest and most seconds from one start to the kill.
    """
    output.mkdir(parents=True)
    instants = random.Random(seed)
    began = time.monotonic()
    whole, broken = Watched(command, output / "whole"), Watched(command, output / "broken")
    try:
        whole.start()
        broken.start()
        kill_at = instants.uniform(*between)
        with Progress(None, "soak", "look") as bar:
            while whole.seconds is None or broken.seconds is None:
                time.sleep(1.0)
                now = time.monotonic() - began
                bar.update(kills=str(broken.lives - 1), whole="done" if whole.seconds else "running")
                whole.look(now)
                broken.look(now)
                if broken.seconds is None and kill_at <= now <= minutes * 60:
                    broken.kill()
                    broken.start()
                    kill_at = now + instants.uniform(*between)
    finally:
        for run in (whole, broken):
            run.kill()
        rows = [(run.folder.name, *row) for run in (whole, broken) for row in run.memory]
        table = pd.DataFrame(rows, columns=["run", "seconds", "life", "mib"])
        write_text_atomic(output / "memory.csv", table.to_csv(index=False))
    expected, found = command.outcome(whole.folder), command.outcome(broken.folder)
    assert whole.seconds is not None and broken.seconds is not None
    warm_up = whole.seconds / 6
    return {
        "kills": broken.lives - 1,
        "minutes_whole": whole.seconds / 60,
        "minutes_broken": broken.seconds / 60,
        "different": sorted(name for name in expected if expected[name] != found[name]),
        "warm_up_minutes": warm_up / 60,
        "median_mib": float(np.median([mib for seconds, _, mib in whole.memory if seconds >= warm_up])),
        "growth_per_hour": growth_per_hour([(seconds, mib) for seconds, _, mib in whole.memory], warm_up),
        "peak_mib_of_lives": table[table.run == "broken"].groupby("life").mib.max().round(1).tolist(),
    }


def main(words: Sequence[str] | None = None) -> int:
    """Run, print and write the figures. Returns the exit code."""
    parser = Parser("scripts/benchmarks/soak.py", __doc__)
    parser.add_argument("--task", choices=("prompt", "summary"), required=True)
    parser.add_argument("--output", type=Path, required=True, help="new folder for the runs and their figures")
    parser.add_argument("--minutes", type=float, default=60, help="kill and resume for so long (default: 60)")
    parser.add_argument("--length", type=float, default=20, help="times the built-in run (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants (default: 0)")
    parser.add_argument(
        "--between", type=float, nargs=2, default=(20, 400), metavar=("FEWEST", "MOST"),
        help="seconds from a start to the kill (default: 20 400)",
    )  # fmt: skip
    arguments = parser.parse_args(words)
    if arguments.output.exists():
        parser.error(f"--output: '{arguments.output}' exists already")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runs are ended too
    figures = soak(
        soak_command(arguments.task, arguments.length), arguments.output, arguments.minutes, arguments.seed,
        tuple(arguments.between),
    )  # fmt: skip
    figures = {"task": arguments.task, "length": arguments.length} | figures
    figures["load"] = os.getloadavg()
    write_json_atomic(arguments.output / "soak.json", figures)
    print(json.dumps(figures, indent=1))
    print(arguments.output / "soak.json")
    return int(not passed(figures, arguments.minutes))


def passed(figures: dict[str, Any], minutes: float) -> bool:
    """Whether the run was killed for so many minutes, ended alike all the same, and its memory was flat."""
    lasted = figures["kills"] > 0 and figures["minutes_broken"] >= minutes
    return lasted and not figures["different"] and figures["growth_per_hour"] <= GROWTH_ALLOWED


if __name__ == "__main__":
    run_command(main)
