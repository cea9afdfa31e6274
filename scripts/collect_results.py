"""Run folders to one table: data set x method x options, mean (std) and n over seeds, published figures beside ours.

    python scripts/collect_results.py outputs/sweep/fsc
    python scripts/collect_results.py outputs/sweep/fsc outputs/fsc --output outputs/table
    python scripts/collect_results.py RUNS --compare guidance=token,agg_func=max guidance=sequence

RUNS are run folders, or folders with some anywhere below. Runs are of one row where their resolved options
(config.yaml) are equal but for seeds, places and what cannot change a result. A run that was cut off or failed is in no
mean, nor is a second run of the same row and seed; both are listed, and so is every seed that one row has and another
lacks.

--compare A B takes one method minus another over the seeds that both have, for each data set: the mean difference with
its 95 % bootstrap interval, from five seeds on. A method is named by options that only it has, as key=value,key=value.
Without it all pairs are compared where a data set has up to 4 methods.

Written to --output: table.md, table.csv, table.tex, runs.csv (every run), compare.csv, plot.svg, plot.png (each seed a
point) and report.html, one page of all this with curves, and the prompts or summaries that improved most and least.
"""

from common.training.program import run_command

import argparse
import csv
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from chat_task import settings as chat_settings
from common.errors import UserError, printable_text
from common.reporting.markdown import markdown_table, markdown_text
from common.reporting.report import NO_VALUE, Panel, PointsPanel, Report, curves_from_metrics, spread, wrapped
from common.reporting.run_table import (
    FEWEST_SEEDS,
    Metric,
    Paired,
    Problem,
    Row,
    Run,
    TaskTable,
    code_versions,
    collect,
    mean_and_std,
    paired,
    seed_text,
)
from common.training.console import Parser
from common.training.data_files import marked_cell
from common.training.files import write_bytes_atomic, write_text_atomic
from common.training.tracking import read_metrics
from prompt_task import settings as fsc_settings
from sum_task import settings as sum_settings

PROMPTS = TaskTable(
    name="prompt",
    title="Few-shot prompts",
    dataset="dataset",
    seeds=("dataset_seed", "random_seed"),
    ignored=frozenset(fsc_settings.NEUTRAL),
    metrics=(Metric("test accuracy", "test_accuracy", 100.0),),
)
SUMMARIES = TaskTable(
    name="summarization",
    title="Summarization",
    dataset="dataset_name",
    seeds=("seed",),
    ignored=frozenset(sum_settings.NEUTRAL | {"expid"}),
    metrics=(
        Metric("ROUGE-1", "test_rouge1"),
        Metric("ROUGE-2", "test_rouge2"),
        Metric("ROUGE-L", "test_rougeL"),
        Metric("ROUGE-Lsum", "test_rougeLsum"),
        Metric("METEOR", "test_meteor"),
        Metric("BERTScore", "test_bertscore"),
        Metric("preference x 100", "test_preference", 100.0),  # that was trained for, on a scale of its own
    ),
    unread=sum_settings.UNREAD,
)
REPLIES = TaskTable(
    name="chat",
    title="Rewards of replies, and policies by them",
    dataset="dataset_name",
    seeds=("seed",),
    ignored=frozenset(chat_settings.NEUTRAL | {"expid"}),
    metrics=(
        Metric("rank accuracy", "reward_rank_accuracy", 100.0),
        Metric("length alone", "reward_length_only_accuracy", 100.0),
        Metric("swap accuracy", "reward_swap_accuracy", 100.0),
        Metric("errors, area under the curve", "span_auc", 100.0),
        Metric("errors by words", "span_auc_words", 100.0),
        Metric("judge's score of the last samples", "policy_samples_judge"),
        Metric("judge's score", "policy_judge_after"),
        Metric("judge's score before", "policy_judge_before"),
        Metric("won against the start", "policy_win_rate", 100.0),
        Metric("won at equal length", "policy_win_rate_length_controlled", 100.0),
        Metric("learned score", "policy_score_after"),
        Metric("learned score before", "policy_score_before"),
        Metric("reply tokens", "policy_reply_length_after"),
        Metric("reply tokens before", "policy_reply_length_before"),
        Metric("rollouts", "rollouts"),
    ),
    unread=chat_settings.UNREAD,
)
TASKS = (PROMPTS, SUMMARIES, REPLIES)
CURVES = {
    "prompt": ("eval/dev_accuracy", "eval/dev_score", "reward/dev_rank_accuracy", "reward/dev_swap_accuracy"),
    "chat": ("reward/dev_rank_accuracy", "reward/rank_accuracy", "reward/loss", "policy/judge", "policy/score"),
    "summarization": ("eval/rougeL", "eval/meteor", "reward/dev_rank_accuracy", "reward/dev_swap_accuracy"),
}
PUBLISHED = Path(__file__).with_name("published_results.yaml")
MAX_METHODS_TO_PAIR = 4
NUM_SHOWN = 5


def main() -> int:
    """Collect, print, write."""
    arguments = _arguments()
    rows, problems = collect(arguments.runs, TASKS)
    if not rows:
        for problem in problems[:20]:
            print(printable_text(f"{problem.kind}: {problem.where}: {problem.reason}"))
        raise UserError(f"no complete run in {', '.join(map(str, arguments.runs))}")
    pairs = compared_rows(rows, arguments.compare)
    comparisons = [
        found
        for one, other in pairs
        for metric in one.task.metrics
        if (found := paired(one, other, metric)) is not None
    ]
    text = markdown(rows, comparisons, problems)
    print(text)
    if arguments.output is not None:
        write_all(arguments.output, text, rows, pairs, comparisons, problems)
    return 0


def _arguments() -> argparse.Namespace:
    parser = Parser("scripts/collect_results.py", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or folders that hold some")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the files go; without it nothing is written")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two methods, such as agg_func=max agg_func=avg")
    return parser.parse_args()


def compared_rows(rows: Sequence[Row], named: Sequence[str] | None) -> list[tuple[Row, Row]]:
    """The pairs of rows to compare: the two that were named, on each data set that has both, or all pairs of a few.

    Raises:
        UserError: a name that is of no row, or of several on one data set.
    """
    by_dataset: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_dataset.setdefault((row.task.name, row.dataset), []).append(row)
    if named is None:
        few = [peers for peers in by_dataset.values() if len(peers) <= MAX_METHODS_TO_PAIR]
        return [pair for peers in few for pair in itertools.combinations(peers, 2)]
    conditions = [_conditions(text) for text in named]
    pairs = []
    for (_, dataset), peers in by_dataset.items():
        found = [[row for row in peers if wanted.items() <= row.method.items()] for wanted in conditions]
        for text, matching in zip(named, found, strict=True):
            if len(matching) > 1:
                labels = "; ".join(row.label for row in matching)
                raise UserError(f"--compare: '{text}' is several methods of {dataset}: {labels}; add key=value")
        if all(found) and found[0][0] is not found[1][0]:
            pairs.append((found[0][0], found[1][0]))
    if not pairs:
        labels = "; ".join(f"{row.dataset}: {row.label}" for row in rows)
        raise UserError(
            f"--compare: no data set has two different methods '{named[0]}' and '{named[1]}'; there are: {labels}"
        )
    return pairs


def _conditions(text: str) -> dict[str, str]:
    parts = [part.partition("=") for part in text.split(",")]
    if not all(key and equals for key, equals, _ in parts):
        raise UserError(f"--compare: '{text}' is not of the form key=value,key=value")
    return {key.strip(): value.strip() for key, _, value in parts}


# --- the table ---


def published_figures() -> dict[tuple[str, str, str, str], tuple[float, float]]:
    """Mean and deviation by (task, data set, aggregation, metric)."""
    found = {}
    for table in yaml.safe_load(PUBLISHED.read_text(encoding="utf-8")):
        for row in table["rows"]:
            for aggregation in row["agg_func"]:
                for metric, figure in zip(table["metrics"], row["figures"], strict=True):
                    found[table["task"], row["dataset"], aggregation, metric] = tuple(figure)
    return found


def table_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One flat mapping a row: numbers are numbers."""
    published = published_figures()
    records = []
    for row in rows:
        record: dict[str, Any] = {
            "task": row.task.name,
            "data set": row.dataset,
            "guidance": row.method.get("guidance", ""),
            "aggregation": row.method.get("agg_func", ""),
            "options": "; ".join(f"{key}={value}" for key, value in row.options.items()),
            "n": len(row.runs),
            "seeds": "; ".join(seed_text(row.task, seed) for seed in row.runs),
        }
        for metric in row.task.metrics:
            values = list(row.values(metric).values())
            if values:
                record[f"{metric.title} mean"], record[f"{metric.title} std"] = mean_and_std(values)
                record[f"{metric.title} n"] = len(values)
            key = (row.task.name, row.dataset, record["aggregation"], metric.title)
            if record["guidance"] == "token" and key in published:
                record[f"{metric.title} published mean"], record[f"{metric.title} published std"] = published[key]
        records.append(record)
    return records


def shown_records(task: TaskTable, records: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows of one task as texts, mean (std) in one cell, without columns that are empty throughout."""
    shown = []
    for record in records:
        row = {name: str(record[name]) for name in ("data set", "guidance", "aggregation", "options", "n")}
        for metric in task.metrics:
            row[metric.title] = _with_std(record, metric.title)
            if record.get(f"{metric.title} n", record["n"]) != record["n"]:
                row[metric.title] += f", n={record[f'{metric.title} n']}"
            row[f"{metric.title}, published"] = _with_std(record, f"{metric.title} published")
        shown.append(row)
    kept = [name for name in shown[0] if any(row[name] for row in shown)] if shown else []
    return [{name: row[name] for name in kept} for row in shown]


def _with_std(record: dict[str, Any], name: str) -> str:
    if record.get(f"{name} mean") is None:
        return ""
    std = record.get(f"{name} std")
    return f"{record[f'{name} mean']:.2f} ({NO_VALUE if std is None else f'{std:.2f}'})"


def compare_records(comparisons: Sequence[Paired]) -> list[dict[str, Any]]:
    """The comparisons as texts."""
    return [
        {
            "data set": found.dataset,
            "A": found.one,
            "B": found.other,
            "figure": found.metric,
            "seeds": found.n,
            "A's mean": f"{found.mean_one:.2f}",
            "B's mean": f"{found.mean_other:.2f}",
            "A - B": f"{found.difference:+.2f}",
            "95 % interval": NO_VALUE if found.low is None else f"{found.low:+.2f} to {found.high:+.2f}",
        }
        for found in comparisons
    ]


def markdown(rows: Sequence[Row], comparisons: Sequence[Paired], problems: Sequence[Problem]) -> str:
    """All tables as Markdown."""
    parts = []
    records = table_records(rows)
    for task in TASKS:
        own = [record for record in records if record["task"] == task.name]
        if own:
            parts += [
                f"## {task.title}: mean (std) over seeds, shares in percent",
                markdown_table(shown_records(task, own)),
            ]
            if any(name.endswith("published mean") for record in own for name in record):
                parts.append(f"Published: {published_source(task)}. Not ours.")
    parts += [f"* {markdown_text(remark)}" for remark in remarks(rows)]
    if comparisons:
        parts += [
            "## Two methods over the same seeds",
            markdown_table(compare_records(comparisons)),
            f"Interval: percentile bootstrap over seeds, from {FEWEST_SEEDS} of them on.",
        ]
    if problems:
        counted = [{"what": p.kind, "run": p.where, "why": p.reason} for p in problems]
        parts += ["## In no mean", markdown_table(counted)]
    return "\n\n".join(parts)


def published_source(task: TaskTable) -> str:
    """Where the published figures of a task are from."""
    tables = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    return "; ".join(str(table["source"]) for table in tables if table["task"] == task.name)


def remarks(rows: Sequence[Row]) -> list[str]:
    """What a reader of the means should know."""
    found = []
    for row in rows:
        versions = code_versions(row)
        if len(versions) > 1:
            found.append(
                f"{row.dataset}, {row.label}: runs of {len(versions)} versions of the code: {', '.join(versions)}"
            )
    return found


def csv_text(records: Sequence[dict[str, Any]], columns: list[str] | None = None) -> str:
    """Records as CSV whose texts do nothing where it is opened, nor end their row: all of them are quoted."""
    marked = [{name: marked_cell(cell) if isinstance(cell, str) else cell for name, cell in r.items()} for r in records]
    table = pd.DataFrame(marked, columns=columns, dtype=object)  # pandas' own texts hold no halves of characters
    return table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)


# --- the files ---


def write_all(
    output: Path,
    text: str,
    rows: Sequence[Row],
    pairs: Sequence[tuple[Row, Row]],
    comparisons: Sequence[Paired],
    problems: Sequence[Problem],
) -> None:
    """Write every file."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: '{output}' cannot be written: {error.strerror}") from None
    records = table_records(rows)
    write_text_atomic(output / "table.md", text + "\n")
    write_text_atomic(output / "table.csv", csv_text(records))
    write_text_atomic(output / "table.tex", latex(records))
    write_text_atomic(output / "runs.csv", csv_text(run_records(rows)))
    compared = [vars(found) for found in comparisons]
    write_text_atomic(output / "compare.csv", csv_text(compared, list(Paired.__dataclass_fields__)))
    for kind in ("svg", "png"):
        write_bytes_atomic(output / f"plot.{kind}", plot(rows, kind))
    page(rows, pairs, comparisons, problems).write(output / "report.html")
    for name in (
        "table.md",
        "table.csv",
        "table.tex",
        "runs.csv",
        "compare.csv",
        "plot.svg",
        "plot.png",
        "report.html",
    ):
        print(output / name)


def run_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One flat mapping a run."""
    return [
        {
            "task": row.task.name,
            "data set": row.dataset,
            "method": row.label,
            **dict(zip(row.task.seeds, seed, strict=True)),
            **run.figures,
            "wall seconds": run.results.get("wall_seconds"),
            "hardware": run.results.get("hardware"),
            "git commit": (run.results.get("environment") or {}).get("git_commit"),
            "folder": str(run.folder),
        }
        for row in rows
        for seed, run in row.runs.items()
    ]


def latex(records: Sequence[dict[str, Any]]) -> str:
    """A table for each task, with caption and label; its rules are those of booktabs where that is loaded."""
    tables = []
    for task in TASKS:
        own = [record for record in records if record["task"] == task.name]
        if own:
            shown = pd.DataFrame(shown_records(task, own), dtype=object)
            shown = shown.map(lambda cell: printable_text(cell).replace(NO_VALUE, "--"))
            tables.append(
                shown.to_latex(
                    index=False, escape=True, caption=f"{task.title}: mean (std) over seeds, shares in percent",
                    label=f"tab:{task.name}",
                )
            )  # fmt: skip
    plain = "".join(f"\\providecommand{{\\{rule}}}{{\\hline}}\n" for rule in ("toprule", "midrule", "bottomrule"))
    return f"% \\usepackage{{booktabs}} draws better rules than these\n{plain}" + "\n".join(tables)


def plot(rows: Sequence[Row], kind: str) -> bytes:
    """Every seed a point, the mean a bar: one chart for each data set and figure."""
    charts = chart_groups(rows)
    with matplotlib.rc_context({"svg.hashsalt": "token-guidance", "text.parse_math": False, "font.size": 9}):
        columns = min(len(charts), 3)
        lines = -(-len(charts) // columns)
        longest = max(len(groups) for _, _, groups in charts)
        figure = Figure(figsize=(columns * max(3.6, 0.9 * longest + 1), lines * 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        for number, (dataset, metric, groups) in enumerate(charts, start=1):
            axes = figure.add_subplot(lines, columns, number)
            for index, values in enumerate(groups.values()):
                mean = sum(values) / len(values)
                axes.plot([index - 0.28, index + 0.28], [mean, mean], color=f"C{index % 10}", linewidth=2.2)
                axes.plot(spread(index, len(values)), values, "o", color=f"C{index % 10}", alpha=0.75, markersize=5)
            labels = [f"{wrapped(name)}\nn={len(values)}" for name, values in groups.items()]
            axes.set_xticks(range(len(groups)), labels, fontsize=7)
            axes.set_xlim(-0.6, len(groups) - 0.4)
            axes.margins(y=0.12)
            axes.set_title(printable_text(dataset), fontsize=10)
            axes.set_ylabel(metric)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#e3e6eb")
            axes.set_axisbelow(True)
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        return stream.getvalue()


def chart_groups(rows: Sequence[Row]) -> list[tuple[str, str, dict[str, list[float]]]]:
    """(data set, figure, values of each method) of every chart."""
    charts = []
    for task, dataset in dict.fromkeys((row.task, row.dataset) for row in rows):
        for metric in task.metrics:
            own = [row for row in rows if (row.task, row.dataset) == (task, dataset)]
            groups = {row.label: list(row.values(metric).values()) for row in own if row.values(metric)}
            if groups:
                charts.append((dataset, metric.title, groups))
    return charts


# --- the page ---


def page(
    rows: Sequence[Row],
    pairs: Sequence[tuple[Row, Row]],
    comparisons: Sequence[Paired],
    problems: Sequence[Problem],
) -> Report:
    """The report of a sweep."""
    kinds = [problem.kind for problem in problems]
    facts = {
        "complete runs": sum(len(row.runs) for row in rows),
        "methods and data sets": len(rows),
        "failed or cut off": sum(kind in ("failed", "partial", "unreadable") for kind in kinds),
        "missing": kinds.count("missing"),
        "duplicates, not counted": kinds.count("duplicate"),
    }
    datasets = ", ".join(dict.fromkeys(row.dataset for row in rows))
    report = Report("Results over seeds", f"data: {datasets}", facts)
    records = table_records(rows)
    for task in TASKS:
        own = [record for record in records if record["task"] == task.name]
        if own:
            note = "Mean (sample deviation) over n seeds, shares in percent." + (
                f" Published, not ours: {published_source(task)}."
                if any(name.endswith("published mean") for record in own for name in record)
                else ""
            )
            report.add_table(task.title, shown_records(task, own), " ".join([note, *remarks(rows)]))
    panels = [PointsPanel(f"{name}: {metric}", metric, groups) for name, metric, groups in chart_groups(rows)]
    report.add_points("Every seed", panels, "A point is a run, a bar the mean of a method.")
    if comparisons:
        report.add_table(
            "Two methods over the same seeds",
            compare_records(comparisons),
            f"Percentile bootstrap over the seeds' differences, from {FEWEST_SEEDS} seeds on.",
        )
    report.add_curves(
        "Training",
        mean_curves(rows),
        "Mean over the seeds of a method, as far as all of them went. Dashed lines: rounds of reward learning.",
    )
    prompts = improved_prompts(rows)
    if prompts:
        note = "Reported prompts by their gain over the empty prompt of the same run; the middle is left out."
        report.add_table("Prompts that improved most and least", prompts, note)
    for one, other in pairs:
        summaries = improved_summaries(one, other)
        if summaries:
            note = f"Test ROUGE-L of a summary, mean over shared seeds: {one.label} (A) minus {other.label} (B)."
            report.add_table(f"Summaries that improved most and least, {one.dataset}", summaries, note)
    if problems:
        report.add_table("In no mean", [{"what": p.kind, "run": p.where, "why": p.reason} for p in problems])
    report.add_table("Every run", [_short(record) for record in run_records(rows)])
    for row in rows:
        report.add_details(f"Options: {row.dataset}, {row.label}", row.method)
    return report


def _short(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("task", "hardware", "git commit")}


def mean_curves(rows: Sequence[Row]) -> list[Panel]:
    """A chart for each data set and curve, with a line for each method."""
    panels = []
    events = {run.folder: _events(run) for row in rows for run in row.runs.values()}
    for task, dataset in dict.fromkeys((row.task, row.dataset) for row in rows):
        own = [row for row in rows if (row.task, row.dataset) == (task, dataset)]
        for metric in CURVES[task.name]:
            drawn: list[Panel] = []
            series = {}
            for row in own:
                found = [curves_from_metrics(events[run.folder], [metric]) for run in row.runs.values()]
                if all(found):
                    drawn += [panels_of_run[0] for panels_of_run in found]
                    series[row.label] = _mean_points([panels_of_run[0].series[metric] for panels_of_run in found])
            if drawn:
                rounds = {tuple(panel.vlines) for panel in drawn}
                panels.append(
                    Panel(
                        title=f"{dataset}: {drawn[0].title}",
                        ylabel=metric,
                        series=series,
                        vlines=drawn[0].vlines if len(rounds) == 1 else (),
                        note="" if len(rounds) == 1 else "The rounds of these runs began at different steps.",
                        xlabel=drawn[0].xlabel,
                    )
                )
    return panels


def _events(run: Run) -> list[dict[str, Any]]:
    try:
        return read_metrics(run.folder / "metrics.jsonl")
    except UserError:
        return []  # the figures of the run do not depend on it


def _mean_points(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    by_step = [dict(points) for points in curves]
    shared = [step for step in by_step[0] if all(step in points for points in by_step)]
    return [(step, sum(points[step] for points in by_step) / len(by_step)) for step in sorted(shared)]


def improved_prompts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The reported prompts with the largest and the smallest gain over the empty prompt."""
    found = []
    for row in rows:
        for seed, run in row.runs.items():
            empty = run.results.get("empty_prompt_test_accuracy")
            for entry in run.results.get("reported_prompts", []):
                if empty is not None and entry["test_accuracy"] is not None:
                    found.append(
                        {
                            "prompt": entry["prompt"],
                            "gain (points)": 100 * (entry["test_accuracy"] - empty),
                            "test accuracy (%)": 100 * entry["test_accuracy"],
                            "data set": row.dataset,
                            "method": row.label,
                            "seed": seed_text(row.task, seed),
                        }
                    )
    found.sort(key=lambda entry: -entry["gain (points)"])
    return found if len(found) <= 2 * NUM_SHOWN else found[:NUM_SHOWN] + found[-NUM_SHOWN:]


def improved_summaries(one: Row, other: Row) -> list[dict[str, Any]]:
    """The test articles on which one method gains and loses most against another, over the seeds that both have."""
    seeds = [seed for seed in one.runs if seed in other.runs]
    gains: dict[str, list[float]] = {}
    texts: dict[str, dict[str, Any]] = {}
    for seed in seeds:
        first, second = (_predictions(row.runs[seed]) for row in (one, other))
        for source in first.keys() & second.keys():
            a, b = first[source], second[source]
            if a.get("rougeL") is not None and b.get("rougeL") is not None:
                gains.setdefault(source, []).append(a["rougeL"] - b["rougeL"])
                texts.setdefault(
                    source, {"A": a["prediction"], "B": b["prediction"], "reference": a["reference"], "article": source}
                )
    order = sorted(
        (source for source in gains if len(gains[source]) == len(seeds)), key=lambda s: (-_mean(gains[s]), s)
    )
    if len(order) > 2 * NUM_SHOWN:
        order = order[:NUM_SHOWN] + order[-NUM_SHOWN:]
    return [{"gain": _mean(gains[s]), **{name: _cut(text) for name, text in texts[s].items()}} for s in order]


def _predictions(run: Run) -> dict[str, dict[str, Any]]:
    """The test summaries of a run by article; none of a run of the other task."""
    try:
        lines = (run.folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        return {row["source"]: row for row in map(json.loads, lines)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cut(text: str) -> str:
    return text if len(text) <= 400 else text[:399] + "…"


if __name__ == "__main__":
    run_command(main)
