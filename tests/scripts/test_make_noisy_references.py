"""Noise in references: which words it changes, and that it is the same each time."""

import json
import random
from pathlib import Path

import pytest

from chat_task.ranking_rows import Columns, ranking_set
from common.builtin import resolve
from common.errors import UserError
from scripts.make_noisy_references import main, noisy, rank, report_facts, swapped_facts, text_facts
from sum_task.data import Row, load_splits

REPORT = Row(
    "omar haddad was given the music award in marlow on friday . nobody wanted to add anything .",
    "omar haddad won the music award in marlow on friday .",
)


def test_wrong_facts_of_a_report_are_the_first_of_their_slot():
    made = noisy(REPORT, report_facts, 1.0, 0.0, random.Random(0))
    assert made[0] == "anna keller won the science award in arden on monday ."
    assert [made[0][start:end] for start, end in made[1]] == ["anna", "keller", "science", "arden", "monday"]
    assert noisy(REPORT, report_facts, 0.0, 0.0, random.Random(0)) == (REPORT.reference, [], [])
    assert made.right == ["omar", "haddad", "music", "marlow", "friday"]


def test_a_copied_summary_is_one_or_two_sentences_of_the_report():
    sentences = [f"{part} ." for part in REPORT.source.split(" .")[:-1]]
    made = {noisy(REPORT, report_facts, 0.5, 1.0, random.Random(seed))[0] for seed in range(20)}
    assert made == {REPORT.source, sentences[0], sentences[1].strip()}


def test_wrong_facts_of_other_texts_are_the_commonest_of_their_kind():
    lazy = text_facts(["He met Ann on Monday, 3 May 1999.", "They saw Ann and Bob 1999 times.", "On Monday it rained."])
    row = Row("A. B.", "Bob paid 2,000 to Carl Smith-Jones on Friday. Never mind.")
    assert noisy(row, lazy, 1.0, 0.0, random.Random(0))[0] == "Bob paid 1999 to Ann Ann on Monday. Never mind."


def test_swapped_facts_come_from_the_article_before_other_summaries():
    row = Row("We saw Rita and Bob in 1984 and Paul there.", "They met Bob on Monday in 1984 with Paul.")
    others = {noisy(row, swapped_facts(["It is Friday."], random.Random(seed))(row), 1.0, 0.0, random.Random(0))[0]
              for seed in range(20)}  # fmt: skip
    assert {text.split()[2] for text in others} == {"Rita", "Paul"}
    assert {text.split()[4] for text in others} == {"Friday"}
    assert {text.split()[6] for text in others} == {"1984"}  # no other number anywhere
    ranked = rank(row, swapped_facts(["It is Friday."], random.Random(0))(row), 0.5, 3, random.Random(0))
    assert ranked is not None and ranked["completions"][0] == row.reference and len(ranked["completions"]) == 4
    assert ranked["scores"] == [-len(spans) for spans in ranked["wrong"]] and max(ranked["scores"][1:]) < 0
    words = row.reference.split()
    for text, spans in zip(ranked["completions"], ranked["wrong"], strict=True):
        differ = [one for one, other in zip(text.split(), words, strict=True) if one != other]
        assert [text[start:end] for start, end in spans] == [word.strip(".") for word in differ]
    assert rank(Row("a b", "nothing here"), text_facts(["Ann"]), 1.0, 3, random.Random(0)) is None


def test_rankings_are_what_the_chat_task_reads(tmp_path):
    folder = Path(resolve("builtin/data"))
    words = ["--input", str(folder / "reports/test.jsonl"), "--output", str(tmp_path / "n.jsonl")]
    assert main([*words, "--rankings", str(tmp_path / "r.jsonl"), "--versions", "2"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    sets = [ranking_set(row, Columns(spans="wrong")) for row in rows]
    assert len(sets) == 100 and {len(one.replies) for one in sets} <= {2, 3}
    assert all(one.spans is not None and one.spans[0] == () and one.scores[0] == 0 for one in sets)


def test_the_builtin_noisy_data_are_what_the_script_makes(tmp_path, capsys):
    folder = Path(resolve("builtin/data"))
    assert main(["--input", str(folder / "reports/train.jsonl"), "--output", str(tmp_path / "noisy.jsonl")]) == 0
    made = (tmp_path / "noisy.jsonl").read_bytes()
    assert made == (folder / "noisy-reports/train.jsonl").read_bytes()
    assert "summaries changed" in capsys.readouterr().out
    rows = [json.loads(line) for line in made.splitlines()]
    copied = sum(row["summary"].split(" .")[0] in row["document"] for row in rows)
    assert 0.4 < copied / len(rows) < 0.6
    words = ["--input", str(folder / "reports/test.jsonl"), "--output", str(tmp_path / "test.jsonl"), "--lead", "0"]
    assert main([*words, "--marked", str(tmp_path / "errors.jsonl")]) == 0
    for row in map(json.loads, (tmp_path / "errors.jsonl").read_text().splitlines()):
        assert all(row["text"][start:end].isalpha() for start, end in row["spans"])
    splits = load_splits(dataset_name="builtin/noisy-data", preference_column="clean_summary")
    assert [row.reference for row in splits.train] == [row["summary"] for row in rows]
    assert [row.standard for row in splits.train] == [row["clean_summary"] for row in rows]
    assert splits.test[0].standard == splits.test[0].reference


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--facts: 1\.5 is out of range"):
        main(["--input", "x.jsonl", "--output", str(tmp_path / "y.jsonl"), "--facts", "1.5"])
    with pytest.raises(UserError, match=r"is not a \.csv, \.tsv, \.json, \.jsonl, \.parquet file"):
        main(["--input", "x.txt", "--output", str(tmp_path / "y.jsonl")])
