"""Says what a model can do here, and what would be done, in ten seconds.

python scripts/check_model.py builtin/seq2seq
python scripts/check_model.py gpt2 --as reward_model
python scripts/check_model.py roberta-large --as task_lm --verbalizers " bad" " good"
"""

from common.training.program import run_command

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from common.errors import UserError
from common.language_models.capabilities import (
    DECODER_ONLY,
    ENCODER_DECODER,
    Capabilities,
    capabilities,
    check_trainable,
    require_kind,
    rows_with_token,
)
from common.language_models.pretrained import load_pretrained, load_tokenizer
from common.token_reward_model import TokenRewardModel
from common.training.console import Parser
from prompt_task.few_shot_data import DatasetSpec
from prompt_task.task_lm import MaskedTaskLM, load_task_lm
from sum_task.policy import SummaryPolicy
from sum_task.search import check_search
from sum_task.text_format import TextFormat, decoder_start, set_languages

ROLES = ("policy", "task_lm", "reward_model")
VERBALIZERS = (" terrible", " great")


def check(name: str, role: str, target_language: str | None = None, verbalizers: Sequence[str] = VERBALIZERS) -> Any:
    """What the model answers: (question, answer, what is done) a row.

    Args:
        name: hub id, folder, or built-in model.
        role: one of `ROLES`.
        target_language: of a multilingual tokenizer.
        verbalizers: the words of a task LM's classes.

    Raises:
        UserError: it cannot be used in this role; or it cannot be loaded.
    """
    if role == "task_lm":
        spec = DatasetSpec("given", tuple(verbalizers), "{sentence} {prompt} <mask> .", "{sentence} {prompt}")
        task_lm = load_task_lm(name, spec, torch.device("cpu"))
        return [("kind", "masked" if isinstance(task_lm, MaskedTaskLM) else "left to right", ""), *task_lm.ways()]
    config = load_pretrained(AutoConfig, name)
    kind = require_kind(config, name, role, DECODER_ONLY, ENCODER_DECODER)
    tokenizer = load_tokenizer(AutoTokenizer, name)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of '{name}' has no end token, with which a summary could end")
    languages = set_languages(tokenizer, None, target_language, name)
    rows = [("kind", kind, "source and text are one sequence" if kind == DECODER_ONLY else "")]
    if role == "reward_model":
        can = capabilities(TokenRewardModel.from_backbone(name).backbone, f"'{name}'")
        rows += _rows(can, False)
    else:
        auto_class = AutoModelForSeq2SeqLM if kind == ENCODER_DECODER else AutoModelForCausalLM
        lm = load_pretrained(auto_class, name, complete=True)
        can = capabilities(lm, f"'{name}'")
        check_trainable(lm, f"'{name}'")
        check_search(SummaryPolicy(lm, TextFormat(tokenizer, kind == ENCODER_DECODER, "", "", 16, *languages)))
        rows += _rows(can, True)
        tokens = int(rows_with_token(tokenizer, can.vocabulary).sum())
        done = "rows without a token are never drawn" if tokens < can.vocabulary else ""
        rows.append(("vocabulary", f"{tokens} tokens, {can.vocabulary} rows", done))
    if kind == ENCODER_DECODER:
        start = tokenizer.convert_ids_to_tokens(decoder_start(config, tokenizer))
        rows.append(("decoder starts with", " ".join(start), ""))
    return rows


def _rows(can: Capabilities, writes: bool) -> list[tuple[str, str, str]]:
    apart = can.kind == ENCODER_DECODER and can.source_positions != can.target_positions
    limits = _number(can.source_positions) + (f", targets {_number(can.target_positions)}" if apart else "")
    whole = can.cache_by_rows and (can.kind == ENCODER_DECODER or can.ignores_padding)
    return [
        ("width of states", str(can.width), ""),
        ("positions", limits, ""),
        (
            "cache by rows", _yes(can.cache_by_rows),
            "" if whole or not writes else "all is read anew for every token that is written",
        ),
        (
            "ignores padding", _yes(can.ignores_padding),
            "" if can.ignores_padding else "read with texts of equal length, or with padding behind",
        ),
    ]  # fmt: skip


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _number(limit: Any) -> str:
    return "no known limit" if limit is None else str(limit)


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line and print the table."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    parser = Parser("scripts/check_model.py", __doc__)
    parser.add_argument("name", metavar="NAME_OR_FOLDER", help="hub id, folder, or built-in model")
    parser.add_argument("--as", dest="role", choices=ROLES, default="policy", help="its role (policy)")
    parser.add_argument("--target_language", metavar="CODE", help="of a multilingual tokenizer")
    parser.add_argument(
        "--verbalizers", nargs="+", metavar="WORD", default=VERBALIZERS,
        help="words of a task LM's classes, blanks before them included (' terrible' ' great')",
    )  # fmt: skip
    options = parser.parse_args(words)
    logging.disable(logging.WARNING)  # the table says it
    try:
        rows = check(options.name, options.role, options.target_language, options.verbalizers)
    finally:
        logging.disable(logging.NOTSET)
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    print(f"{options.name} as {options.role}: works")
    for question, answer, done in rows:
        print(f"  {question:<{widths[0]}}  {answer:<{widths[1]}}  {done}".rstrip())
    return 0


if __name__ == "__main__":
    run_command(main)
