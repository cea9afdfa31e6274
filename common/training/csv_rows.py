"""Rows of a user's comma-separated file, with the words that say where each one stands."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from common.errors import UserError


def csv_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row as a mapping from column to cell; a quoted cell can hold commas, quotes and line breaks.

    Args:
        path: the file, for messages.
        lines: its lines, with their ends as they stand in the file.

    Raises:
        UserError: naming file and line: columns of one name, a row of another width, broken quotes.
    """
    csv.field_size_limit(2**31 - 1)  # an article can be longer than the 128 KiB that are allowed otherwise
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        for name, count in Counter(header).items():
            if count > 1:
                raise UserError(f"{path}, line 1: {count} columns are called '{name}'")
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise UserError(f"{where}: {len(cells)} cells where the header has {len(header)}")
            if cells:
                yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None
