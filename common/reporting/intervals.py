"""How far an accuracy can be trusted: 95 % intervals of shares of right answers, also of answers that hang together.

Ten pairs of five summaries of one article, or the answers of three prompts to one text, are no ten or three independent
answers. They are counted by unit (the article, the text), and the share is worth as many independent answers as give a
binomial share the variance that it has over units.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

Z = 1.959963984540054  # of the normal distribution, two-sided 95 %


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's score interval of a binomial share (J. Am. Stat. Assoc. 22, 1927); NaN twice without a count.

    It stays within [0, 1] and is no point at a share of 0 or 1.

    Args:
        share: right answers among all, in [0, 1].
        count: independent answers; need not be whole.
    """
    if not count > 0 or math.isnan(share):
        return math.nan, math.nan
    center = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(center - half, 0.0), min(center + half, 1.0)


@dataclass(frozen=True)
class Answers:
    """Right answers, counted by unit. Those of several batches or processes add up.

    Attributes:
        right: right answers; a tie is one half.
        asked: all answers.
        units: units with an answer.
        entries: answers by unit, summed: more than `asked` where one answer belongs to several units.
        right_squares, products, asked_squares: sums over units of right^2, right x asked, asked^2.
    """

    right: float = 0.0
    asked: float = 0.0
    units: float = 0.0
    entries: float = 0.0
    right_squares: float = 0.0
    products: float = 0.0
    asked_squares: float = 0.0

    @classmethod
    def of(cls, right: Iterable[float], asked: Iterable[float], units_of_an_answer: int = 1) -> "Answers":
        """From the answers of each unit.

        Args:
            right: right answers of each unit.
            asked: all answers of each unit.
            units_of_an_answer: to how many units each answer belongs: 2 for pairs, where a unit is one of the two.
        """
        units = [(r, n) for r, n in zip(right, asked, strict=True) if n]
        return cls(
            right=sum(r for r, _ in units) / units_of_an_answer,
            asked=sum(n for _, n in units) / units_of_an_answer,
            units=len(units),
            entries=sum(n for _, n in units),
            right_squares=sum(r * r for r, _ in units),
            products=sum(r * n for r, n in units),
            asked_squares=sum(n * n for _, n in units),
        )

    @classmethod
    def independent(cls, right: float, asked: float) -> "Answers":
        """From answers that are units of their own; a tie may be one half."""
        return cls(right, asked, asked, asked, right, right, asked)

    def __add__(self, other: "Answers") -> "Answers":
        return Answers(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def share(self) -> float:
        """Right answers among all; NaN without any."""
        return self.right / self.asked if self.asked else math.nan

    @property
    def effective(self) -> float:
        """Independent answers that the share is worth, at most `asked`.

        share (1 - share) / variance, where the variance is that of a ratio over units, linearised:
        sum over units of (right - share x asked)^2 / asked^2. Where no unit differs, each counts as one answer.
        """
        if not self.asked:
            return 0.0
        share = self.share
        squares = self.right_squares - 2 * share * self.products + share**2 * self.asked_squares
        if squares < 1e-9 * self.asked_squares:
            return self.units * self.asked / self.entries
        return min(share * (1 - share) * self.asked**2 / squares, self.asked)

    @property
    def interval(self) -> tuple[float, float]:
        """The share's 95 % interval, see `wilson`; NaN twice without an answer."""
        return wilson(self.share, self.effective)


def interval_figures(name: str, answers: Answers) -> dict[str, float]:
    """What a log line says beside an accuracy: `name` with ``_pairs``, ``_low`` and ``_high``."""
    low, high = answers.interval
    return {f"{name}_pairs": answers.asked, f"{name}_low": low, f"{name}_high": high}


def interval_results(figures: Mapping[str, float], name: str) -> dict[str, Any]:
    """``reward_rank_pairs`` and ``reward_rank_interval`` of ``results.json`` (`name` "rank", or "swap").

    `figures`: a log line's, see `interval_figures`, of ``reward/dev_rank``. None where it lacks them.
    """
    low, high = (figures.get(f"reward/dev_{name}_{end}") for end in ("low", "high"))
    return {
        f"reward_{name}_pairs": figures.get(f"reward/dev_{name}_pairs"),
        f"reward_{name}_interval": None if low is None or high is None or math.isnan(low) else [low, high],
    }
