import json

import pytest

from common.errors import UserError
from scripts import lead_summaries
from tests.sum_task.conftest import stand_in_for_wordnet

ROWS = [
    {"document": "One ran home. Two sat down. Three ate. Four slept.", "summary": "One ran home."},
    {"document": "A cat. A dog. A cow.", "summary": "A cat."},
]


def test_the_lead_is_the_first_sentences_one_a_line():
    assert lead_summaries.lead(ROWS[0]["document"], 1) == "One ran home."
    assert lead_summaries.lead(ROWS[0]["document"], 3) == "One ran home.\nTwo sat down.\nThree ate."
    assert lead_summaries.lead("Only this", 3) == "Only this"


@pytest.fixture
def words(tmp_path, monkeypatch):
    stand_in_for_wordnet(monkeypatch)
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return [f"--{split}_file={file}" for split in ("train", "validation", "test")] + ["--output", str(tmp_path / "out")]


def test_a_summary_that_is_the_lead_has_full_marks(words, tmp_path, capsys):
    assert lead_summaries.main(words) == 0
    found = json.loads((tmp_path / "out" / "table.json").read_text())
    assert found["lead-1"]["rouge1"] == found["lead-1"]["rougeLsum"] == pytest.approx(100)
    assert found["lead-3"]["rouge1"] < 60
    assert found["lead-1"]["novelty2"] == 0
    assert "| lead-1 | 100.00 |" in capsys.readouterr().out
    assert "| lead-3 |" in (tmp_path / "out" / "table.md").read_text()


def test_a_length_below_one_is_refused(words):
    with pytest.raises(UserError, match="--sentences: 0 is out of range"):
        lead_summaries.main([*words, "--sentences", "0"])
