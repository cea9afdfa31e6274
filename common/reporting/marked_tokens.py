"""Do numbers of tokens point at those that are known to be wrong? Areas under the curve."""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

RANDOM_DRAWS = 100

# Of a text which of its tokens are wrong, and how suspicious each measure finds them.
MarkedRow = tuple[list[bool], dict[str, list[float]]]
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
    """What a text adds to a table: its tokens that `marked` can tell, and a number for each by each measure."""
    is_wrong = marked(offsets, text, spans)
    kept = [place for place, wrong in enumerate(is_wrong) if wrong is not None]
    columns = {name: [column[place] for place in kept] for name, column in measures.items()}
    return [bool(is_wrong[place]) for place in kept], columns


def areas(measured: Table, draws: int = RANDOM_DRAWS, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """Pooled area and mean area within texts of each measure, and of random numbers, as a mean over `draws` of them."""
    wrong = [is_wrong for is_wrong, _ in measured]
    table = {name: _areas_of(wrong, [values[name] for _, values in measured]) for name in measured[0][1]}
    generator = np.random.default_rng(seed)
    drawn = [_areas_of(wrong, [generator.random(len(each)).tolist() for each in wrong]) for _ in range(draws)]
    means: dict[str, float | None] = {}
    for kind in drawn[0]:
        found = [area for area in (each[kind] for each in drawn) if area is not None]
        means[kind] = sum(found) / len(found) if found else None
    return table | {"random": means}


def _areas_of(wrong: Sequence[Sequence[bool]], suspicion: Sequence[Sequence[float]]) -> dict[str, float | None]:
    pooled = area_under_curve([*chain(*suspicion)], [*chain(*wrong)])
    within = [area_under_curve(*pair) for pair in zip(suspicion, wrong, strict=True)]
    there = [area for area in within if area is not None]
    return {"pooled": pooled, "within texts": sum(there) / len(there) if there else None}
