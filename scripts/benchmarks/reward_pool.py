"""What `reward_pool_size` costs and saves: runs on the built-in models, and a run of the published size by its parts.

    python -m scripts.benchmarks.reward_pool --pool_sizes 64 --seeds 0 1 2 --output pool.json
    python -m scripts.benchmarks.reward_pool --speed speed.json

The first form trains on the built-in models (configs/builtin.yaml) with fresh prompts at each step of reward learning,
the published behaviour, and with pools of the sizes given, once for each seed. With --speed, what
prompt_task_speed.py wrote, it also tells how long a run with published settings takes with a pool, against the
straightforward way; `--seeds` without numbers leaves the runs out. Words of the form key=value are options of
run_fsc.py, for all runs.
"""

from common.training.program import run_command

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.training.console import Parser
from prompt_task.command_line import read_command
from prompt_task.run_fsc import run
from scripts.benchmarks import memory
from scripts.benchmarks.measuring import described, environment, finish, number, table
from scripts.benchmarks.whole_run import Prices, whole_run


def main(words: Sequence[str] | None = None) -> int:
    """Run, compose, print a report in Markdown, write the figures."""
    parser = Parser("scripts/benchmarks/reward_pool.py", __doc__)
    parser.add_argument("--pool_sizes", type=int, nargs="+", default=[64], help="prompts of a pool (64)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds of the runs (0 1 2)")
    parser.add_argument("--speed", type=Path, help="JSON file of prompt_task_speed.py")
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments, options = parser.parse_known_args(words)
    before = environment()
    figures: dict[str, Any] = {"environment": before, "options": options, "runs": [], "published": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for size in (0, *arguments.pool_sizes):
                figures["runs"].append(run_once(seed, size, options, Path(folder)))
    if arguments.speed is not None:
        figures["published"] = compose(arguments.speed, arguments.pool_sizes)
    print(report(figures, described(before)))
    finish(arguments.output, figures)
    return 0


def run_once(seed: int, pool_size: int, options: Sequence[str], folder: Path) -> dict[str, Any]:
    """One run on the built-in models: its accuracy, prompts scored, wall and CPU seconds."""
    print(f"... seed {seed}, pool {pool_size}", file=sys.stderr, flush=True)
    own = [f"random_seed={seed}", f"reward_pool_size={pool_size}", "quiet=true", "checkpoint_minutes=0"]
    own.append(f"output_folder='{folder / f'{seed}-{pool_size}'}'")
    command = read_command(["--config-name=builtin", *options, *own])
    wall, cpu = time.perf_counter(), time.process_time()
    results = run(command)
    return {
        "seed": seed,
        "pool_size": pool_size,
        "test_accuracy": results["test_accuracy"],
        "prompts_scored": results["prompts_scored"],
        "pairs_scored": results["pairs_scored"],
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }


def compose(speed: Path, pool_sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Hours of a whole run with published settings, the straightforward way and with each pool.

    Raises:
        UserError: the file is not what prompt_task_speed.py writes.
    """
    try:
        found = json.loads(speed.read_text(encoding="utf-8"))
        prices = {way: Prices(**found["prices"][way]) for way in memory.WAYS}
        sizes = tuple(found["num_examples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--speed: '{speed}' is not a file of prompt_task_speed.py: {error}") from None
    settings = read_command([]).settings
    old = whole_run(settings, prices["straightforward"], sizes, straightforward=True)["total"] / 3600
    rows = []
    for size in (0, *pool_sizes):
        hours = whole_run(settings, prices["project"], sizes, False, pool_size=size)["total"] / 3600
        rows.append({"pool_size": size, "hours": hours, "straightforward_hours": old, "ratio": old / hours})
    return rows


def report(figures: dict[str, Any], environment_line: str) -> str:
    """The figures as Markdown."""
    parts = ["# Reward learning from a pool of scored prompts", environment_line]
    if figures["runs"]:
        parts.append(f"Built-in models, seeds {' '.join(str(s) for s in dict.fromkeys(_of(figures, 'seed')))}:")
        rows = []
        for size in dict.fromkeys(_of(figures, "pool_size")):
            own = [row for row in figures["runs"] if row["pool_size"] == size]
            accuracies = [100 * row["test_accuracy"] for row in own]
            spread = f" ({statistics.stdev(accuracies):.1f})" if len(own) > 1 else ""
            means = [
                statistics.fmean(row[key] for row in own) for key in ("prompts_scored", "wall_seconds", "cpu_seconds")
            ]
            rows.append([_name(size), f"{statistics.fmean(accuracies):.1f}{spread}", *map(number, means)])
        parts.append(table(["", "test accuracy, mean (std)", "prompts scored", "wall s", "CPU s"], rows))
    if figures["published"]:
        parts.append("A whole run with published settings, every round and the policy to their last step, in hours:")
        rows = [
            [
                _name(row["pool_size"]),
                number(row["straightforward_hours"]),
                number(row["hours"]),
                f"{row['ratio']:.1f} x",
            ]
            for row in figures["published"]
        ]
        parts.append(table(["", "straightforward", "project", "ratio (with a pool >= 10 x wanted)"], rows))
    return "\n\n".join(parts)


def _of(figures: dict[str, Any], key: str) -> list[int]:
    return [row[key] for row in figures["runs"]]


def _name(pool_size: int) -> str:
    return f"pool of {pool_size}" if pool_size else "fresh prompts each step (default)"


if __name__ == "__main__":
    run_command(main)
