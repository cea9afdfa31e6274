"""Score given prompts on any split with any task LM, exactly as they are spelled.

    python prompt_task/evaluate_prompts.py dataset=sst-2 prompts='["guys filmmaker filmmaker rated Grade"]'
    python prompt_task/evaluate_prompts.py dataset=agnews split=dev prompts_file=prompts.txt
    python prompt_task/evaluate_prompts.py dataset=sst-2 prompts_file=RUN/prompts.csv output_file=scores.csv

prompts       a JSON list of texts; blanks at either end count
prompts_file  a .json list, a table (csv, tsv, jsonl, parquet) with a column `prompt`, such as a run's
              prompts.csv, or one prompt a line
split         test (default), dev or train
output_file   where to write the table as CSV, with the ends of each accuracy's binomial interval; nowhere by default
All other options are those of run_fsc.py; of these the data, the task LM and the coefficients matter here.
"""

from common.training.program import run_command

import logging
import sys
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from common.errors import UserError, nearest, printable_text
from common.reporting.intervals import wilson
from common.training.console import as_typed
from common.training.data_files import (
    is_table,
    is_text,
    parse_json,
    read_lines,
    read_rows,
    read_text,
    text_cell,
    unmarked_cell,
)
from common.training.files import check_output
from common.training.progress import set_quiet
from common.training.runtime import start_runtime
from prompt_task.candidates import Candidate, score_candidates, write_candidates
from prompt_task.command_line import read_command
from prompt_task.few_shot_data import load_few_shot_splits
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.task_lm import load_task_lm

OWN_OPTIONS: dict[str, Any] = {"prompts": None, "prompts_file": None, "split": "test", "output_file": None}
SPLITS = ("test", "dev", "train")


def read_prompts(prompts: str | None, prompts_file: str | None) -> list[str]:
    """The prompts of the command line or a file, verbatim.

    Raises:
        UserError: both or neither is given, or what is given cannot be read as prompts.
    """
    if (prompts is None) == (prompts_file is None):
        raise UserError("give either prompts='[\"...\", ...]' (a JSON list) or prompts_file=FILE")
    if prompts is not None:
        return _texts(prompts, "prompts")
    path = str(prompts_file)
    if Path(path).suffix.lower() == ".json":
        return _texts(read_text(path), path)
    if is_table(path):
        rows = [(text_cell(where, cells, "prompt"), cells) for where, cells in read_rows(path)]
        found = [unmarked_cell(text) if "token_ids" in cells else text for text, cells in rows]  # a run's own, or not
    else:
        found = [line for line in read_lines(path) if line]
    if not found:
        raise UserError(f"prompts_file: '{path}' holds no prompt")
    return found


def _texts(text: str, where: str) -> list[str]:
    prompts = parse_json(where, text)
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise UserError(f"{where}: must be a JSON list of at least one text")
    for prompt in prompts:
        if not is_text(prompt):  # JSON can spell it, no tokenizer can read it
            raise UserError(f"{where}: {prompt!r} is not a text: it holds half of a character")
    return prompts


def _check_output_file(path: Path, prompts_file: str | None) -> None:
    if (path.parent / "config.yaml").exists() and path.exists():
        raise UserError(f"output_file: '{path}' belongs to a run; write to another file")
    check_output("output_file", path, *([] if prompts_file is None else [prompts_file]))


def main() -> int:
    """Read the command line, score, print and write the table."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    transformers_logging.disable_progress_bar()
    words = sys.argv[1:]
    if "--help" in words or "-h" in words:
        print(as_typed(__doc__ or ""))
        return 0
    command = read_command(words, OWN_OPTIONS)
    settings, spec, own = command.settings, command.spec, command.extra
    if own["split"] not in SPLITS:
        raise UserError(f"split: '{own['split']}' is not one of {', '.join(SPLITS)}{nearest(own['split'], SPLITS)}")
    prompts = read_prompts(own["prompts"], own["prompts_file"])
    if own["output_file"] is not None:
        _check_output_file(Path(own["output_file"]), own["prompts_file"])
    splits = load_few_shot_splits(spec, **vars(settings.data))
    set_quiet(settings.run.quiet)
    runtime = start_runtime(
        settings.run.random_seed, settings.run.device, settings.run.num_threads, settings.run.matmul_precision
    )
    task_lm = load_task_lm(spec=spec, device=runtime.device, **vars(settings.classifier))
    examples = getattr(splits, own["split"])
    scorer = PromptScorer(task_lm, examples, **vars(settings.preference))
    candidates = [Candidate(prompt) for prompt in dict.fromkeys(prompts)]
    score_candidates(scorer, candidates, own["split"], show_progress=True)
    print(f"{spec.name}, {own['split']} ({len(scorer.examples)} examples), task LM {settings.classifier.task_lm}")
    print("accuracy   95 % interval     score  prompt")
    intervals: list[tuple[float | None, float | None]] = []
    for c in candidates:
        accuracy, score = getattr(c, f"{own['split']}_accuracy"), getattr(c, f"{own['split']}_score")
        figures, low, high = f"{'failed':>8}  {'':26}", None, None
        if accuracy is not None:
            low, high = wilson(accuracy, len(examples))
            figures = f"{accuracy:8.2%}  {low:6.1%} to {high:6.1%}  {score:8.3f}"
        intervals.append((low, high))
        print(f"{figures}  {c.prompt!r}{'  ' + printable_text(c.error) if c.error else ''}")
    if task_lm.sentences_cut:
        print(f"{task_lm.sentences_cut} texts were longer than the task LM reads and were cut at the sentence's end")
    if own["output_file"] is not None:
        lows, highs = zip(*intervals, strict=True)
        further = {f"{own['split']}_accuracy_low": lows, f"{own['split']}_accuracy_high": highs}
        write_candidates(Path(own["output_file"]), candidates, further)
        print(own["output_file"])
    return 1 if all(c.error for c in candidates) else 0


if __name__ == "__main__":
    run_command(main)
