import io
from pathlib import Path

import pytest

from common.errors import UserError
from common.training.csv_rows import csv_rows

FILE = Path("rows.csv")


def rows(text):
    return list(csv_rows(FILE, io.StringIO(text, newline="")))


def test_a_quoted_cell_holds_commas_quotes_and_line_breaks():
    # The row ends on line 3 of the file: its cell holds one line break.
    assert rows('text,label\n"a ""b"", c\nd",1\n') == [("rows.csv, line 3", {"text": 'a "b", c\nd', "label": "1"})]


def test_empty_lines_are_no_rows():
    assert rows("text,label\n\na,1\n") == [("rows.csv, line 3", {"text": "a", "label": "1"})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,a\n1,2\n", "line 1: 2 columns are called 'a'"),
        ("a,b\n1\n", "line 2: 1 cells where the header has 2"),
        ('a,b\n"1,2\n', "line 2: unexpected end of data"),
    ],
)
def test_mistakes_name_file_and_line(text, message):
    with pytest.raises(UserError, match=f"rows.csv, {message}"):
        rows(text)
