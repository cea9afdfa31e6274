"""A preference over summaries of the built-in reports that no language model knows, with its tables in a YAML file.

    python sum_task/run_sum.py --config=configs/sum_noisy_builtin.yaml \
        --preference=common.builtin.planted_preference:planted

Some facts count three times, and a word is unwanted. It serves to ask what a reward learns from rankings alone.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from common.builtin.report_grammar import FACTS

_SLOT_OF = {word: slot for slot, words in FACTS.items() for word in words}


@cache
def _tables() -> dict[str, dict[str, float]]:
    tables: Any = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return tables


def planted(predictions: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> list[float]:
    """Score summaries; see planted_preference.yaml.

    Args:
        predictions: N summaries.
        references: N summaries that tell the right facts.
        sources: not looked at.

    Returns:
        N numbers, the share of what can be had: 1 for all facts and no unwanted word, below 0 where more is wrong than
        right.
    """
    return [_score(one.split(), other.split()) for one, other in zip(predictions, references, strict=True)]


def _score(told: list[str], right: list[str]) -> float:
    worth, unwanted = _tables()["facts"], _tables()["unwanted"]
    facts = {word for word in right if _SLOT_OF.get(word) in worth}
    best = sum(worth[_SLOT_OF[word]] for word in facts)
    found = sum(worth[_SLOT_OF[word]] for word in facts & set(told))
    wrong = sum(worth[_SLOT_OF[word]] for word in set(told) - facts if _SLOT_OF.get(word) in worth)
    return (found - wrong - sum(unwanted.get(word, 0) for word in told)) / max(best, 1)
