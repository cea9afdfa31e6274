"""Run folders as the runners leave them, written without a run."""

import json
from pathlib import Path
from typing import Any

import yaml

from common.training.sweep_run import PLANS, Outcome, Plan, PlannedRun


def write_run(
    folder: Path,
    results: dict[str, Any] | None,
    options: dict[str, Any],
    predictions: list[dict[str, Any]] | None = None,
) -> Path:
    """A run folder; without `results` one that was cut off."""
    folder.mkdir(parents=True)
    config = {"command": ["run"], "options": options, "environment": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    events = [
        {"phase": "reward", "round": 0, "step": 2, "seconds": 1, "reward/dev_rank_accuracy": 0.5},
        {"phase": "policy", "round": 0, "step": 1, "seconds": 1, "policy/loss": 1.0},
        {"phase": "eval", "round": 0, "step": 2, "seconds": 2, "eval/dev_accuracy": 0.5, "eval/rougeL": 30.0},
        {"phase": "policy", "round": 1, "step": 3, "seconds": 3, "policy/loss": 1.0},
        {"phase": "eval", "round": 1, "step": 4, "seconds": 4, "eval/dev_accuracy": 0.75, "eval/rougeL": 40.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if predictions is not None:
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in predictions))
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def prompt_run(folder: Path, accuracy: float | None, seed: int = 0, dataset: str = "sst-2", **options: Any) -> Path:
    """A run of the prompt task; an `accuracy` of None is one that was cut off."""
    resolved = {
        "dataset": {"name": dataset, "verbalizers": [" terrible", " great"]},
        "guidance": "token", "agg_func": "sum", "learning_rate": 5e-5, "task_lm": "roberta-large",
        "dataset_seed": seed, "random_seed": seed, "output_folder": str(folder), "device": "cpu",
    } | options  # fmt: skip
    results = {
        "status": "complete", "task": "prompt", "dataset": dataset, "test_accuracy": accuracy, "wall_seconds": 1.5,
        "empty_prompt_test_accuracy": 0.5, "reported_prompts": [{"prompt": f"|p{seed}", "test_accuracy": accuracy}],
    }  # fmt: skip
    return write_run(folder, results if accuracy is not None else None, resolved)


def summary_run(folder: Path, rouge: float, seed: int = 0, predictions: Any = None, **options: Any) -> Path:
    """A run of the summarization task."""
    resolved = {
        "dataset_name": "cnn_dailymail", "guidance": "token", "agg_func": "avg", "seed": seed,
        "output_dir": str(folder), "expid": f"e{seed}",
    } | options  # fmt: skip
    names = ("rouge1", "rouge2", "rougeL", "rougeLsum", "meteor")
    results = {"status": "complete", "task": "summarization", "dataset": "cnn_dailymail"}
    return write_run(folder, results | {f"test_{name}": rouge for name in names}, resolved, predictions)


def write_plan(output: Path, outcomes: dict[str, Outcome | None], name: str = "20260101-000000-aa") -> Plan:
    """A sweep's plan of runs by name, with how those that ended did so."""
    plan = Plan(output / PLANS / name, "fsc", "/", [PlannedRun(run, ["true"]) for run in outcomes])
    plan.write()
    for number, outcome in enumerate(outcomes.values()):
        if outcome is not None:
            plan.write_outcome(number, outcome)
    return plan
