"""Files of rows and texts that users bring, read in one way by every command.

Own code for csv, tsv, json and jsonl: `datasets` and pandas guess types ("null", "12" and "2020-01-01" stop being
texts) and cannot say in which line something is wrong. Parquet holds its types itself and is read by pyarrow, which
`datasets` brings along.
"""

import csv
import io
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError

logger = logging.getLogger(__name__)

FILE_TYPES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
TSV_QUOTING = ("auto", "quoted", "unquoted")

_MARKED = ("=", "+", "-", "@", "'", "\t", "\r")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # tabs and line ends stand in quoted cells as they are
_PICTURE = re.compile("[\u2400-\u241f\u2421]")

Located = tuple[str, Mapping[str, Any]]
"""The words that say where a row stands, and its cells by column."""


def is_table(path: str | Path) -> bool:
    """Whether the file's name says that it holds rows."""
    return Path(path).suffix.lower() in FILE_TYPES


def read_rows(path: str | Path, tsv_quoting: str = "auto") -> Iterator[Located]:
    """Each row of a csv, tsv, json (a list of objects, or one object a line), jsonl or parquet file.

    Cells of csv and tsv files are texts, verbatim. A byte order mark is dropped; lines end with LF or CR LF.

    Args:
        path: the file; its ending says what it is.
        tsv_quoting: see `tsv_rows`.

    Raises:
        UserError: naming file and place: it cannot be read, or is not what its ending says.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in FILE_TYPES:
        raise UserError(f"{path} is not a {', '.join(FILE_TYPES)} file")
    if kind == ".parquet":
        yield from _parquet_rows(path)
        return
    if kind == ".tsv":
        header, rows = read_tsv(path, tsv_quoting)
        for line, cells in rows:
            yield f"{path}, line {line}", dict(zip(header, cells, strict=True))
        return
    try:
        with open(path, "rb") as file:
            lines = _decoded(path, file)
            yield from csv_rows(path, lines) if kind == ".csv" else _json_rows(path, lines)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file without its byte order mark, line ends kept; ``-`` is the standard input.

    Raises:
        UserError: it cannot be read, or is not UTF-8, naming the line.
    """
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file without their ends, LF or, where the first has it, CR LF; no empty ones at its end."""
    lines = read_text(path).split("\n")
    if lines[0].endswith("\r"):
        lines = [line.removesuffix("\r") for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def text_cell(where: str, cells: Mapping[str, Any], column: str) -> str:
    """The text in a column; null counts as blank.

    Raises:
        UserError: there is no such column, or it holds no text.
    """
    if column not in cells:
        raise UserError(f"{where}: no column '{column}' ({shown_columns(cells)})")
    cell = cells[column]
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise UserError(f"{where}: column '{column}' holds {type(cell).__name__}, not text")
    try:
        cell.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: column '{column}' holds half a character (a lone surrogate)") from None
    return cell


def is_text(value: Any) -> bool:
    """Whether a value is a text without halves of characters (lone surrogates)."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def shown_columns(columns: Collection[str]) -> str:
    """The names found, for a message."""
    names = [f"'{name}'" for name in columns]
    return f"found: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}" if names else "found: none"


def parse_json(where: str, text: str) -> Any:
    """JSON as Python data.

    Raises:
        UserError: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from None


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
        _check_header(path, header)
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise UserError(f"{where}: {len(cells)} cells where the header has {len(header)}")
            if cells:
                yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None


def read_tsv(path: str | Path, quoting: str = "auto") -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a tab-separated file: its header, and each row with the number of its (last) line.

    Two dialects are common. Unquoted (GLUE): a text is everything between two tabs. Quoted (pandas, so the published
    few-shot files): a cell that holds a quote, tab or line break stands in quotes, its inner quotes doubled. ``auto``
    takes a file for quoted if some cell is in quotes and the whole file is what such a writer writes: a quote stands in
    quoted cells only, and cells are quoted only where they have to be, or throughout their column.

    Args:
        path: the file. Empty lines at its end are dropped, and a line feed alone, or CR LF throughout, ends a line.
        quoting: one of `TSV_QUOTING`.

    Raises:
        UserError: the file is missing, empty or not UTF-8, a column name comes twice, or a row has more or fewer cells
            than the header.
    """
    lines = read_lines(path)
    if not lines:
        raise UserError(f"{path}: the file is empty")
    unquoted = [line.split("\t") for line in lines]
    opened = sum(cell.startswith('"') for cells in unquoted for cell in cells)
    if quoting == "quoted" or (quoting == "auto" and opened):
        try:
            quoted = _quoted_rows(lines)
        except csv.Error as error:
            if quoting == "quoted":
                raise UserError(f"{path}: no quoted tsv: {error}; tsv_quoting=unquoted reads it as it stands") from None
            quoted = None
        if quoting == "quoted" or (quoted is not None and _is_quoted_dialect(lines, quoted)):
            assert quoted is not None
            if quoting == "auto":
                logger.info("%s: %d cells are quoted, and read without it (tsv_quoting)", path, opened)
            return _checked(path, quoted, "")
        logger.info("%s: not taken as quoted; quotes belong to the texts (tsv_quoting)", path)
    return _checked(path, list(enumerate(unquoted, start=1)), " (a text can hold neither a tab nor a line break)")


def tsv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows, the header among them, as `read_tsv` reads them: quoted where a cell needs it, as pandas does."""
    file = io.StringIO()
    csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    return file.getvalue()


def marked_cell(text: str) -> str:
    """A text as a cell of a CSV file that does nothing where it is opened: `unmarked_cell` undoes it.

    Spreadsheets compute what begins like a formula, and terminals obey control characters. Such a text gets an
    apostrophe before it, as spreadsheets mark what is text, and its control characters their pictures (U+2400 on).
    """
    pictured = _CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < "\x7f" else "\u2421", text)
    return f"'{pictured}" if pictured != text or text.startswith(_MARKED) else text


def unmarked_cell(cell: str) -> str:
    """The text of a cell of `marked_cell`."""
    if not cell.startswith("'"):
        return cell
    return _PICTURE.sub(lambda found: "\x7f" if found[0] == "\u2421" else chr(ord(found[0]) - 0x2400), cell[1:])


def _quoted_rows(lines: Sequence[str]) -> list[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line + "\n" for line in lines), delimiter="\t", strict=True)
    return [(reader.line_num, cells) for cells in reader]


def _is_quoted_dialect(lines: Sequence[str], rows: list[tuple[int, list[str]]]) -> bool:
    """Whether writing the rows in the quoted dialect gives these lines."""
    needless = set()
    bare = set()
    width = len(rows[0][1])
    first = 0
    for last, cells in rows:
        raw = "\n".join(lines[first:last])
        first = last
        if len(cells) != width:
            return False
        place = 0
        for column, cell in enumerate(cells):
            if raw.startswith('"', place):
                place += len(cell) + cell.count('"') + 3
                if cell and not any(letter in cell for letter in '"\t\r\n'):
                    needless.add(column)
            else:
                if '"' in cell:
                    return False
                place += len(cell) + 1
                if first > rows[0][0]:
                    bare.add(column)
    return not needless & bare


def _checked(
    path: str | Path, rows: list[tuple[int, list[str]]], hint: str
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    header = rows[0][1]
    _check_header(path, header)
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {line}: {len(cells)} cells where the header has {len(header)}{hint}")
    return header, rows[1:]


def _check_header(path: str | Path, header: Sequence[str]) -> None:
    for name, count in Counter(header).items():
        if count > 1:
            raise UserError(f"{path}, line 1: {count} columns are called '{name}'")


def _decoded(path: Path, lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number}: not UTF-8 text; save the file as UTF-8") from None


def _json_rows(path: Path, lines: Iterator[str]) -> Iterator[Located]:
    """Rows of a list of objects, or of one object a line, which many files named .json hold."""
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("[") and path.suffix.lower() == ".json":
            items = parse_json(str(path), line + "".join(lines))
            for place, item in enumerate(items, start=1):
                yield _as_object(f"{path}, item {place}", item)
            return
        if line.strip():
            where = f"{path}, line {number}"
            yield _as_object(where, parse_json(where, line))


def _as_object(where: str, item: Any) -> Located:
    if not isinstance(item, dict):
        raise UserError(f"{where}: not a JSON object, which names the columns")
    return where, item


def _parquet_rows(path: Path) -> Iterator[Located]:
    import pyarrow  # type: ignore[import-untyped]  # slow to import, and not needed for other files
    import pyarrow.parquet  # type: ignore[import-untyped]

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_header(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1000):
                for cells in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", cells
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(f"{path}: no parquet file: {' '.join(str(error).split())}") from None
