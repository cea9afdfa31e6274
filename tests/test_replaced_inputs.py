"""No program writes over the file that it reads."""

import pytest

from chat_task import score_tokens as score_replies
from common.errors import UserError
from scripts import draw_credit, make_noisy_references
from sum_task import score_tokens as score_summaries


@pytest.mark.parametrize(
    ("program", "more", "output"),
    [
        (score_replies, ["--model=none", "--device=cpu"], "--html"),
        (score_summaries, ["--model=none", "--device=cpu"], "--html"),
        (make_noisy_references, ["--output=other.jsonl"], "--marked"),
        (make_noisy_references, [], "--output"),
        (draw_credit, ["--runs=none"], "--output"),
    ],
)
def test_an_output_that_is_the_input_is_refused(program, more, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "reply": "b"}\n')
    with pytest.raises(UserError, match=f"{output}: .*rows.jsonl' is also read"):
        program.main([f"--input={file}", *more, f"{output}=rows.jsonl"])
    assert file.read_text() == '{"prompt": "a", "reply": "b"}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
