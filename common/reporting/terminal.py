"""Tokens coloured by their rewards in a terminal, as on the pages of runs."""

import math
from collections.abc import Sequence

import numpy as np

_LOW, _MIDDLE, _HIGH = (240, 160, 75), (244, 242, 238), (98, 176, 232)


def printable(token: str) -> str:
    """A token whose control characters cannot reach the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in token)


def coloured(tokens: Sequence[str], rewards: Sequence[float], low: float, high: float) -> str:
    """The tokens on backgrounds from orange (`low`) over white to blue (`high`); one without a reward (nan) on none."""
    parts = []
    for token, reward in zip(tokens, rewards, strict=True):
        if math.isnan(reward):
            parts.append(printable(token))
            continue
        share = min(max((reward - low) / (high - low), 0.0), 1.0) if high > low else 0.5
        ends = (_LOW, _MIDDLE) if share < 0.5 else (_MIDDLE, _HIGH)
        place = 2 * share - (share >= 0.5)
        color = ";".join(str(round(a + (b - a) * place)) for a, b in zip(*ends, strict=True))
        parts.append(f"\033[48;2;{color}m\033[30m{printable(token)}\033[0m")
    return "".join(parts) + f"   (from {np.nanmin(rewards):.4f} to {np.nanmax(rewards):.4f})"
