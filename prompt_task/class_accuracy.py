"""How often prompts let the task LM answer rightly, by class, and how far that can be trusted."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from common.reporting.intervals import Answers


def answers_by_text(right: Tensor) -> Answers:
    """The answers to P prompts on E texts, those to one text as one unit: they hang together.

    Args:
        right: (P, E), True where the most probable class is the label.
    """
    return Answers.of(right.sum(0).tolist(), [len(right)] * right.shape[1])


def class_accuracies(right: Tensor, labels: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row a class that has texts: its name, the number of its texts, accuracy, and the ends of the 95 % interval.

    Args:
        right: (P, E), see `answers_by_text`; the mean over the P prompts is meant.
        labels: (E,) label of each text.
        names: of the classes, by label.
    """
    rows = []
    for label, name in enumerate(names):
        of_class = labels == label
        if of_class.any():
            answers = answers_by_text(right[:, of_class])
            low, high = answers.interval
            rows.append(
                {"class": name, "texts": int(of_class.sum()), "accuracy": answers.share, "low": low, "high": high}
            )
    return rows
