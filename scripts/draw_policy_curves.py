"""How a policy's samples are judged while it learns, over seeds: curves against rollouts, with bands.

    python scripts/draw_policy_curves.py outputs/sweep/chat --output curves.png
    python scripts/draw_policy_curves.py RUNS --curve policy/reply_length --output lengths.svg

RUNS are folders of chat runs with a policy stage, or folders with some anywhere below; those of one method, such as one
granularity, are one line: the mean over its seeds, and a band of one sample deviation to either side from two seeds on.
A point is a mean over several steps; a curve ends where the shortest of its runs does.
"""

from common.training.program import run_command

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.errors import UserError, printable_text
from common.reporting.run_table import Row, Run, collect
from common.training.console import Parser
from common.training.files import check_output
from common.training.ranges import COUNT
from common.training.tracking import read_metrics
from scripts.collect_results import REPLIES

CURVES = ("policy/judge", "policy/score", "policy/reply_length", "policy/entropy", "policy/kl", "policy/cut_share")
LABEL_WIDTH = 80  # characters
TITLES = {"policy/judge": "judge's score of the samples", "policy/score": "learned score of the samples"}


def curve(run: Run, name: str, steps_a_point: int) -> np.ndarray:
    """Points (rollouts, value) of a run, (P, 2); steps behind the last whole point are left out.

    Raises:
        UserError: its log cannot be read.
    """
    rollouts = run.results["rollouts"] / run.results["policy_steps"]
    found = [(e["step"] * rollouts, e[name]) for e in read_metrics(run.folder / "metrics.jsonl") if name in e]
    points = np.array([p for p in found if p[1] is not None], dtype=float).reshape(-1, 2)
    whole = len(points) // steps_a_point
    return np.asarray(points[: whole * steps_a_point].reshape(whole, steps_a_point, 2).mean(1))


def band(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rollouts, mean and sample deviation (0 of one run) over runs, as far as all went: (P,) each."""
    shortest = min(map(len, curves))
    values = np.stack([points[:shortest, 1] for points in curves])
    deviation = values.std(0, ddof=1) if len(curves) > 1 else np.zeros(shortest)
    return curves[0][:shortest, 0], values.mean(0), deviation


def draw(rows: Sequence[Row], name: str, steps_a_point: int, path: Path) -> int:
    """A chart for each data set, a line for each method. Returns how many lines there are.

    Raises:
        UserError: there is none.
    """
    lines: dict[str, list[tuple[Row, list[np.ndarray]]]] = {}
    for row in rows:
        runs = [run for run in row.runs.values() if "policy_steps" in run.results]
        curves = [points for points in (curve(run, name, steps_a_point) for run in runs) if len(points)]
        if curves:
            lines.setdefault(row.dataset, []).append((row, curves))
    if not lines:
        raise UserError(f"--curve: no complete run with a policy has {steps_a_point} steps of '{name}' in its log")
    with matplotlib.rc_context({"svg.hashsalt": "token-guidance", "text.parse_math": False, "font.size": 9}):
        most = max(map(len, lines.values()))
        figure = Figure(figsize=(6 * len(lines), 4 + 0.3 * most), layout="constrained")
        FigureCanvasAgg(figure)
        for number, (dataset, methods) in enumerate(lines.items(), start=1):
            axes = figure.add_subplot(1, len(lines), number)
            labels = _labels([row for row, _ in methods])
            for color, (label, (_, curves)) in enumerate(zip(labels, methods, strict=True)):
                label = textwrap.fill(f"{printable_text(label)} (n={len(curves)})", LABEL_WIDTH)
                rollouts, mean, deviation = band(curves)
                axes.plot(rollouts, mean, color=f"C{color % 10}", label=label)
                axes.fill_between(
                    rollouts, mean - deviation, mean + deviation, color=f"C{color % 10}", alpha=0.2, linewidth=0
                )
            axes.set_title(printable_text(dataset))
            axes.set_xlabel("rollouts")
            axes.set_ylabel(TITLES.get(name, name))
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.12))  # below the curves
        figure.savefig(path, dpi=150)
    return sum(map(len, lines.values()))


def _labels(rows: Sequence[Row]) -> list[str]:
    """What tells the lines apart; without folders where other options do."""
    short = [
        ", ".join(f"{name}={row.options[name]}" for name in row.options if not name.endswith("_path")) for row in rows
    ]
    return [row.label for row in rows] if len(set(short)) < len(rows) or not all(short) else short


def main(words: Sequence[str] | None = None) -> int:
    """Read the runs and draw."""
    parser = Parser("scripts/draw_policy_curves.py", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders that hold some")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="png, svg or pdf")
    parser.add_argument("--curve", choices=CURVES, default=CURVES[0], help=f"figure of metrics.jsonl ({CURVES[0]})")
    parser.add_argument(
        "--steps_a_point", type=COUNT, default=10, metavar="N", help="steps that a point is the mean of"
    )
    options = parser.parse_args(words)
    if options.output.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--output: '{options.output}' is no .png, .svg or .pdf")
    check_output("--output", options.output)
    rows, problems = collect(options.runs, (REPLIES,))
    for problem in problems:
        print(printable_text(f"not drawn: {problem.kind}: {problem.where}: {problem.reason}"))
    draw(rows, options.curve, options.steps_a_point, options.output)
    print(options.output)
    return 0


if __name__ == "__main__":
    run_command(main)
