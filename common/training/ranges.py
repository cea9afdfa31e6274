"""What an option may be: kinds, ranges of numbers, texts, and how a message shows a value that is none of it."""

import argparse
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

KINDS = {bool: "true or false (or 1 or 0)", int: "a whole number", float: "a number", str: "text", list: "a list"}

# Of numbers without bounds of their own: what no run means overflows, or vanishes, in some product later.
LARGEST = 10**9
LEAST = 1e-12
MOST_SHOWN = 100  # characters of a value in a message

# What a terminal obeys, a path cannot hold or no encoding writes: controls, orders of writing, halves of characters.
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

Number = TypeVar("Number", int, float)


def shown(value: Any) -> str:
    """A value as a message has it, whatever its length."""
    try:
        text = repr(value)
    except ValueError:  # python prints no whole number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def no_text(value: str) -> str:
    """What is wrong with a text of an option, in words; "" where nothing is: line ends and tabs belong to templates."""
    found = _NO_TEXT.search(value)
    return f"{shown(value)} holds {found[0]!r}, which is no character of a text" if found else ""


def out_of_range(value: float, limits: Mapping[str, float | None]) -> str:
    """What is wrong with a number, in words; "" where nothing is.

    Args:
        value: the number.
        limits: its `minimum`, `maximum` and what it must be `above`, where there are any. By default neither it nor its
            negative is larger than `LARGEST`, and what must be above 0 is at least `LEAST`.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    bounds = {"maximum": LARGEST} | {key: bound for key, bound in limits.items() if bound is not None}
    if bounds.get("above") == 0 < value:
        bounds["minimum"] = LEAST
    elif "above" not in bounds:
        bounds.setdefault("minimum", -LARGEST)
    for limit, holds, words in (
        ("above", value.__gt__, "more than"),
        ("minimum", value.__ge__, "at least"),
        ("maximum", value.__le__, "at most"),
    ):
        if limit in bounds and not holds(bounds[limit]):
            return f"{shown(value)} is out of range; it must be {words} {bounds[limit]:g}"
    return ""


def number(of: type[Number], **limits: float | None) -> Callable[[str], Number]:
    """A `type` of argparse: the numbers within `limits`, see `out_of_range`."""

    def read(word: str) -> Number:
        try:
            value = of(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(word)} is not {KINDS[of]}") from None
        if wrong := out_of_range(value, limits):
            raise argparse.ArgumentTypeError(wrong)
        return value

    return read


COUNT, INDEX, SHARE = number(int, minimum=1), number(int, minimum=0), number(float, minimum=0, maximum=1)
