"""Time of scoring against prompts x examples: does it grow linearly?

    python -m scripts.benchmarks.throughput_curve --base_path DATA --output curve.json --plot curve.svg

A masked task LM of roberta-base's size with random weights scores 2, 4, ... 64 prompts on the 32 train texts of SST-2.
Throughput that does not depend on the number of prompts means that a progress bar tells the truth and that a run can
be planned from one figure. DATA holds 16-shot/sst-2.
"""

from common.training.program import run_command

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.training.console import Parser
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.task_lm import make_task_lm
from scripts.benchmarks import models
from scripts.benchmarks.measuring import Clock, described, environment, finish, number, table

PROMPTS = (2, 4, 8, 16, 32, 64)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print a report in Markdown, write figures and plot."""
    parser = Parser("scripts/benchmarks/throughput_curve.py", __doc__)
    models.add_arguments(parser)
    parser.add_argument("--prompts", type=int, nargs="+", default=list(PROMPTS), help="numbers of prompts")
    parser.add_argument("--plot", type=Path, help="PNG or SVG file for the curve")
    arguments = parser.parse_args(words)
    if arguments.plot is not None and arguments.plot.suffix not in (".png", ".svg"):
        raise UserError(f"--plot: '{arguments.plot}' is neither a .png nor a .svg file")
    models.start(arguments.threads, arguments.seed)
    before = environment()
    points = measure(arguments)
    figures = {"environment": before, "tiny": arguments.tiny, "points": points, "exponent": exponent(points)}
    print(report(figures, described(before)))
    if arguments.plot is not None:
        plot(points, arguments.plot)
    finish(arguments.output, figures)
    return 0


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Score each number of prompts once, all of them new."""
    setting = models.make_setting("sst-2", arguments.base_path, arguments.tiny)
    policy = models.make_policy(setting)
    model = models.make_masked_lm(setting)
    task_lm = make_task_lm(model, setting.task_tokenizer, setting.spec, torch.device("cpu"), is_mask_lm=True)
    generator = torch.Generator().manual_seed(arguments.seed)
    points = []
    for count in arguments.prompts:
        prompts = policy.texts(policy.sample(count, generator, setting.settings.policy.top_k).tokens)
        scorer, clock = PromptScorer(task_lm, setting.splits.train), Clock()
        print(f"... {count} prompts", file=sys.stderr, flush=True)
        clock.time(partial(scorer.score, prompts))
        points.append(
            {
                "prompts": count,
                "examples": len(scorer.examples),
                "pairs": scorer.pairs_scored,
                "seconds": clock.seconds,
                "wall_seconds": clock.wall_seconds,
            }
        )
    return points


def exponent(points: Sequence[dict[str, Any]]) -> float:
    """Slope of log time over log pairs, by least squares: 1 is linear."""
    x = torch.tensor([float(point["pairs"]) for point in points]).log()
    y = torch.tensor([point["seconds"] for point in points]).log()
    if len(points) < 2:
        return float("nan")
    return (((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()).item()


def report(figures: dict[str, Any], environment_line: str) -> str:
    """The figures as Markdown."""
    rows = [
        [
            f"{point['prompts']} x {point['examples']}",
            f"{point['pairs']}",
            number(point["seconds"]),
            number(point["pairs"] / point["seconds"]),
            number(point["wall_seconds"]),
        ]
        for point in figures["points"]
    ]
    title = "# Throughput of scoring" + (" (TINY MODEL)" if figures["tiny"] else "")
    slope = f"Time grows with the number of pairs to the power of {figures['exponent']:.3f} (least squares)."
    header = ["prompts x texts", "pairs", "seconds", "pairs a second", "wall seconds"]
    return "\n\n".join([title, environment_line, slope, table(header, rows)])


def plot(points: Sequence[dict[str, Any]], file: Path) -> None:
    """Seconds and pairs a second over the number of pairs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    pairs = [point["pairs"] for point in points]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.loglog(pairs, [point["seconds"] for point in points], "o-", label="measured")
    per_pair = points[-1]["seconds"] / points[-1]["pairs"]
    left.loglog(pairs, [per_pair * count for count in pairs], "--", color="grey", label="proportional")
    left.set_ylabel("seconds")
    left.legend()
    right.semilogx(pairs, [point["pairs"] / point["seconds"] for point in points], "o-")
    right.set_ylabel("pairs a second")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("prompts x examples")
        axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


if __name__ == "__main__":
    run_command(main)
