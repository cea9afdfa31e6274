"""The baseline that needs no model: the first sentences of each article as its summary.

    python scripts/lead_summaries.py --dataset_name=xsum --output outputs/lead
    python scripts/lead_summaries.py --dataset_name=null --train_file=F --validation_file=F --test_file=F --output DIR

Writes, for the first 1 and the first 3 sentences, the figures that runs of the summarization task report for their test
rows (ROUGE, METEOR, length, novelty) as table.md and table.json. Everything but --output and --sentences is an option
of run_sum.py and says which rows are tested, so that the figures stand beside those of a run with the same options.
"""

from common.training.program import run_command

from collections.abc import Sequence
from pathlib import Path

from common.training.console import Parser
from common.training.files import write_json_atomic, write_text_atomic
from common.training.ranges import COUNT
from sum_task.command_line import read_command
from sum_task.data import load_splits
from sum_task.evaluation_metrics import check_available, mean_scores, per_example
from sum_task.sentences import lead

FIGURES = ("rouge1", "rouge2", "rougeL", "rougeLsum", "meteor", "length", "novelty2")


def main(words: Sequence[str] | None = None) -> int:
    """Measure and write the table."""
    parser = Parser("scripts/lead_summaries.py", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the table")
    parser.add_argument("--sentences", type=COUNT, nargs="+", default=[1, 3], help="lengths to measure")
    arguments, rest = parser.parse_known_args(words)
    settings = read_command(rest)
    check_available()
    splits = load_splits(**vars(settings.data))
    rows = splits.test or splits.validation
    articles, references = [row.source for row in rows], [row.reference for row in rows]
    found = {}
    for count in arguments.sentences:
        found[f"lead-{count}"] = mean_scores(per_example([lead(a, count) for a in articles], references, articles))
    lines = [f"| first sentences of {len(rows)} rows | {' | '.join(FIGURES)} |", "| --- " * (len(FIGURES) + 1) + "|"]
    for name, means in found.items():
        lines.append(f"| {name} | {' | '.join(f'{means[figure]:.2f}' for figure in FIGURES)} |")
    table = "\n".join(lines)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_text_atomic(arguments.output / "table.md", table + "\n")
    write_json_atomic(arguments.output / "table.json", found)
    print(table)
    for name in ("table.md", "table.json"):
        print(arguments.output / name)
    return 0


if __name__ == "__main__":
    run_command(main)
