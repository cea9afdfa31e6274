"""How the accuracies of a reward model are shown: with their interval, and with a word where that includes chance."""

import math
from collections.abc import Mapping
from typing import Any

from common.reporting.report import Fact

CHANCE = 0.5


def reward_accuracies(results: Mapping[str, Any]) -> tuple[dict[str, Fact], list[str]]:
    """Tiles of the rank and swap accuracy in ``results.json``, and a notice for each that may be chance."""
    facts, notices = {}, []
    for name in ("rank", "swap"):
        accuracy = results.get(f"reward_{name}_accuracy")
        if accuracy is None or math.isnan(accuracy):
            continue
        facts[f"{name} accuracy of the reward"] = Fact(f"{accuracy:.3f}", interval_below(results, f"reward_{name}"))
        interval = results.get(f"reward_{name}_interval")
        if interval is not None and interval[0] <= CHANCE <= interval[1]:
            what = "pairs of whole sequences" if name == "rank" else "a token and another one in its place"
            notices.append(
                f"The {name} accuracy of the reward model, {accuracy:.3f} on {what}, cannot be told from chance "
                f"({CHANCE}): its {interval_text(results, f'reward_{name}')}. What the token rewards below show may be "
                "noise."
            )
    return facts, notices


def interval_text(results: Mapping[str, Any], name: str, as_percent: bool = False) -> str:
    """``95 % interval 0.581 to 0.642`` of ``{name}_interval``; "" where there is none."""
    ends = _ends(results, name, as_percent)
    return f"95 % interval {ends[0]} to {ends[1]}" if ends else ""


def interval_below(results: Mapping[str, Any], name: str, as_percent: bool = False) -> str:
    """The same as short as a tile needs it."""
    ends = _ends(results, name, as_percent)
    return f"95 %: {ends[0]}\N{EN DASH}{ends[1]}" if ends else ""


def _ends(results: Mapping[str, Any], name: str, as_percent: bool) -> list[str]:
    return [f"{end:.1%}" if as_percent else f"{end:.3f}" for end in results.get(f"{name}_interval") or ()]
