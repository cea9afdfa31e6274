"""Time, memory or profile of one kind of step done one way, in a process of its own. Started by sum_task_speed.py."""

from common.training.program import run_command

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from common.training.console import Parser
from scripts.benchmarks import models, sum_models
from scripts.benchmarks.measuring import Clock, peak_mib, reset_peak, resident_mib
from scripts.benchmarks.sum_models import SumProject, SumSetting
from scripts.benchmarks.sum_straightforward import RewardLM, StraightforwardSummaries

WAYS = ("straightforward", "project")
STEPS = ("reward", "policy", "later policy")  # later: the rewards of the references are known from an earlier epoch

MATRIX_PRODUCTS = frozenset(f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv"))
# Operations that are attention as a whole, as fused kernels are: softmax, mask and dropout between two products.
ATTENTION = frozenset(
    (
        "_Attention", "_AttentionBackward", "aten::_scaled_dot_product_attention_math",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    )
)  # fmt: skip
STEP, RANKING, MODEL = "benchmark: step", "benchmark: texts and METEOR", "benchmark: model"
PARTS = (
    "matrix products", "rest of attention", "dropout, norms, activations and copies in the models",
    "drawing tokens, losses, batches", "optimizer", "texts and METEOR", "Python, in and out of the models",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        step: of `STEPS`.
        way: of `WAYS`.
        length: tokens at which sources are cut.
        filled: all sources have so many.
        batch_size: articles a batch.
        count: number of batches, evenly spaced over those of an epoch in the order of their widths.
    """

    step: str
    way: str
    length: int
    filled: bool
    batch_size: int
    count: int


def in_own_process(case: Case, arguments: argparse.Namespace, profiled: bool = False) -> dict[str, Any]:
    """What `measure` finds, from a fresh process."""
    words = [sys.executable, "-m", "scripts.benchmarks.sum_measure", "--case", json.dumps(asdict(case))]
    words += ["--train_file", os.path.abspath(arguments.train_file), "--tokenizer", arguments.tokenizer]
    words += ["--threads", str(arguments.threads), "--seed", str(arguments.seed)]
    words += ["--tiny"] if arguments.tiny else []
    words += ["--profile"] if profiled else []
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(words, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: Case, setting: SumSetting, seed: int, folder: Path, profiled: bool) -> dict[str, Any]:
    """Clock and peak memory over the steps of a case, or their profile; and what the encoders read.

    Where several batches are sampled at once, the clock shows the mean step over those batches.
    ``states`` is what the process holds before them, Adam's states included: one article goes ahead as a warm-up.
    ``encoded`` is the number of rows that each model's encoder reads in a step.
    """
    lm, reward_model = sum_models.make_policy_lm(setting), sum_models.make_reward_model(setting)
    batches: list[list[int]]
    run_all: Callable[[list[list[int]]], list[float]]
    run: Callable[[list[int]], float] | None = None
    at_once = 1  # batches that are worked on together
    if case.way == "straightforward":
        reward_lm = RewardLM.like(reward_model)
        del reward_model
        plain = StraightforwardSummaries(
            lm, reward_lm, setting.text_format.tokenizer, setting.train, setting.settings, seed
        )
        batches, encoders = plain.batches, {"policy": lm.encoder, "reward model": reward_lm.lm.encoder}
        run = plain.reward_step if case.step == "reward" else plain.policy_step
        ranked: Any = plain
        name = "meteor"
    else:
        project = SumProject(setting, lm, reward_model, folder)
        batches = project.reward_batches() if case.step == "reward" else project.policy_batches()
        encoders = {"policy": lm.encoder, "reward model": reward_model.backbone.get_encoder()}
        if case.step == "reward":
            run_all, at_once = project.reward_steps, project.reward_trainer.ranker.at_once
        else:
            run = project.policy_step if case.step == "policy" else project.later_policy_step
        ranked, name = project.reward_trainer.ranker.preference, "of_rows"
    if run is not None:
        run_all = functools.partial(_one_by_one, run)
    chosen = _evenly(batches, case.count, setting)
    run_all([chosen[0][:1]])
    encoded = {who: _count_rows(encoder) for who, encoder in encoders.items()}
    if profiled:
        if case.way != "project":
            raise ValueError("case: only the project's steps are profiled")
        setattr(ranked, name, _recorded(RANKING, getattr(ranked, name)))
        for module in (lm, *encoders.values(), project.reward.model):
            module.forward = _recorded(MODEL, module.forward)
        return {"parts": _profile(lambda: run_all(chosen))}
    reset_peak()
    states, clock = resident_mib(), Clock()
    system = os.times().system
    losses = []
    groups = math.ceil(len(chosen) / at_once)
    for first in range(groups):
        part = chosen[first::groups]  # of all widths, as those that a round samples at once
        losses += clock.time(functools.partial(run_all, part), steps=len(part))
    system = os.times().system - system
    return {
        "clock": asdict(clock),
        "system": system,
        "states": states,
        "peak": peak_mib(),
        "losses": losses,
        "widths": [_width(rows, setting) for rows in chosen],
        "encoded": {who: sum(rows) / len(chosen) for who, rows in encoded.items()},
    }


def _one_by_one(run: Callable[[list[int]], float], batches: list[list[int]]) -> list[float]:
    return [run(rows) for rows in batches]


def _width(rows: Sequence[int], setting: SumSetting) -> int:
    return max(len(setting.train.sources[row]) for row in rows)


def _evenly(batches: Sequence[list[int]], count: int, setting: SumSetting) -> list[list[int]]:
    """`count` of the full batches: the middle one of each of as many stretches, in the order of their widths."""
    full = [rows for rows in batches if len(rows) == len(batches[-1]) or len(rows) == max(map(len, batches))]
    ordered = sorted(full, key=lambda rows: _width(rows, setting))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def _count_rows(encoder: torch.nn.Module) -> list[int]:
    rows: list[int] = []
    encoder.register_forward_pre_hook(
        lambda module, given, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    return rows


def _recorded(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        with record_function(name):
            return work(*given, **named)

    return call


def _profile(work: Callable[[], Any]) -> dict[str, float]:
    """Share of the time in each of `PARTS`."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function(STEP):
        work()
    return shares((event.name, _names_above(event), event.self_cpu_time_total) for event in profiler.events() or ())


def _names_above(event: Any) -> list[str]:
    names = []
    while event.cpu_parent is not None:
        event = event.cpu_parent
        names.append(event.name)
    return names


def shares(events: Iterable[tuple[str, Sequence[str], float]]) -> dict[str, float]:
    """The share of each part, from (name, names of the callers, own time) of every operation within a step."""
    times = dict.fromkeys(PARTS, 0.0)
    for name, above, own in events:
        if name != STEP and STEP not in above:
            continue
        times[_part(name, above)] += own
    total = sum(times.values())
    return {part: time / total for part, time in times.items()}


def _part(name: str, above: Sequence[str]) -> str:
    if name in MATRIX_PRODUCTS:
        return "matrix products"
    if name in ATTENTION or not ATTENTION.isdisjoint(above):
        return "rest of attention"
    if RANKING in (name, *above):
        return "texts and METEOR"
    if any(word.startswith("Optimizer.step") for word in (name, *above)):
        return "optimizer"
    if name in (STEP, MODEL):
        return "Python, in and out of the models"
    if any(word == MODEL or word.startswith("autograd::engine") for word in (name, *above)):
        return "dropout, norms, activations and copies in the models"
    return "drawing tokens, losses, batches"


def main(words: Sequence[str] | None = None) -> None:
    """Measure one case and print it as JSON."""
    parser = Parser("scripts/benchmarks/sum_measure.py", __doc__)
    sum_models.add_arguments(parser)
    parser.add_argument("--case", type=json.loads, required=True, help="fields of a Case as JSON")
    parser.add_argument("--profile", action="store_true", help="the profile in place of time and memory")
    arguments = parser.parse_args(words)
    case = Case(**arguments.case)
    models.start(arguments.threads, arguments.seed)
    setting = sum_models.make_sum_setting(
        arguments.train_file, arguments.tokenizer, case.length, case.filled, arguments.tiny, case.batch_size
    )
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(case, setting, arguments.seed, Path(folder), arguments.profile)))


if __name__ == "__main__":
    run_command(main)
