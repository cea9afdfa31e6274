"""The learned reward of each token of summaries.

python sum_task/score_tokens.py --model RUN/reward_model --input RUN/predictions.jsonl --limit 5
python sum_task/score_tokens.py --model RUN/reward_model --article article.txt --summary "A summary of it."
python sum_task/score_tokens.py --model RUN/reward_model --input pairs.jsonl --html tokens.html
"""

from common.training.program import run_command

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence

import torch
from transformers.utils import logging as transformers_logging

from common.errors import UserError
from common.language_models.line_breaks import line_break
from common.language_models.token_carry import token_spans
from common.reporting.report import Report, TokenRewards
from common.reporting.terminal import coloured, printable
from common.training.console import Parser
from common.training.data_files import FILE_TYPES, is_table, read_rows, read_text, text_cell
from common.training.files import check_output, json_text
from common.training.ranges import COUNT
from common.training.runtime import choose_device
from sum_task.batching import Batch, Collator
from sum_task.data import Row
from sum_task.reward_model import SummaryRewardModel
from sum_task.tokenizing import tokenize

FORMS = ("color", "text", "json")


@torch.no_grad()
def text_rewards(
    reward: SummaryRewardModel, rows: Sequence[Row], batch_size: int = 8, max_length: int = 1024
) -> list[tuple[list[str], list[float]]]:
    """The policy's tokens of each summary, as texts, and the learned reward of each.

    Args:
        reward: the model; it is used in evaluation mode.
        rows: articles with the summary to judge as their reference.
        batch_size: rows in one pass.
        max_length: tokens of a summary.
    """
    reward.model.eval()
    judged = []
    for batch in batches_of(reward, rows, batch_size, max_length):
        rewards = reward.policy_rewards(batch, batch.targets).tolist()
        for ids, row in zip(batch.targets.lists(), rewards, strict=True):
            judged.append((token_texts(reward.policy_format.tokenizer, ids), row[: len(ids)]))
    return judged


def batches_of(
    reward: SummaryRewardModel, rows: Sequence[Row], batch_size: int = 8, max_length: int = 1024
) -> Iterator[Batch]:
    """Rows in the policy's tokens; see `text_rewards`."""
    policy_format = reward.policy_format
    collate = Collator(int(policy_format.tokenizer.eos_token_id), not policy_format.is_encoder_decoder)
    for start in range(0, len(rows), batch_size):
        data = tokenize(rows[start : start + batch_size], policy_format, max_length)
        yield collate(data, range(len(data))).to(reward.device)


def token_texts(tokenizer: object, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; the end token as it is called."""
    text, spans = token_spans(tokenizer, ids, line_break(tokenizer))
    texts, shown = [], 0
    for start, end in spans:
        if start >= len(text):
            texts.append(str(getattr(tokenizer, "eos_token", "")) if end > start else "")
        else:
            texts.append(text[max(start, shown) : end])
            shown = max(end, shown)
    return texts


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line, judge the summaries and show them."""
    transformers_logging.disable_progress_bar()
    parser = Parser("sum_task/score_tokens.py", __doc__)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="reward_model folder of a run")
    parser.add_argument("--input", metavar="FILE", help=f"file of articles and summaries: {', '.join(FILE_TYPES)}")
    parser.add_argument("--text_column", metavar="NAME", help="its column of articles (source)")
    parser.add_argument("--summary_column", metavar="NAME", help="its column of summaries (prediction)")
    parser.add_argument("--limit", type=COUNT, metavar="N", help="only the first N")
    parser.add_argument("--article", metavar="FILE", help="text file with one article, in place of --input")
    parser.add_argument("--summary", metavar="TEXT", help="the summary of that article")
    parser.add_argument("--html", metavar="FILE", help="write a page with coloured tokens here")
    parser.add_argument("--form", choices=FORMS, help="color (a terminal's default), text (else the default) or json")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    options = parser.parse_args(words)
    if options.html:
        check_output("--html", options.html, *filter(None, [options.input, options.article]))
    device = choose_device(options.device)
    rows = _rows(options)
    reward = SummaryRewardModel.from_pretrained(options.model)
    reward.to(device)
    judged = text_rewards(reward, rows)
    if options.html:
        report = Report("Learned token rewards", f"reward model {options.model}")
        sequences = [
            TokenRewards(tokens, rewards, caption=f"summary {number}")
            for number, (tokens, rewards) in enumerate(judged, start=1)
        ]
        report.add_token_rewards("Summaries", sequences)
        report.write(options.html)
        print(options.html)
        return 0
    form = options.form or ("color" if sys.stdout.isatty() else "text")
    low = min(min(rewards) for _, rewards in judged)
    high = max(max(rewards) for _, rewards in judged)
    for tokens, rewards in judged:
        print(_shown(form, tokens, rewards, low, high))
    return 0


def _shown(form: str, tokens: list[str], rewards: list[float], low: float, high: float) -> str:
    if form == "json":
        return json_text({"tokens": tokens, "rewards": rewards})
    if form == "text":
        return "\n".join(f"{r:.6f}\t{printable(token)}" for token, r in zip(tokens, rewards, strict=True)) + "\n"
    return coloured(tokens, rewards, low, high)


def _rows(options: argparse.Namespace) -> list[Row]:
    if (options.input is None) == (options.article is None):
        raise UserError("give either --input, or --article with --summary")
    if options.article is not None:
        if not options.summary:
            raise UserError("--summary: the summary of the article is needed")
        for name in ("text_column", "summary_column"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name}: --article is a text file, which has no columns")
        if is_table(options.article):
            raise UserError(f"--article: '{options.article}' is a file of rows; --input reads it")
        return [Row(read_text(options.article), options.summary)]
    if options.summary is not None:
        raise UserError("--summary: --input has a column of summaries (--summary_column)")
    if not is_table(options.input):
        raise UserError(f"--input: '{options.input}' is not a {', '.join(FILE_TYPES)} file")
    columns = (options.text_column or "source", options.summary_column or "prediction")
    found = itertools.islice(read_rows(options.input), options.limit)
    rows = [Row(*(text_cell(where, cells, column) for column in columns)) for where, cells in found]
    if not rows:
        raise UserError(f"--input: '{options.input}' holds no row")
    return rows


if __name__ == "__main__":
    run_command(main)
