"""The learned reward of each token of replies, summaries or prompts: of a reward model that any task has saved.

python chat_task/score_tokens.py --model RUN/reward_model --input FILE > rewards.jsonl
python chat_task/score_tokens.py --model RUN/reward_model --input FILE --limit 5 --form color
python chat_task/score_tokens.py --model RUN/reward_model --input FILE --html tokens.html
"""

from common.training.program import run_command

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transformers.utils import logging as transformers_logging

from chat_task.ranking_rows import text_or_messages
from common.errors import UserError, printable_text
from common.language_models.replies import Text
from common.reporting.report import Report, TokenRewards
from common.reporting.terminal import coloured
from common.segments import SPREADS
from common.token_reward_model import TokenRewardModel
from common.training.console import Parser
from common.training.data_files import FILE_TYPES, read_rows, shown_columns
from common.training.files import check_output, json_text
from common.training.ranges import COUNT
from common.training.runtime import choose_device

FORMS = ("color", "json")
PROMPT_COLUMNS = ("prompt", "source")
REPLY_COLUMNS = ("completions", "chosen", "rejected", "reply", "completion", "response", "output", "prediction")


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line, score the replies and show them."""
    transformers_logging.disable_progress_bar()
    parser = Parser("chat_task/score_tokens.py", __doc__)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="reward_model folder of a run")
    parser.add_argument("--input", required=True, metavar="FILE", help=f"prompts and replies: {', '.join(FILE_TYPES)}")
    parser.add_argument("--prompt_column", metavar="NAME", help="column of prompts, if any (prompt, or source)")
    parser.add_argument(
        "--reply_columns", metavar="NAMES", help=f"columns of replies or lists of them ({', '.join(REPLY_COLUMNS)})"
    )
    parser.add_argument("--limit", type=COUNT, metavar="N", help="only the first N rows")
    parser.add_argument("--spread", choices=SPREADS, default="repeat", help="a segment's reward at its tokens (repeat)")
    parser.add_argument("--normalized", action="store_true", help="by the fitted normaliser, as policies are paid")
    parser.add_argument("--html", metavar="FILE", help="write a page with coloured tokens here")
    parser.add_argument("--form", choices=FORMS, help="color (a terminal's default) or json (else): one object a reply")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    options = parser.parse_args(words)
    if options.html:
        check_output("--html", options.html, options.input)
    device: Any = choose_device(options.device)
    columns = options.reply_columns.split(",") if options.reply_columns else REPLY_COLUMNS
    found: list[tuple[int, str, Text, Text]] = []
    for number, (where, row) in enumerate(read_rows(options.input), start=1):
        if options.limit is not None and number > options.limit:
            break
        found += [(number, *item) for item in _replies(where, row, options.prompt_column, columns)]
    if not found:
        raise UserError(f"--input: '{options.input}' holds no row")
    model = TokenRewardModel.from_pretrained(options.model).to(device)
    try:
        scored = model.score_texts(
            [reply for *_, reply in found], [prompt for _, _, prompt, _ in found],
            spread=options.spread, normalized=options.normalized,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from None
    if options.html:
        report = Report("Learned token rewards", f"reward model {options.model}")
        rows = [
            TokenRewards(item.tokens, item.rewards, f"row {number}, {column}", {"score": item.score})
            for (number, column, _, _), item in zip(found, scored, strict=True)
        ]
        report.add_token_rewards("Replies", rows)
        report.write(options.html)
        print(options.html)
        return 0
    known = [reward for item in scored for reward in item.rewards if not math.isnan(reward)]
    low, high = min(known), max(known)
    for (number, column, _, _), item in zip(found, scored, strict=True):
        if (options.form or ("color" if sys.stdout.isatty() else "json")) == "json":
            print(json_text({"row": number, "column": column} | asdict(item)))
        else:
            print(f"row {number}, {printable_text(column)}: {coloured(item.tokens, item.rewards, low, high)}")
    return 0


def _replies(
    where: str, row: Mapping[str, Any], prompt_column: str | None, columns: Sequence[str]
) -> list[tuple[str, Text, Text]]:
    """Column, prompt and text of each reply of a row."""
    prompt_column = prompt_column or next((name for name in PROMPT_COLUMNS if name in row), "prompt")
    prompt = "" if row.get(prompt_column) is None else text_or_messages(row[prompt_column], prompt_column)
    replies: list[tuple[str, Text, Text]] = []
    for column in columns:
        cell = row.get(column)
        if cell is None:
            continue
        # A list is of replies, but for one of messages.
        is_list = isinstance(cell, list | tuple) and not (cell and isinstance(cell[0], Mapping))
        for number, reply in enumerate(cell if is_list else [cell], start=1):
            name = f"{column} {number}" if is_list else column
            try:
                replies.append((name, prompt, text_or_messages(reply, column)))
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
    if not replies:
        raise UserError(f"{where}: no reply in {', '.join(columns)} ({shown_columns(row)})")
    return replies


if __name__ == "__main__":
    run_command(main)
