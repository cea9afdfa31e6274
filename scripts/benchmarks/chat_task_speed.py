"""Speed and memory of reward learning on replies against the plain way, and against TRL's RewardTrainer.

    python -m scripts.benchmarks.chat_task_speed --model HuggingFaceTB/SmolLM2-135M-Instruct --output chat_speed.json

A step is an optimizer step on one ranking set of K = 4 replies of 100 tokens to a prompt of 250, all lengths equal or
each drawn from half to three halves of that. The plain way reads each reply behind its own copy of the prompt, padded
to the longest of the batch: all replies of the set at once under the same loss (rows), or its pairs two at a time under
the loss of pairs, as pairwise trainers take a ranking apart. Both ways must give the same losses first. Every
measurement has a process of its own, with one thread by default. TRL's trainer, without gradient checkpointing, has a
score a sequence in place of token rewards.
"""

from common.training.program import run_command

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chat_task.ranked_sets import collate
from chat_task.reward_trainer import set_scores
from common.errors import UserError
from common.grounding_loss import partial_order_losses
from common.token_reward_model import TokenRewardModel
from common.training.console import Parser
from scripts.benchmarks import models
from scripts.benchmarks.chat_measure import (
    HEAD_WIDTH,
    WAYS,
    Case,
    PlainRewards,
    add_arguments,
    better_and_worse,
    in_own_process,
    make_backbone,
    make_sets,
    pair_losses,
    ranking_loss,
)
from scripts.benchmarks.measuring import Clock, described, environment, finish, number, table

TOLERANCE = 1e-5
WORDS = {
    "project": "project",
    "rows": "plain, a row each reply",
    "pairs": "plain, pairs two at a time",
    "trl": "TRL's RewardTrainer, the same pairs",
}
GROWTH = ((2, 1.0), (4, 0.5), (4, 1.0), (4, 2.0), (8, 1.0))  # K, and the length of a reply as a part of the usual one


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print a report in Markdown, write the figures."""
    parser = Parser("scripts/benchmarks/chat_task_speed.py", __doc__)
    add_arguments(parser)
    parser.add_argument("--head", choices=("after", "likelihood"), default="after", help="of the reward model (after)")
    parser.add_argument("--replies", type=int, default=4, help="K (4)")
    parser.add_argument("--prompt_length", type=int, default=250, help="tokens (250)")
    parser.add_argument("--reply_length", type=int, default=100, help="tokens (100)")
    parser.add_argument("--steps", type=int, default=3, help="steps of each measurement behind the first (3)")
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args(words)
    models.start(arguments.threads, arguments.seed)
    before = environment()
    usual = Case(
        "project", arguments.head, arguments.replies, arguments.prompt_length, arguments.reply_length, False,
        arguments.steps,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        differences = compare(usual, arguments.model, arguments.seed, Path(folder))
    cases = [dataclasses.replace(usual, way=way, varied=varied) for varied in (False, True) for way in WAYS]
    grown = [dataclasses.replace(usual, replies=k, reply_length=round(part * usual.reply_length)) for k, part in GROWTH]
    figures = {
        "environment": before,
        "model": arguments.model,
        "differences": differences,
        "cases": [_measured(case, arguments) for case in cases],
        "growth": [_measured(case, arguments) for case in grown],
    }
    print(report(figures, described(before)))
    finish(arguments.output, figures)
    return 0


def _measured(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    print(f"... {case}", file=sys.stderr, flush=True)
    found = dataclasses.asdict(case) | in_own_process(case, arguments)
    print(f"    {json.dumps(found)}", file=sys.stderr, flush=True)  # a long measurement may end before its report
    return found


@torch.no_grad()
def compare(case: Case, model_name: str | None, seed: int, folder: Path) -> dict[str, float]:
    """Largest differences of losses between the project and the plain ways on a set of varied lengths.

    Raises:
        UserError: they do not give the same numbers.
    """
    backbone, tokenizer = make_backbone(model_name, folder)
    model = TokenRewardModel.from_backbone(backbone, head_hidden_size=HEAD_WIDTH, head_init_gain=1.0, head=case.head)
    plain = PlainRewards(model, backbone).eval()
    item = make_sets(dataclasses.replace(case, varied=True, steps=0), len(tokenizer), seed)[0]
    batch = collate([item])
    replies = {name: batch[name] for name in ("prompt_ids", "prompt_mask", "reply_ids", "reply_mask")}
    scores = set_scores(model(replies=replies), batch["ends"], "mean")
    better, worse = zip(*better_and_worse(item.source.scores), strict=True)
    of_pairs = -torch.nn.functional.logsigmoid(scores[0, list(better)] - scores[0, list(worse)]).mean()
    whole = partial_order_losses(scores, batch["preferences"]).mean()
    found = {
        "loss of the ranking": abs(float(whole - ranking_loss(plain, item))),
        "loss of its pairs": abs(float(of_pairs - sum(pair_losses(plain, item)))),
    }
    for name, difference in found.items():
        if not difference <= TOLERANCE:
            raise UserError(f"the {name} differs by {difference:.2g} between the two ways, more than {TOLERANCE:g}")
    return found


def report(figures: dict[str, Any], head: str) -> str:
    """What was measured, in Markdown."""
    parts = [head, "Largest differences: " + ", ".join(f"{n} {v:.1e}" for n, v in figures["differences"].items())]
    for varied in (False, True):
        own = [found for found in figures["cases"] if found["varied"] is varied]
        base = _seconds(own[0])
        rows = [
            [
                WORDS[found["way"]], number(_seconds(found)), number(1 / _seconds(found)),
                number(_seconds(found) / base), number(found["peak"]),
            ]
            for found in own
        ]  # fmt: skip
        usual = own[0]
        lengths = (
            f"prompts of {usual['prompt_length']} and {usual['replies']} replies of {usual['reply_length']} tokens"
        )
        parts.append(f"{lengths}, {'half to three halves of that' if varied else 'all equal'}:")
        parts.append(table(["", "seconds a step", "steps a second", "to the project", "peak MiB"], rows))
    tokens = np.array([found["replies"] * found["reply_length"] for found in figures["growth"]], dtype=float)
    seconds = np.array([_seconds(found) for found in figures["growth"]])
    slope, start = np.polyfit(tokens, seconds, 1)
    line = start + slope * tokens
    parts.append(
        f"Against K x reply length: {number(start)} s + {number(1000 * slope)} ms a token, within "
        f"{100 * float(np.abs(seconds / line - 1).max()):.0f} %"
    )
    rows = [
        [f"{found['replies']} x {found['reply_length']}", number(own), number(fitted), number(found["peak"])]
        for found, own, fitted in zip(figures["growth"], seconds, line, strict=True)
    ]
    parts.append(table(["K x reply length", "seconds a step", "by the line", "peak MiB"], rows))
    return "\n\n".join(parts)


def _seconds(found: dict[str, Any]) -> float:
    return Clock(**found["clock"]).seconds


if __name__ == "__main__":
    run_command(main)
