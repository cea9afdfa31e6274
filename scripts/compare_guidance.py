"""Compare kinds of guidance with random search on one data set, at an equal budget of scored prompts.

    python scripts/compare_guidance.py --output outputs/compare --dataset_seeds 0 1 2 dataset=sst-2 task_lm=gpt2

For each data split (and, where --random_seeds are given, each of those on each split) every method is a full run of
the prompt task (a run folder of its own below --output; those that are complete are kept), all in one process over one
task LM, which remembers what it has been asked. Beside them stand
the empty prompt and random search: as many prompts, sampled from the untrained policy, as the method that scored most.
Its first row takes the best by train score; the others re-rank the best of them by dev score and by both.

The table, mean (std) of the test accuracy over splits and seeds, is printed and written as table.md, runs.csv and
table.json. Everything after the flags is an option of run_fsc.py, common to all runs.
"""

from common.training.program import run_command

import json
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from transformers.utils import logging as transformers_logging

from common.errors import UserError
from common.training.console import Parser
from common.training.files import write_json_atomic, write_text_atomic
from common.training.progress import Progress, set_quiet
from common.training.random_keys import Purpose
from common.training.ranges import INDEX
from common.training.runtime import hardware, start_runtime
from prompt_task.candidates import Candidate, ranked, score_candidates
from prompt_task.command_line import Command, read_command
from prompt_task.few_shot_data import FewShotSplits, load_few_shot_splits
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.run_fsc import run
from prompt_task.task_lm import Pair, TaskLM, load_task_lm

METHODS = {
    "sequence": ["guidance=sequence", "agg_func=sum"],
    "token-sum": ["guidance=token", "agg_func=sum"],
    "token-max": ["guidance=token", "agg_func=max"],
    "token-min": ["guidance=token", "agg_func=min"],
}
TITLES = {
    "empty": "empty prompt",
    "random": "best of N random prompts, by train score",
    "random-dev": "best of N random prompts, 16 best on train re-ranked on dev",
    "random-both": "the same, re-ranked on train and dev",
    "sequence": "guidance=sequence",
    "token-sum": "guidance=token, sum (= avg at fixed length)",
    "token-max": "guidance=token, max",
    "token-min": "guidance=token, min",
}


class RememberingTaskLM:
    """A task LM that answers each (sentence, prompt) once; runs that share prompts then share the work."""

    def __init__(self, task_lm: TaskLM):
        self._task_lm = task_lm
        self._known: dict[Pair, torch.Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task_lm, name)

    def read_ahead(self, sentences: Sequence[str]) -> None:
        """Nothing: each run would otherwise discard the sentences, those of the test file too, that all runs share."""

    def class_probabilities(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """See `TaskLM.class_probabilities`."""
        missing = list(dict.fromkeys(pair for pair in pairs if pair not in self._known))
        for pair, row in zip(missing, self._task_lm.class_probabilities(missing), strict=True):
            self._known[pair] = row
        return torch.stack([self._known[pair] for pair in pairs]) if pairs else torch.empty(0, self.num_classes)


def random_search(
    command: Command, task_lm: TaskLM, splits: FewShotSplits, budget: int, folder: Path
) -> dict[str, dict[str, Any]]:
    """Test accuracy of the empty prompt and of the best of `budget` random prompts."""
    file = folder / "random.json"
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["random"]["prompts_scored"] >= budget:
            return found
    settings = command.settings
    runtime = start_runtime(
        settings.run.random_seed, settings.run.device, settings.run.num_threads, settings.run.matmul_precision
    )
    policy = PromptPolicy.from_lm(
        settings.models.policy_lm,
        source_str=settings.models.source_str,
        prompt_length=settings.models.prompt_length,
        hidden_size=settings.models.hidden_size,
        residual=settings.models.adaptor_residual,
    ).to(runtime.device)
    generator = runtime.generator(Purpose.PROMPT_RANDOM_SEARCH)
    prompts: dict[str, None] = {}
    while len(prompts) < budget:
        tokens = policy.sample(budget - len(prompts), generator, settings.policy.top_k, settings.policy.top_p).tokens
        prompts |= dict.fromkeys(policy.texts(tokens))
    candidates = [Candidate(prompt) for prompt in prompts]
    train, dev, test = (
        PromptScorer(task_lm, part, **vars(settings.preference)) for part in (splits.train, splits.dev, splits.test)
    )
    with Progress(len(candidates), "random search", "prompt") as bar:
        for start in range(0, len(candidates), 16):
            score_candidates(train, candidates[start : start + 16], "train")
            bar.update(len(candidates[start : start + 16]))
    candidates.sort(key=lambda c: -(c.train_score or 0.0))
    top = candidates[: settings.evaluation.num_reported]
    finalists = candidates[:16]
    score_candidates(dev, finalists, "dev")
    top_dev, top_both = (ranked(finalists, split)[: settings.evaluation.num_reported] for split in ("dev", "both"))
    empty = Candidate("")
    tested = list({c.prompt: c for c in [empty, *top, *top_dev, *top_both]}.values())
    score_candidates(test, tested, "test", show_progress=True)

    def row(chosen: list[Candidate], scored: int) -> dict[str, Any]:
        accuracies = [c.test_accuracy for c in chosen if c.test_accuracy is not None]
        return {
            "test_accuracy": statistics.fmean(accuracies),
            "prompts_scored": scored,
            "prompts": [c.prompt for c in chosen],
        }

    results = {
        "empty": row([empty], 0),
        "random": row(top, budget),
        "random-dev": row(top_dev, budget + len(finalists)),
        "random-both": row(top_both, budget + len(finalists)),
    }
    write_json_atomic(file, results)
    return results


def main() -> int:
    """Run all methods on all splits and write the table."""
    parser = Parser("scripts/compare_guidance.py", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for run folders and tables")
    parser.add_argument("--dataset_seeds", type=INDEX, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--random_seeds", type=INDEX, nargs="+", help="on each split; without it the split's own number"
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--table_only", action="store_true", help="only collect what is complete")
    arguments, overrides = parser.parse_known_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    transformers_logging.disable_progress_bar()
    places = list_places(arguments.output, arguments.dataset_seeds, arguments.random_seeds)
    for place in [] if arguments.table_only else places:
        run_place(place, arguments.methods, overrides)
    rows = collect(places, arguments.methods)
    if not rows:
        raise UserError(f"--output: no complete run in '{arguments.output}'")
    write_table(arguments.output, rows, overrides)
    return 0


class Place(NamedTuple):
    """One data split and one random seed, with the folder of its runs."""

    split: int
    seed: int
    folder: Path


def list_places(output: Path, splits: Sequence[int], seeds: Sequence[int] | None) -> list[Place]:
    """What is to be run: each split with the seed of its own number, or each split with each of `seeds`."""
    if seeds is None:
        return [Place(split, split, output / f"split-{split}") for split in splits]
    return [Place(split, seed, output / f"split-{split}" / f"seed-{seed}") for split in splits for seed in seeds]


def run_place(place: Place, methods: list[str], overrides: list[str]) -> None:
    """All methods and random search on one data split with one seed."""
    folder = place.folder
    title = f"split {place.split}, seed {place.seed}"
    common_words = [*overrides, f"dataset_seed={place.split}", f"random_seed={place.seed}", "resume=auto"]
    base = read_command(common_words)
    settings = base.settings
    set_quiet(settings.run.quiet)
    splits = load_few_shot_splits(base.spec, **vars(settings.data))
    runtime = start_runtime(place.seed, settings.run.device, settings.run.num_threads, settings.run.matmul_precision)
    task_lm: Any = RememberingTaskLM(
        load_task_lm(spec=base.spec, device=runtime.device, **vars(settings.classifier))
    )  # fmt: skip
    budget = 0
    for method in methods:
        results = folder / method / "results.json"
        if not results.is_file():
            print(f"{title}: {method}", file=sys.stderr, flush=True)
            run(read_command([*common_words, *METHODS[method], f"output_folder={folder / method}"]), task_lm)
        budget = max(budget, json.loads(results.read_text(encoding="utf-8"))["prompts_scored"])
    started = time.monotonic()
    random_search(base, task_lm, splits, budget, folder)
    print(f"{title}: random search took {time.monotonic() - started:.0f} s", file=sys.stderr)


def collect(places: Sequence[Place], methods: list[str]) -> list[dict[str, Any]]:
    """One row a method, split and seed, of what is complete."""
    rows = []
    for split, seed, folder in places:
        where = {"split": split, "seed": seed}
        if (folder / "random.json").is_file():
            for name, found in json.loads((folder / "random.json").read_text(encoding="utf-8")).items():
                rows.append({"method": name, "hardware": ""} | where | found)
        for method in methods:
            file = folder / method / "results.json"
            if file.is_file():
                found = json.loads(file.read_text(encoding="utf-8"))
                rows.append(
                    {"method": method, "prompts": [p["prompt"] for p in found["reported_prompts"]]}
                    | where
                    | {key: found[key] for key in ("test_accuracy", "prompts_scored", "wall_seconds", "hardware")}
                )
    return rows


def write_table(output: Path, rows: list[dict[str, Any]], overrides: list[str]) -> None:
    """Mean (std) over splits and seeds as Markdown, every run as CSV, both as JSON."""
    lines = [
        "| method | test accuracy, mean (std) | runs | prompts scored | minutes a run |",
        "| --- | --- | --- | --- | --- |",
    ]
    summary = []
    for method, title in TITLES.items():
        own = [row for row in rows if row["method"] == method]
        if not own:
            continue
        accuracies = [100 * row["test_accuracy"] for row in own]
        std = statistics.stdev(accuracies) if len(own) > 1 else float("nan")
        scored = statistics.fmean(row["prompts_scored"] for row in own)
        minutes = [row["wall_seconds"] / 60 for row in own if "wall_seconds" in row]
        cost = f"{statistics.fmean(minutes):.1f}" if minutes else ""
        mean = statistics.fmean(accuracies)
        lines.append(f"| {title} | {mean:.1f} ({std:.1f}) | {len(own)} | {scored:.0f} | {cost} |")
        summary.append({"method": method, "mean": mean, "std": std, "n": len(own), "prompts_scored": scored})
    text = "\n".join(lines)
    print(text)
    write_text_atomic(output / "table.md", text + "\n")
    write_text_atomic(output / "runs.csv", pd.DataFrame(rows).to_csv(index=False))
    device = hardware(torch.device("cpu")) if not torch.cuda.is_available() else hardware(torch.device("cuda"))
    write_json_atomic(output / "table.json", {"options": overrides, "hardware": device, "rows": summary, "runs": rows})
    for name in ("table.md", "runs.csv", "table.json"):
        print(output / name)


if __name__ == "__main__":
    run_command(main)
