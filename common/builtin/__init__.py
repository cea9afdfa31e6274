"""Tiny models and data that ship with the project, for machines without a model hub and for tests."""

from pathlib import Path

from common.errors import UserError, nearest

PREFIX = "builtin/"
FOLDER = Path(__file__).resolve().parent
NAMES = ("causal-lm", "masked-lm", "seq2seq", "report-lm", "data")


def resolve(name: str) -> str:
    """The path of a built-in folder such as ``builtin/masked-lm``; every other name is returned as it is.

    Raises:
        UserError: nothing of that name is built in.
    """
    if not name.startswith(PREFIX):
        return name
    short = name.removeprefix(PREFIX)
    if short not in NAMES:
        known = [PREFIX + known for known in NAMES]
        raise UserError(f"'{name}' is not built in{nearest(name, known)} (there are: {', '.join(known)})")
    return str(FOLDER / short)
