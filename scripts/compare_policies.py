"""Replies of policies against those of others to the same prompts, by the judge of their runs or by another one.

    python scripts/compare_policies.py outputs/chat/token-0 outputs/chat/token-1
    python scripts/compare_policies.py outputs/chat/token-0 --over outputs/chat/sequence-0 --judge OTHER/reward_model

RUNS are folders of chat runs with a policy stage, one a seed: their likeliest replies to held-out prompts, as
predictions.jsonl has them, are compared with those of their own start or, with --over, of runs of the same seeds. The
judge is that of the runs, or a reward model (--judge). Intervals, 95 %, are over prompts, a prompt of several seeds
being drawn with all of its replies: what these policies would do on other prompts, and not what other seeds would.
"""

from common.training.program import run_command

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from chat_task.judges import reward_model_judge
from common.errors import UserError
from common.language_models.pretrained import load_tokenizer
from common.language_models.replies import end_token_ids
from common.reporting.win_rate import win_rate_figures
from common.training.console import Parser
from common.training.data_files import read_rows
from common.training.files import json_text
from common.training.run_files import read_config
from common.training.runtime import choose_device
from scripts.collect_results import markdown_table

BATCH_SIZE = 16  # replies that a judge reads at once


@dataclass
class Answers:
    """What a policy wrote, by prompt.

    Attributes:
        run: the folder; policies before training are of their run.
        seed: of the run.
        judge: which the run had, as its options name it.
        prompts: as JSON.
        ids: token ids of each reply.
        scores: of the judge; None: nobody judged.
    """

    run: Path
    seed: int
    judge: str
    prompts: list[str]
    ids: list[tuple[int, ...]]
    scores: list[float | None]


def read_answers(run: Path) -> tuple[Answers, Answers]:
    """The replies of a run's policy after and before training.

    Raises:
        UserError: the folder is not of a whole chat run with a policy stage.
    """
    options = read_config(run / "config.yaml").options
    after, before = (
        Answers(run, options.get("seed", 0), str(options.get("judge_checkpoint_path")), [], [], []) for _ in range(2)
    )
    for where, row in read_rows(run / "predictions.jsonl"):
        for answers, suffix in ((after, ""), (before, "_before")):
            ids, score = row.get(f"ids{suffix}"), row.get(f"judge{suffix}")
            if not (
                "prompt" in row
                and isinstance(ids, list)
                and all(type(token) is int for token in ids)
                and (score is None or type(score) in (int, float))
            ):
                raise UserError(f"{where}: not what the policy stage of a chat run writes: prompt, ids or judge")
            answers.prompts.append(json_text(row["prompt"]))
            answers.ids.append(tuple(ids))
            answers.scores.append(None if score is None else float(score))
    if not after.prompts:
        raise UserError(f"'{run / 'predictions.jsonl'}' holds no reply")
    return after, before


def pair_by_seed(ones: Sequence[Answers], others: Sequence[Answers]) -> list[tuple[Answers, Answers]]:
    """Answers of the same seed, which must be to the same prompts.

    Raises:
        UserError: a seed twice, or on one side alone; other prompts.
    """
    sides: list[dict[int, Answers]] = [{}, {}]
    for side, answers in zip(sides, (ones, others), strict=True):
        for item in answers:
            if item.seed in side:
                raise UserError(
                    f"'{side[item.seed].run}' and '{item.run}' are both of seed {item.seed}; give one of them"
                )
            side[item.seed] = item
    alone = sorted(sides[0].keys() ^ sides[1].keys())
    if alone:
        raise UserError(f"--over: no run of seed {alone[0]} on one of the sides; give runs of the same seeds")
    pairs = [(one, sides[1][seed]) for seed, one in sorted(sides[0].items())]
    for one, other in pairs:
        if one.prompts != other.prompts:
            raise UserError(f"'{one.run}' and '{other.run}' have other held-out prompts; give runs of one data set")
    return pairs


def judge_again(answers: Sequence[Answers], folder: str, device: torch.device) -> None:
    """Put scores of a reward model in the place of those of the runs; the same reply gets the same one everywhere.

    Raises:
        UserError: the folder is no reward model that reads the policies' tokens.
    """
    known: dict[tuple[str, str, tuple[int, ...]], float] = {}
    for item in answers:
        policy = str(item.run / "policy")
        tokenizer = load_tokenizer(AutoTokenizer, policy)
        tokenizer.padding_side = "left"
        ends = end_token_ids(GenerationConfig.from_pretrained(policy), tokenizer)
        prompts = list(map(json.loads, item.prompts))
        try:
            judge = reward_model_judge(folder, tokenizer, ends, prompts[0], device)
        except UserError as error:
            raise UserError(f"--judge: {error}") from None
        texts = [tokenizer.decode(reply, skip_special_tokens=True) for reply in item.ids]
        keys = list(zip(item.prompts, texts, item.ids, strict=True))
        new = [n for n, key in enumerate(keys) if key not in known]
        for start in range(0, len(new), BATCH_SIZE):
            part = new[start : start + BATCH_SIZE]
            scores = judge([prompts[n] for n in part], [texts[n] for n in part], [item.ids[n] for n in part])
            if not all(map(math.isfinite, scores)):
                raise UserError(f"--judge: '{folder}' gives replies of '{item.run}' scores that are not finite")
            known |= {keys[n]: score for n, score in zip(part, scores, strict=True)}
        item.scores = [known[key] for key in keys]


def check_judged(answers: Sequence[Answers]) -> None:
    """Ask that one judge of the runs has given all replies a number.

    Raises:
        UserError: it has not.
    """
    for item in answers:
        if item.judge != answers[0].judge:
            raise UserError(f"'{answers[0].run}' and '{item.run}' had different judges; name one by --judge")
        if not all(score is not None and math.isfinite(score) for score in item.scores):
            raise UserError(f"'{item.run}' had no judge, or one that gave no finite numbers; name one by --judge")


def comparison(pairs: Sequence[tuple[Answers, Answers]]) -> list[dict[str, str]]:
    """A line of the table for each seed, and one for all of them where there are several."""
    parts = [(str(pair[0].seed), [pair]) for pair in pairs]
    if len(pairs) > 1:
        parts.append(("all", list(pairs)))
    lines = []
    for name, part in parts:
        rows = [row for pair in part for row in _rows(*pair)]
        prompts, scores, other_scores, lengths, other_lengths = zip(*rows, strict=True)
        found = win_rate_figures(scores, other_scores, lengths, other_lengths, prompts)
        lines.append(
            {
                "seed": name,
                "replies": str(len(rows)),
                "judge's score": f"{fmean(scores):.3f}",
                "the others'": f"{fmean(other_scores):.3f}",
                "gain": _figure(found, "judge_gain"),
                "won": _figure(found, "win_rate"),
                "won at equal length": _figure(found, "win_rate_length_controlled"),
                "tokens": f"{fmean(lengths):.1f}",
                "the others' tokens": f"{fmean(other_lengths):.1f}",
            }
        )
    return lines


def main(words: Sequence[str] | None = None) -> int:
    """Read, judge, compare, print."""
    transformers_logging.disable_progress_bar()
    parser = Parser("scripts/compare_policies.py", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, one a seed")
    parser.add_argument("--over", nargs="+", type=Path, metavar="RUNS", help="others; without it their own start")
    parser.add_argument("--judge", metavar="FOLDER", help="a reward model; without it the scores that the runs wrote")
    parser.add_argument("--device", default="auto", help="of the judge: auto, cpu, cuda, cuda:N, mps")
    options = parser.parse_args(words)
    device: Any = choose_device(options.device)
    read = [read_answers(run) for run in options.runs]
    ones = [after for after, _ in read]
    others = [read_answers(run)[0] for run in options.over] if options.over else [before for _, before in read]
    pairs = pair_by_seed(ones, others)
    if options.judge is not None:
        judge_again([*ones, *others], options.judge, device)
    else:
        check_judged([*ones, *others])
    print(markdown_table(comparison(pairs)))
    return 0


def _rows(one: Answers, other: Answers) -> list[tuple[str, float, float, int, int]]:
    """Prompt, scores and lengths; the same reply is a tie, whatever it was padded with when it was judged."""
    found = zip(one.prompts, one.ids, other.ids, one.scores, other.scores, strict=True)
    return [
        (prompt, b if ids == same else a, b, len(ids), len(same))
        for prompt, ids, same, a, b in found
        if a is not None and b is not None  # they are numbers, see check_judged
    ]


def _figure(found: dict[str, float], name: str) -> str:
    return f"{found[name]:.3f} ({found[f'{name}_low']:.3f} to {found[f'{name}_high']:.3f})"


if __name__ == "__main__":
    run_command(main)
