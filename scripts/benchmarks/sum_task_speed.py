"""Speed and memory of summarization against the straightforward way, both measured in one run.

    python -m scripts.benchmarks.sum_task_speed --train_file xsum.jsonl --tokenizer t5-small --output sum_speed.json

Models have random weights and t5-small's size; a batch has 8 articles, a reward-learning step samples K = 3 summaries
of each. The straightforward way is scripts/benchmarks/sum_straightforward.py. Sources have 512 or 1024 tokens each
(articles are joined to get them), or the lengths of the data. Both ways must give the same numbers first. Every
measurement has a process of its own, with one thread by default; the straightforward way needs 12 GB at 512 tokens.

At 1024 tokens it needs more than most machines have: its memory is measured for one and two articles and continued as
a straight line to eight, and the report says so.
"""

from common.training.program import run_command

import argparse
import copy
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.training.console import Parser
from common.training.random_keys import Purpose
from scripts.benchmarks import models, sum_models
from scripts.benchmarks.measuring import Clock, described, environment, finish, number, table
from scripts.benchmarks.sum_measure import WAYS, Case, in_own_process
from scripts.benchmarks.sum_models import SumProject, SumSetting
from scripts.benchmarks.sum_straightforward import RewardLM, StraightforwardSummaries
from sum_task.reward_trainer import RankedSummaries

TOLERANCE = 1e-5
BATCH_SIZE = 8
SHORT, LONG = 512, 1024
TINY_LENGTHS = (16, 24)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print a report in Markdown, write the figures."""
    parser = Parser("scripts/benchmarks/sum_task_speed.py", __doc__)
    sum_models.add_arguments(parser)
    parser.add_argument(
        "--repeats", type=int, default=2, help="straightforward reward steps; the project does four times as many (2)"
    )
    parser.add_argument("--batches", type=int, default=4, help="policy steps of each way (4)")
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args(words)
    if arguments.train_file is None:
        raise UserError("--train_file: a jsonl file of articles and summaries is needed")
    models.start(arguments.threads, arguments.seed)
    before = environment()
    short, long = TINY_LENGTHS if arguments.tiny else (SHORT, LONG)
    setting = sum_models.make_sum_setting(arguments.train_file, arguments.tokenizer, short, False, arguments.tiny)
    print("... both ways on the same input", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        differences = compare(setting, arguments.seed, Path(folder))
    figures = {
        "environment": before,
        "tiny": arguments.tiny,
        "differences": differences,
        "cases": [{**dataclasses.asdict(case), **_say(case, arguments)} for case in _cases(short, long, arguments)],
        "profiles": [
            {**dataclasses.asdict(case), **_say(case, arguments, profiled=True)}
            for case in _profiled(short, long, arguments)
        ],
    }
    print(report(figures, described(before)))
    finish(arguments.output, figures)
    return 0


def _cases(short: int, long: int, arguments: argparse.Namespace) -> list[Case]:
    """What is measured, in the order of the report."""
    equal, real = arguments.repeats, arguments.batches
    counts = {"straightforward": equal, "project": equal * sum_models.SAMPLED_AT_ONCE}
    both = [Case("reward", way, short, True, BATCH_SIZE, counts[way]) for way in WAYS]
    both += [Case("reward", "straightforward", long, True, size, 1) for size in (1, 2)]
    both += [Case("reward", "project", long, True, BATCH_SIZE, counts["project"])]
    both += [Case("reward", way, short, False, BATCH_SIZE, counts[way]) for way in WAYS]
    for length in (short, long):
        both += [Case("policy", way, length, False, BATCH_SIZE, real) for way in WAYS]
        both += [Case("later policy", "project", length, False, BATCH_SIZE, real)]
    return both


def _profiled(short: int, long: int, arguments: argparse.Namespace) -> list[Case]:
    return [
        Case("reward", "project", short, True, BATCH_SIZE, sum_models.SAMPLED_AT_ONCE),
        Case("policy", "project", long, False, BATCH_SIZE, arguments.batches),
    ]


def _say(case: Case, arguments: argparse.Namespace, profiled: bool = False) -> dict[str, Any]:
    what = "profile" if profiled else "time and memory"
    print(f"... {what}: {case}", file=sys.stderr, flush=True)
    found = in_own_process(case, arguments, profiled)
    print(f"    {json.dumps(found)}", file=sys.stderr, flush=True)  # a long run may end before its report
    return found


def compare(setting: SumSetting, seed: int, folder: Path) -> dict[str, float]:
    """Largest differences between the two ways on two articles of different lengths; dropout is off.

    The activation is a GELU here: among millions of inputs of a ReLU there is one so near to zero that rounding decides
    whether it has a gradient.

    Raises:
        UserError: they do not give the same numbers.
    """
    smooth = {"feed_forward_proj": "gelu_new", "dense_act_fn": "gelu_new"}
    config = type(setting.config)(**setting.config.to_dict() | smooth)
    setting = dataclasses.replace(setting, config=config)
    lm, reward_model = sum_models.make_policy_lm(setting), sum_models.make_reward_model(setting)
    plain_lm = copy.deepcopy(lm)  # the project changes how its own one computes attention
    project = SumProject(setting, lm, reward_model, folder)
    reward_lm = RewardLM.like(reward_model).eval()
    plain = StraightforwardSummaries(
        plain_lm, reward_lm, setting.text_format.tokenizer, setting.train, setting.settings, seed
    )
    lengths = [len(source) for source in setting.train.sources]
    rows = [lengths.index(min(lengths)), lengths.index(max(lengths))]
    count = setting.settings.reward.reward_learning_samples
    repeated = [row for row in rows for _ in range(count)]
    (ranked,) = project.reward_trainer.ranker.rank(setting.train, [rows], [(Purpose.REWARD_SAMPLES, seed)])
    assert ranked is not None
    samples = ranked.summaries
    references = [setting.train.rows[row].reference for row in repeated]
    meteor = plain.meteor(samples.tokens, samples.mask, references).view(len(rows), count)
    preferences = torch.rand(len(rows), count)  # of random samples METEOR may tie, and ties are broken at random
    sources = plain.padded([setting.train.sources[row] for row in repeated])

    differences = {"METEOR": _largest(ranked.preferences - meteor)}
    theirs = plain.reward_loss(*sources, samples.tokens, samples.mask, preferences)
    untied = RankedSummaries(ranked.batch, samples, preferences, preferences.argsort(-1).argsort(-1))
    ours = project.reward_trainer.loss(untied).tensors[0]
    differences["reward loss"] = _largest(ours - theirs)
    differences["reward gradient, relative"] = _gradients(
        (theirs, reward_lm.head, reward_lm.lm.encoder), (ours, reward_model.head, reward_model.backbone.encoder)
    )

    batch = project.policy_trainer.collate(setting.train, rows)
    labels = batch.targets
    expected = _policy_gradient(plain_lm, plain.policy_loss(
        batch.sources.tokens, batch.sources.mask.long(), labels.tokens, labels.mask.long()
    ))  # fmt: skip
    found = _policy_gradient(lm, project.policy_trainer.loss(batch, None, rows)[0])
    differences["policy loss"] = _largest(found[0] - expected[0])
    differences["policy gradient, relative"] = _relative(found[1], expected[1])
    for what, difference in differences.items():
        if not difference <= TOLERANCE:
            raise UserError(f"the two ways do not give the same numbers: {what} differs by {difference:.2g}")
    return differences


def _largest(difference: torch.Tensor) -> float:
    return difference.abs().max().item()


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


Loss = tuple[torch.Tensor, torch.nn.Module, Any]


def _gradients(theirs: Loss, ours: Loss) -> float:
    """Largest relative difference of the gradients of some modules, by parameter."""
    for loss, *_ in (theirs, ours):
        loss.backward()
    pairs = [
        (p.grad, q.grad)
        for one, other in zip(theirs[1:], ours[1:], strict=True)
        for p, q in zip(one.parameters(), other.parameters(), strict=True)
    ]
    return max(_relative(q, p) for p, q in pairs if p is not None and q is not None)


def _policy_gradient(lm: Any, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in lm.parameters()])
    lm.zero_grad()
    return loss.detach(), gradient


def _find(figures: dict[str, Any], step: str, way: str, length: int, filled: bool, size: int) -> dict[str, Any]:
    fields = {"step": step, "way": way, "length": length, "filled": filled, "batch_size": size}
    return next(case for case in figures["cases"] if fields.items() <= case.items())


def _seconds(case: dict[str, Any]) -> float:
    """Mean CPU seconds of a step with one thread, mean wall seconds with more."""
    clock = Clock(**case["clock"])
    return statistics.fmean(clock.cpu if torch.get_num_threads() == 1 else clock.wall)


def report(figures: dict[str, Any], environment_line: str) -> str:
    """The figures as Markdown."""
    short, long = TINY_LENGTHS if figures["tiny"] else (SHORT, LONG)
    rows = []
    for step, length, filled, wanted in (
        ("reward", short, True, ">= 2.5 x"),
        ("reward", short, False, ">= 2.5 x"),
        ("policy", short, False, ">= 1.5 x"),
        ("policy", long, False, ">= 1.5 x"),
    ):
        old, new = (_find(figures, step, way, length, filled, BATCH_SIZE) for way in WAYS)
        times = [_seconds(old), _seconds(new)]
        what = f"{step} step, sources {'of' if filled else 'of the data, cut at'} {length} tokens"
        sizes = f"{number(old['peak'])} / {number(new['peak'])}"
        rows.append([what, *map(number, times), f"{times[0] / times[1]:.2f} x", wanted, sizes])
        if step == "policy":
            later = _find(figures, "later policy", "project", length, filled, BATCH_SIZE)
            for label, seconds in (
                ("rewards known from an earlier epoch", _seconds(later)),
                ("mean over the published 5 epochs", (times[1] + _seconds(later)) / 2),
            ):
                ratio = f"{times[0] / seconds:.2f} x"
                rows.append([f"... {label}", number(times[0]), number(seconds), ratio, wanted, ""])
    one, two = (_find(figures, "reward", "straightforward", long, True, size) for size in (1, 2))
    new = _find(figures, "reward", "project", long, True, BATCH_SIZE)
    extrapolated = one["peak"] + (two["peak"] - one["peak"]) * (BATCH_SIZE - 1)
    sizes = f"about {number(extrapolated)}* / {number(new['peak'])}"
    rows.append([f"reward step, sources of {long} tokens", "not run*", number(_seconds(new)), "", "", sizes])
    old, new = (_find(figures, "reward", way, short, True, BATCH_SIZE) for way in WAYS)
    share = f"{new['peak'] / old['peak']:.3f}"
    agreement = ", ".join(f"{what} {difference:.1e}" for what, difference in figures["differences"].items())
    encoded = [f"{way} {old_or_new['encoded']}" for way, old_or_new in zip(WAYS, (old, new), strict=True)]
    parts = list(figures["profiles"][0]["parts"])
    profile_rows = [[part, *(f"{100 * own['parts'][part]:.1f} %" for own in figures["profiles"])] for part in parts]
    inside = [sum(list(own["parts"].values())[:2]) for own in figures["profiles"]]
    profile_rows.append(["outside of matrix products and attention", *(f"{100 * (1 - part):.1f} %" for part in inside)])
    heads = [f"{own['step']} step, {own['length']}{' each' if own['filled'] else ''}" for own in figures["profiles"]]
    return "\n\n".join(
        [
            "# Summarization against the straightforward way" + (" (TINY MODELS)" if figures["tiny"] else ""),
            environment_line,
            f"Mean seconds of a step; MiB are the peak of a process that does nothing else. Differences between the "
            f"two ways on the same input, with GELU for ReLU: {agreement}.",
            table(["", "straightforward, s", "project, s", "ratio", "wanted", "peak MiB"], rows),
            f"Peak memory of a reward step at {short} tokens: {share} of the straightforward way (wanted: <= 0.5); at "
            f"{long} tokens {number(_find(figures, 'reward', 'project', long, True, BATCH_SIZE)['peak'])} MiB (wanted: "
            "<= 12,000).",
            f"\\* Measured for one and two articles ({number(one['peak'])} and {number(two['peak'])} MiB) and "
            "continued as a straight line.",
            "With the published schedule the reward model changes at the start and after 0.5, 1 and 1.5 epochs, so "
            "that it has judged half of the references of 5 epochs before; the mean takes a batch to cost what its "
            "rows do.",
            f"The project samples the summaries of {sum_models.SAMPLED_AT_ONCE} reward steps at once.",
            f"Rows that the encoders read in a reward step of {BATCH_SIZE} articles: {'; '.join(encoded)}.",
            "Profile of the project's steps, share of the time:",
            table(["", *heads], profile_rows),
        ]
    )


if __name__ == "__main__":
    run_command(main)
