"""Files of rows: what each format gives, the two dialects of tsv."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.training.data_files import csv_rows, marked_cell, read_rows, read_text, read_tsv, tsv_text, unmarked_cell

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


ROWS = [{"a": 'x\u2028y\x85 "z"', "b": "null"}, {"a": " 12 ", "b": "2020-01-01"}]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_texts(tmp_path, kind, bom):
    path = tmp_path / f"rows.{kind}"
    frame = pd.DataFrame(ROWS)
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind in ("csv", "tsv"):
        path.write_text(bom + frame.to_csv(index=False, sep="," if kind == "csv" else "\t"), encoding="utf-8")
    else:
        text = json.dumps(ROWS, ensure_ascii=False)
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
        path.write_text(bom + (text if kind == "json" else lines), encoding="utf-8")

    assert [dict(cells) for _, cells in read_rows(path)] == ROWS


def test_what_is_no_parquet_file_or_no_table_is_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 no")
    for name, message in ((path, "no parquet file"), (tmp_path / "none.parquet", "cannot read"), ("a.txt", "is not a")):
        with pytest.raises(UserError, match=message) as error:
            list(read_rows(name))
        assert "\n" not in str(error.value)


def test_texts_lose_their_byte_order_mark_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf a\r\nb ")
    assert read_text(path) == " a\r\nb "


def tsv(tmp_path, text, quoting="auto"):
    path = tmp_path / "a.tsv"
    path.write_text(text, encoding="utf-8", newline="")
    _, rows = read_tsv(path, quoting)
    return [row[0] for _, row in rows]


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        (['"a ""b"" c"', "d"], ['a "b" c', "d"]),  # pandas
        (['"a"', '"b"'], ["a", "b"]),  # every text is quoted
        (['"a\nb"', "c"], ["a\nb", "c"]),
        (['"a ""b"" c"', 'd "e"'], ['"a ""b"" c"', 'd "e"']),  # a writer that quotes would have quoted the second
        (['"a"', "b"], ['"a"', "b"]),  # ... would not have quoted the first
        (['"a" b', "c"], ['"a" b', "c"]),
        (['"a', "b"], ['"a', "b"]),
        (['a "b"', "c ''"], ['a "b"', "c ''"]),
    ],
)
def test_the_dialect_of_a_tsv_file_is_seen(tmp_path, cells, texts):
    assert tsv(tmp_path, "text\tlabel\n" + "".join(f"{cell}\t1\n" for cell in cells)) == texts


def test_the_dialect_is_said_once_and_can_be_set(tmp_path, caplog):
    caplog.set_level("INFO")
    text = 'text\tlabel\n"a ""b"" c"\t1\n"d ""e"""\t0\n'
    assert tsv(tmp_path, text, "unquoted") == ['"a ""b"" c"', '"d ""e"""']
    assert not caplog.records
    assert tsv(tmp_path, text) == ['a "b" c', 'd "e"']
    assert len(caplog.records) == 1 and "2 cells are quoted" in caplog.text
    assert tsv(tmp_path, 'text\tlabel\n"a"\t1\nb\t0\n', "quoted") == ["a", "b"]
    with pytest.raises(UserError, match="no quoted tsv"):
        tsv(tmp_path, 'text\tlabel\n"a\t1\n', "quoted")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(st.sampled_from('ab" \n\t,\u2028'), min_size=1), min_size=1))
def test_what_is_written_is_what_is_read(tmp_path, texts):
    assert tsv(tmp_path, tsv_text([("text", "label"), *((text, 1) for text in texts)])) == texts


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("plain, with = inside", "plain, with = inside"), ("=1+1", "'=1+1"), ("-- a review", "'-- a review"),
        ("@x", "'@x"), ("+1", "'+1"), ("\tx", "'\tx"), ("'tis", "''tis"), ("a\x1b[31m\x7f", "'a␛[31m␡"),
        ("two\nlines", "two\nlines"), ("", ""), ("a ␛ of its own", "a ␛ of its own"),
    ],
)  # fmt: skip
def test_a_cell_of_a_csv_file_does_nothing_and_says_its_text(text, cell):
    assert marked_cell(text) == cell
    assert unmarked_cell(cell) == text
