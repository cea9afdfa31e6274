"""Do numbers of tokens point at those that are known to be wrong? Areas under the curve, of tokens and of words.

Of a wrong word in several tokens often one alone looks wrong, and the others follow from it. So a word is as suspicious
as its most suspicious token. And errors that are wrong names and numbers are found by whoever can tell a name: whether
the word has a capital letter or a digit is a measure too, and names and numbers are also compared among themselves.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np

RANDOM_DRAWS = 100
NAME = "name or number"
_WORD = re.compile(r"\w+(?:['\u2019.,-]\w+)*|\S")


class MarkedRow(NamedTuple):
    """Of a text those of its tokens of which is known whether they are wrong.

    Attributes:
        is_wrong: of each token.
        measures: how suspicious each measure finds each token.
        words: which word of the text each belongs to, rising.
    """

    is_wrong: list[bool]
    measures: dict[str, list[float]]
    words: list[int]


Table = list[MarkedRow]


def area_under_curve(suspicion: Sequence[float], wrong: Sequence[bool]) -> float | None:
    """Probability that a wrong token is more suspicious than a right one, ties one half; None without both kinds."""
    values, inside = np.asarray(suspicion, dtype=float), np.asarray(wrong, dtype=bool)
    if inside.all() or not inside.any():
        return None
    ordered = np.sort(values[~inside])
    below = np.searchsorted(ordered, values[inside], side="left")
    up_to = np.searchsorted(ordered, values[inside], side="right")
    return float(((below + up_to) / 2).mean() / len(ordered))


def marked(offsets: Sequence[tuple[int, int]], text: str, spans: Sequence[tuple[int, int]]) -> list[bool | None]:
    """Whether each token shares a character other than a blank with a span; None for a token of no such character."""
    found: list[bool | None] = []
    for start, end in offsets:
        places = [place for place in range(start, min(end, len(text))) if not text[place].isspace()]
        found.append(any(a <= place < b for place in places for a, b in spans) if places else None)
    return found


def marked_row(
    offsets: Sequence[tuple[int, int]],
    text: str,
    spans: Sequence[tuple[int, int]],
    measures: Mapping[str, Sequence[float]],
) -> MarkedRow:
    """What a text adds to a table: its tokens that `marked` can tell, and a number for each by each measure.

    `NAME` is one of the measures: 1 in words with a capital letter or a digit, else 0.
    """
    is_wrong = marked(offsets, text, spans)
    kept = [place for place, wrong in enumerate(is_wrong) if wrong is not None]
    columns = {name: [column[place] for place in kept] for name, column in measures.items()}
    found = list(_WORD.finditer(text))
    starts = [word.start() for word in found]
    first = [next(c for c in range(*offsets[place]) if not text[c].isspace()) for place in kept]
    words = [bisect_right(starts, place) - 1 for place in first]
    is_name = [any(letter.isupper() or letter.isdigit() for letter in word[0]) for word in found]
    columns[NAME] = [float(is_name[word]) for word in words]
    return MarkedRow([bool(is_wrong[place]) for place in kept], columns, words)


def by_words(row: MarkedRow) -> MarkedRow:
    """Words in place of tokens: wrong where a token is, as suspicious as the most suspicious of their tokens."""
    groups = [[place for place, _ in group] for _, group in groupby(enumerate(row.words), key=lambda each: each[1])]
    return MarkedRow(
        [any(row.is_wrong[place] for place in group) for group in groups],
        {name: [max(column[place] for place in group) for group in groups] for name, column in row.measures.items()},
        [row.words[group[0]] for group in groups],
    )


def areas(measured: Table, draws: int = RANDOM_DRAWS, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """Areas of each measure, and of random numbers as a mean over `draws` of them.

    Returns:
        For each measure the area of tokens ``pooled`` over all texts and ``within texts``, a mean over those that have
        both kinds; the same of ``words`` and ``words within texts``; and of words that are ``names and numbers``.
    """
    generator = np.random.default_rng(seed)
    drawn = [f"random {number}" for number in range(draws)]
    tokens = [
        row._replace(measures=row.measures | {name: generator.random(len(row.is_wrong)).tolist() for name in drawn})
        for row in measured
    ]
    words = [by_words(row) for row in tokens]
    table: dict[str, dict[str, float | None]] = {}
    for name in tokens[0].measures:
        pooled, within = _areas_of(tokens, name)
        words_pooled, words_within = _areas_of(words, name)
        table[name] = {
            "pooled": pooled,
            "within texts": within,
            "words": words_pooled,
            "words within texts": words_within,
            "names and numbers": _area_of_names(words, name),
        }
    random = [table.pop(name) for name in drawn]
    return table | {"random": {kind: _mean([each[kind] for each in random]) for kind in random[0]}}


def _areas_of(rows: Table, measure: str) -> tuple[float | None, float | None]:
    """Pooled, and as a mean over the texts."""
    suspicion, wrong = [row.measures[measure] for row in rows], [row.is_wrong for row in rows]
    pooled = area_under_curve([*chain(*suspicion)], [*chain(*wrong)])
    return pooled, _mean([area_under_curve(*pair) for pair in zip(suspicion, wrong, strict=True)])


def _area_of_names(rows: Table, measure: str) -> float | None:
    """Pooled over the words that are names or numbers."""
    kept = [
        (value, wrong)
        for row in rows
        for value, wrong, is_name in zip(row.measures[measure], row.is_wrong, row.measures[NAME], strict=True)
        if is_name
    ]
    return area_under_curve(*zip(*kept, strict=True)) if kept else None


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
