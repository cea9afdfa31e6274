"""Says what a model can do here, and what would be done, in ten seconds.

python scripts/check_model.py builtin/seq2seq
python scripts/check_model.py gpt2 --as reward_model
"""

import argparse
from collections.abc import Sequence
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from common.errors import UserError, run_command
from common.language_models.capabilities import (
    DECODER_ONLY,
    ENCODER_DECODER,
    MASKED,
    Capabilities,
    capabilities,
    kind_of,
    rows_with_token,
)
from common.language_models.pretrained import load_pretrained, load_tokenizer
from sum_task.models import decoder_start, set_languages

ROLES = {"policy": (DECODER_ONLY, ENCODER_DECODER), "task_lm": (DECODER_ONLY, MASKED)}
ROLES["reward_model"] = ROLES["policy"]
CLASSES = {
    DECODER_ONLY: AutoModelForCausalLM,
    ENCODER_DECODER: AutoModelForSeq2SeqLM,
    MASKED: AutoModelForMaskedLM,
}


def check(name: str, role: str, target_language: str | None = None) -> list[tuple[str, str, str]]:
    """What the model answers: (question, answer, what is done) a row.

    Raises:
        UserError: it cannot be used in this role; or it cannot be loaded.
    """
    config = load_pretrained(AutoConfig, name)
    kind = kind_of(config)
    if kind not in ROLES[role]:
        raise UserError(f"'{name}' is {kind}; a {role} must be {' or '.join(ROLES[role])}")
    tokenizer = load_tokenizer(AutoTokenizer, name)
    if role == "policy" and tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of '{name}' has no end token, with which a summary could end")
    if role == "task_lm" and kind == MASKED and tokenizer.mask_token is None:
        raise UserError(f"the tokenizer of '{name}' has no mask token, where a class could be read")
    model = load_pretrained(CLASSES[kind], name, complete=True)
    rows = [("kind", kind, {DECODER_ONLY: "source and text are one sequence"}.get(kind, ""))]
    if kind == MASKED:
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        return [
            *rows,
            ("positions", _number(limit), ""),
            ("mask token", str(tokenizer.mask_token), "classes are read there"),
        ]
    can = capabilities(model, f"'{name}'")
    if not can.left_to_right:
        raise UserError(f"'{name}' ({config.model_type}) reads in both directions; a {role} must read left to right")
    rows += _rows(can)
    real = rows_with_token(tokenizer, can.vocabulary)
    done = "rows without a token are never drawn" if int(real.sum()) < can.vocabulary else ""
    rows.append(("vocabulary", f"{int(real.sum())} tokens, {can.vocabulary} rows", done))
    if role != "task_lm" and can.kind == ENCODER_DECODER:
        set_languages(tokenizer, None, target_language, name)
        start = tokenizer.convert_ids_to_tokens(decoder_start(config, tokenizer))
        rows.append(("decoder starts with", " ".join(start), ""))
    return rows


def _rows(can: Capabilities) -> list[tuple[str, str, str]]:
    apart = can.kind == ENCODER_DECODER and can.source_positions != can.target_positions
    limits = _number(can.source_positions) + (f", targets {_number(can.target_positions)}" if apart else "")
    whole = can.cache_by_rows and (can.kind == ENCODER_DECODER or can.ignores_padding)
    return [
        ("width of states", str(can.width), ""),
        ("positions", limits, ""),
        ("cache by rows", _yes(can.cache_by_rows), "" if whole else "all is read anew for every token that is written"),
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
    parser = argparse.ArgumentParser(prog="check_model.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("name", metavar="NAME_OR_FOLDER", help="hub id, folder, or built-in model")
    parser.add_argument("--as", dest="role", choices=tuple(ROLES), default="policy", help="its role (policy)")
    parser.add_argument("--target_language", metavar="CODE", help="of a multilingual tokenizer")
    options = parser.parse_args(words)
    rows = check(options.name, options.role, options.target_language)
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    print(f"{options.name} as {options.role}: works")
    for question, answer, done in rows:
        print(f"  {question:<{widths[0]}}  {answer:<{widths[1]}}  {done}".rstrip())
    return 0


if __name__ == "__main__":
    run_command(main)
