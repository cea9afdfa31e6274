"""How many prompts x examples a second two processes score in a whole run, against one process.

    python -m scripts.benchmarks.process_throughput task_lm=gpt2 policy_lm=distilgpt2 base_path=DATA max_train_steps=20

A prompt run with these options, by turns in one process and in several, each with one thread (OMP_NUM_THREADS=1) and
its own core. What is counted is what `results.json` says: pairs of a prompt and an example scored, by the seconds from
the first step to the last file. Both must find the same prompts. Everything but the flags below is an option of
run_fsc.py; the number of processes should not be more than the machine has cores.
"""

from common.training.program import run_command

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.training.command_line import ROOT
from common.training.console import Parser
from scripts.benchmarks.measuring import environment, finish, number, table


def main(words: Sequence[str] | None = None) -> int:
    """Run by turns, print a report in Markdown, write figures."""
    parser = Parser("scripts/benchmarks/process_throughput.py", __doc__)
    parser.add_argument("--processes", type=int, default=2, help="how many stand against one")
    parser.add_argument("--turns", type=int, default=2, help="runs of each")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments, options = parser.parse_known_args(words)
    if arguments.processes < 2 or arguments.turns < 1:
        raise UserError("--processes takes at least 2, --turns at least 1")
    before = environment()
    with tempfile.TemporaryDirectory() as place:
        turns = [
            {count: run(options, count, Path(place, f"{turn}-{count}")) for count in (1, arguments.processes)}
            for turn in range(arguments.turns)
        ]
    figures = compare(turns, arguments.processes) | {"environment": before, "options": options}
    print(report(figures))
    finish(arguments.output, figures)
    return 0


def run(options: Sequence[str], processes: int, folder: Path) -> dict[str, Any]:
    """One run: its pairs, seconds and prompts, best first.

    Raises:
        UserError: it ended otherwise.
    """
    print(f"... {processes} process{'es' if processes > 1 else ''}", file=sys.stderr, flush=True)
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        f"--num_processes={processes}",
        "--main_process_port=0",
    ]
    words = [str(ROOT / "prompt_task" / "run_fsc.py"), *options, f"output_folder={folder}", "quiet=true"]
    done = subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise UserError(f"the run in {processes} processes failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if results["processes"] != processes:
        raise UserError(f"asked for {processes} processes, got {results['processes']}")
    with open(folder / "prompts.csv", encoding="utf-8", newline="") as file:
        prompts = [row["prompt"] for row in csv.DictReader(file)]
    return {"pairs": results["pairs_scored"], "seconds": results["wall_seconds"], "prompts": prompts}


def compare(turns: Sequence[dict[int, dict[str, Any]]], many: int) -> dict[str, Any]:
    """Pairs a second of each and their ratio, the median of the turns'.

    Raises:
        UserError: the runs are not the same.
    """
    if any(turn[1]["prompts"] != turn[many]["prompts"] or turn[1]["pairs"] != turn[many]["pairs"] for turn in turns):
        raise UserError("the runs did not score the same prompts")
    rates = {count: [turn[count]["pairs"] / turn[count]["seconds"] for turn in turns] for count in (1, many)}
    return {
        "processes": many,
        "pairs": turns[0][1]["pairs"],
        "pairs_per_second": {str(count): values for count, values in rates.items()},
        "ratio": statistics.median(b / a for a, b in zip(rates[1], rates[many], strict=True)),
    }


def report(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    where = figures["environment"]
    rows = [
        [f"{count} process{'es' if count != '1' else ''}", number(statistics.median(values)), str(len(values))]
        for count, values in figures["pairs_per_second"].items()
    ]
    head = f"{where['machine']}, a thread a process, torch {where['torch']}; load at the start {where['load'][0]:.1f}"
    measured = table(["", "prompts x examples a second", "turns"], rows)
    return f"{head}\n\n{measured}\n\n{figures['pairs']} pairs a run, the same prompts; ratio {figures['ratio']:.2f}"


if __name__ == "__main__":
    run_command(main)
