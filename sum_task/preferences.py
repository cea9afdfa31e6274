"""Sequence-level preferences: what makes one summary of an article better than another.

``meteor`` (the published choice), ``rouge1``, ``rouge2`` and ``rougeLsum``, a weighted sum of them such as
``0.5*meteor+0.5*rouge2``, a metric of the `evaluate` library, ``evaluate:NAME?key=KEY`` (`sum_task.evaluate_library`),
or a function of your own, ``package.module:function``.
"""

import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.errors import UserError, nearest
from common.training.own_pieces import own_function, try_out
from sum_task.data import Row
from sum_task.evaluate_library import PREFIX, load_metric
from sum_task.meteor import Meteor
from sum_task.rouge import rouge_f1

METRICS = ("meteor", "rouge1", "rouge2", "rougeLsum")

_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")
_FORMS = (
    f"a metric ({', '.join(METRICS)}), a weighted sum such as 0.5*meteor+0.5*rouge2, evaluate:NAME, or "
    "package.module:function"
)

Score = Callable[[list[str], list[str], list[str]], Sequence[float]]
"""(predictions, references, sources), one text of each a summary -> one score a summary, higher is better."""


class Preference:
    """Scores summaries.

    Attributes:
        name: the words it was made from.
    """

    def __init__(self, name: str, score: Score) -> None:
        self.name = name
        self._score = score

    def __call__(self, predictions: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> Tensor:
        """Score N summaries.

        Args:
            predictions: the summaries, N texts.
            references: the human summary of each, N texts.
            sources: the article of each, N texts.

        Returns:
            (N,) float64, higher is better.

        Raises:
            ValueError: the three differ in length.
            UserError: a function of the user's returns something else than one finite number a summary.
        """
        if not len(predictions) == len(references) == len(sources):
            raise ValueError(
                f"{len(predictions)} predictions, {len(references)} references and {len(sources)} sources; "
                "each prediction needs one of both"
            )
        scores = self._score(list(predictions), list(references), list(sources))
        return torch.tensor(_checked(self.name, scores, len(predictions)), dtype=torch.float64)

    def of_rows(self, predictions: Sequence[str], rows: Sequence[Row]) -> Tensor:
        """Score a summary of each of N rows, (N,)."""
        return self(predictions, [row.standard for row in rows], [row.source for row in rows])


def make_preference(spec: str, rouge_words: str = "ascii") -> Preference:
    """Make the preference that `spec` describes.

    Args:
        spec: a metric, a weighted sum of metrics, ``evaluate:NAME?...``, or ``package.module:function``.
        rouge_words: what a word is to ROUGE, see `rouge_f1`.

    Raises:
        UserError: `spec` is none of these, the function cannot be imported, the metric cannot be loaded, or METEOR is
            asked for without WordNet.
    """
    if spec.startswith(PREFIX):
        return Preference(spec, load_metric(spec))
    if ":" in spec:
        return Preference(spec, _own_preference(spec.strip()))
    weights = _parse_sum(spec)
    meteor = Meteor() if "meteor" in weights else None
    rouge_names = [name for name in weights if name != "meteor"]

    def score(predictions: list[str], references: list[str], sources: list[str]) -> list[float]:
        totals = [0.0] * len(predictions)
        if meteor is not None:
            totals = [weights["meteor"] * value for value in meteor(predictions, references)]
        if rouge_names:
            for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
                values = rouge_f1(prediction, reference, rouge_names, rouge_words)
                totals[i] += sum(weights[name] * value for name, value in values.items())
        return totals

    return Preference(spec, score)


def check_own_preference(option: str, spec: str) -> None:
    """Try a function of the user's, before anything is written; a metric of the `evaluate` library is none.

    Raises:
        UserError: one line: it cannot be had, takes other arguments, fails, or gives back something else.
    """
    if not spec.startswith(PREFIX):
        _own_preference(spec)


def _own_preference(spec: str) -> Score:
    """A function of the user's, tried on two made-up rows."""
    texts = {name: ["a storm hit the town", "two were killed"] for name in ("predictions", "references", "sources")}
    _checked(spec, try_out("preference", spec, **texts), 2)
    return own_function(spec)


def _parse_sum(spec: str) -> dict[str, float]:
    """The weight of each metric of ``meteor``, ``rouge2 + 0.5*meteor`` and the like."""
    weights: dict[str, float] = {}
    for term in spec.split("+"):
        factor, star, name = term.rpartition("*")
        factor, name = factor.strip(), name.strip()
        if name not in METRICS:
            raise UserError(f"preference '{spec}': '{name}' is not known{nearest(name, METRICS)} (allowed: {_FORMS})")
        if name in weights:
            raise UserError(f"preference '{spec}': '{name}' comes twice")
        if star and not _NUMBER.fullmatch(factor):
            raise UserError(f"preference '{spec}': the weight '{factor}' is not a number such as 0.5")
        weights[name] = float(factor) if star else 1.0
        if not 0 < weights[name] < math.inf:
            raise UserError(f"preference '{spec}': the weight {factor} is out of range; it must be above 0")
    return weights


def _checked(name: str, scores: Sequence[float], count: int) -> list[float]:
    """`scores` as finite numbers, one a summary."""
    try:
        numbers = [float(score) for score in scores]
    except (TypeError, ValueError):
        raise UserError(
            f"preference '{name}': it returned {type(scores).__name__}, not a list of {count} numbers"
        ) from None
    if len(numbers) != count:
        raise UserError(f"preference '{name}': it returned {len(numbers)} scores for {count} summaries")
    for place, number in enumerate(numbers):
        if not math.isfinite(number):
            raise UserError(f"preference '{name}': the score of summary {place} of {count} is {number}")
    return numbers
