"""Replies of policies against those of others to the same prompts, by the judge of their runs or by another one.

    python scripts/compare_policies.py outputs/chat/token-0 outputs/chat/token-1
    python scripts/compare_policies.py outputs/chat/token-0 --over outputs/chat/sequence-0 --judge OTHER/reward_model

RUNS are folders of whole chat runs with a policy stage, one a seed: their likeliest replies to held-out prompts, as
predictions.jsonl has them, are compared with those of their own start or, with --over, of runs of the same seeds. The
judge is that of the runs, or a reward model (--judge). Intervals, 95 %, are over prompts, a prompt of several seeds
being drawn with all of its replies: what these policies would do on other prompts, and not what other seeds would.
"""

from common.training.program import run_command

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from chat_task.judges import reward_model_judge
from chat_task.ranking_rows import text_or_messages
from common.errors import UserError, printable_text
from common.language_models.pretrained import load_pretrained, load_tokenizer
from common.language_models.replies import Text, end_token_ids
from common.reporting.markdown import markdown_table
from common.reporting.win_rate import win_rate_figures
from common.training.console import Parser
from common.training.data_files import is_text, read_rows
from common.training.files import json_text
from common.training.progress import progress
from common.training.run_files import read_config, read_results
from common.training.runtime import choose_device

BATCH_SIZE = 16  # replies that a judge reads at once


@dataclass(frozen=True)
class Reply:
    """A policy's reply to a prompt; `score`: of the run's judge, None without one."""

    prompt: Text
    text: str
    ids: tuple[int, ...]
    score: float | None

    @property
    def key(self) -> str:
        """What a judge reads."""
        return json_text([self.prompt, self.text, self.ids])


@dataclass(frozen=True)
class Answers:
    """What a policy wrote.

    Attributes:
        run: the folder; a policy before training is of its run.
        seed: of the run.
        judge: which the run had, by the content of its files where they are known.
        replies: to each held-out prompt.
    """

    run: Path
    seed: int
    judge: str
    replies: list[Reply]


def read_answers(run: Path) -> tuple[Answers, Answers]:
    """The replies of a run's policy after and before training.

    Raises:
        UserError: the folder is not of a whole chat run with a policy stage.
    """
    made, results = read_config(run / "config.yaml"), read_results(run / "results.json")
    file, seed = run / "predictions.jsonl", made.options.get("seed")
    if results.get("task") != "chat" or results["status"] != "complete" or not file.is_file() or type(seed) is not int:
        raise UserError(f"'{run}' is no whole chat run with a policy stage that has left its replies ({file.name})")
    judge = [made.options.get("dataset_name"), made.options.get("judge_checkpoint_path")]
    judge[1] = made.inputs.get("judge_checkpoint_path") or judge[1]
    after: list[Reply] = []
    before: list[Reply] = []
    for where, row in read_rows(file):
        try:
            after.append(_reply(row, ""))
            before.append(_reply(row, "_before"))
        except (UserError, ValueError, OverflowError, RecursionError) as error:
            raise UserError(f"{where}: not what the policy stage of a chat run writes: {error}") from None
    if not after:
        raise UserError(f"'{file}' holds no reply")
    one, other = (Answers(run, seed, json_text(judge), replies) for replies in (after, before))
    return one, other


def _reply(row: Mapping[str, Any], suffix: str) -> Reply:
    text, ids, score = (row.get(f"{name}{suffix}") for name in ("prediction", "ids", "judge"))
    if not is_text(text):
        raise ValueError(f"prediction{suffix} is no text")
    if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
        raise ValueError(f"ids{suffix} is no list of token ids")
    if not (score is None or type(score) in (int, float)):
        raise ValueError(f"judge{suffix} is no number")
    prompt = text_or_messages(row.get("prompt_read"), "prompt_read")
    if not prompt:
        raise ValueError("prompt_read is empty")
    return Reply(prompt, str(text), tuple(ids), None if score is None else float(score))


def pair_by_seed(ones: Sequence[Answers], others: Sequence[Answers]) -> list[tuple[Answers, Answers]]:
    """Answers of the same seed, which must be to the same prompts.

    Raises:
        UserError: a seed twice, or on one side alone; other prompts.
    """
    sides: list[dict[int, Answers]] = [{}, {}]
    for side, answers in zip(sides, (ones, others), strict=True):
        for item in answers:
            first = side.setdefault(item.seed, item)
            if first is not item:
                raise UserError(f"'{first.run}' and '{item.run}' are both of seed {item.seed}; give one of them")
    for side, name, there in ((sides[0], "RUNS", sides[1]), (sides[1], "--over", sides[0])):
        lacking = sorted(there.keys() - side.keys())
        if lacking:
            raise UserError(f"{name}: no run of seed {lacking[0]}, of which the other side has one")
    pairs = [(one, sides[1][seed]) for seed, one in sorted(sides[0].items())]
    for one, other in pairs:
        if [reply.prompt for reply in one.replies] != [reply.prompt for reply in other.replies]:
            raise UserError(f"'{one.run}' and '{other.run}' have other held-out prompts; give runs of one data set")
    return pairs


def judged_by_runs(answers: Sequence[Answers]) -> dict[str, float]:
    """The scores that the runs have written, by the keys of replies; the same reply has one score everywhere.

    Raises:
        UserError: they had several judges or none.
    """
    known: dict[str, float] = {}
    for item in answers:
        if item.judge != answers[0].judge:
            raise UserError(f"'{answers[0].run}' and '{item.run}' had different judges; name one by --judge")
        for reply in item.replies:
            if reply.score is None or not math.isfinite(reply.score):
                raise UserError(f"'{item.run}' had no judge, or one that gave no finite numbers; name one by --judge")
            known.setdefault(reply.key, reply.score)
    return known


def judged_by_model(answers: Sequence[Answers], folder: str, device: torch.device) -> dict[str, float]:
    """Scores of a reward model, by the keys of replies; each reply is read once.

    Raises:
        UserError: the folder is no reward model that reads the policies' tokens; a policy's folder is damaged.
    """
    if not Path(folder).is_dir():
        raise UserError(f"--judge: '{folder}' is no folder")
    known: dict[str, float] = {}
    for run in dict.fromkeys(item.run for item in answers):
        own = [reply for item in answers if item.run == run for reply in item.replies]
        new = list({reply.key: reply for reply in own if reply.key not in known}.values())
        policy = str((run / "policy").absolute())
        if not Path(policy).is_dir():
            raise UserError(f"'{policy}' is no folder")
        tokenizer, ends, size = _policy_tokens(policy)
        if any(token >= size for reply in new for token in reply.ids):
            raise UserError(f"'{run / 'predictions.jsonl'}' has token ids that its policy has not")
        if tokenizer.chat_template is None and not all(isinstance(reply.prompt, str) for reply in new):
            raise UserError(f"'{run / 'predictions.jsonl'}' has messages, and its policy no chat template")
        try:
            judge = reward_model_judge(folder, tokenizer, ends, own[0].prompt, device)
            for start in progress(range(0, len(new), BATCH_SIZE), "replies judged", "batch"):
                part = new[start : start + BATCH_SIZE]
                # A batch may hold texts and messages, which a tokenizer reads in different ways.
                for kind in (str, tuple):
                    alike = [reply for reply in part if isinstance(reply.prompt, kind)]
                    if alike:
                        scores = judge(*zip(*map(_read, alike), strict=True))
                        known |= {reply.key: score for reply, score in zip(alike, scores, strict=True)}
        except UserError as error:
            raise UserError(f"--judge: {error}") from None
        del judge  # before the next one is loaded
    if not all(map(math.isfinite, known.values())):
        raise UserError(f"--judge: '{folder}' gives scores that are not finite")
    return known


def comparison(pairs: Sequence[tuple[Answers, Answers]], scores: Mapping[str, float]) -> list[dict[str, str]]:
    """A line of the table for each seed, and one for all of them where there are several."""
    parts = [(str(pair[0].seed), [pair]) for pair in pairs]
    if len(pairs) > 1:
        parts.append(("all", list(pairs)))
    lines = []
    for name, part in parts:
        replies = [both for one, other in part for both in zip(one.replies, other.replies, strict=True)]
        own, others = ([scores[reply.key] for reply in side] for side in zip(*replies, strict=True))
        lengths, other_lengths = ([len(reply.ids) for reply in side] for side in zip(*replies, strict=True))
        prompts = [json_text(reply.prompt) for reply, _ in replies]
        found = win_rate_figures(own, others, lengths, other_lengths, prompts)
        lines.append(
            {
                "seed": name,
                "replies": str(len(replies)),
                "score": f"{fmean(own):.3f}",
                "score of the others": f"{fmean(others):.3f}",
                "gain": _figure(found, "judge_gain"),
                "won": _figure(found, "win_rate"),
                "won at equal length": _figure(found, "win_rate_length_controlled"),
                "tokens": f"{fmean(lengths):.1f}",
                "tokens of the others": f"{fmean(other_lengths):.1f}",
            }
        )
    return lines


def main(words: Sequence[str] | None = None) -> int:
    """Read, judge, compare, print."""
    transformers_logging.disable_progress_bar()
    parser = Parser("scripts/compare_policies.py", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, one a seed")
    parser.add_argument("--over", nargs="+", type=Path, metavar="RUNS", help="others; without it their own start")
    parser.add_argument("--judge", metavar="FOLDER", help="a reward_model folder; without it the scores of the runs")
    parser.add_argument("--device", default="auto", help="of the judge: auto, cpu, cuda, cuda:N, mps")
    options = parser.parse_args(words)
    device: Any = choose_device(options.device)
    read = [read_answers(run) for run in options.runs]
    ones = [after for after, _ in read]
    others = [read_answers(run)[0] for run in options.over] if options.over else [before for _, before in read]
    pairs = pair_by_seed(ones, others)
    every = [*ones, *others]
    scores = judged_by_runs(every) if options.judge is None else judged_by_model(every, options.judge, device)
    print(markdown_table(comparison(pairs, scores)) + "\n")
    against = ", ".join(map(str, options.over)) if options.over else "the policies before training"
    judge = options.judge or "the runs"
    print(printable_text(f"{', '.join(map(str, options.runs))} over {against}, judged by {judge}."))
    print("In brackets: 95 % over prompts that are drawn again; other seeds are not in it.")
    return 0


def _policy_tokens(policy: str) -> tuple[Any, set[int], int]:
    """A policy's tokenizer, the tokens that end its replies, and how many tokens it has."""
    tokenizer = load_tokenizer(AutoTokenizer, policy)
    tokenizer.padding_side = "left"
    config = load_pretrained(AutoConfig, policy)
    try:
        ends = end_token_ids(load_pretrained(GenerationConfig, policy), tokenizer)
        if not all(type(token) is int for token in ends):
            raise TypeError
    except TypeError:
        raise UserError(f"'{policy}': the end tokens of its generation_config.json are no token ids") from None
    return tokenizer, ends, config.get_text_config().vocab_size


def _read(reply: Reply) -> tuple[Any, str, list[int]]:
    prompt = reply.prompt if isinstance(reply.prompt, str) else list(reply.prompt)
    return prompt, reply.text, list(reply.ids)


def _figure(found: dict[str, float], name: str) -> str:
    return f"{found[name]:.3f} ({found[f'{name}_low']:.3f} to {found[f'{name}_high']:.3f})"


if __name__ == "__main__":
    run_command(main)
