"""Using a trained policy and a trained reward model from the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from chat_task import score_tokens as score_any
from common.errors import UserError
from common.token_reward_model import TokenRewardModel
from sum_task import generate, score_tokens
from sum_task.data import Row
from sum_task.reward_model import SummaryRewardModel
from sum_task.run_sum import run


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """The folder of a finished run."""
    from sum_task import evaluation_metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_metrics, "Meteor", lambda: lambda predictions, _: [0.5] * len(predictions))
        patch.setattr(evaluation_metrics, "require_wordnet", lambda: None)
        out = tmp_path_factory.mktemp("trained") / "run"
        run(tiny.settings(output_dir=out))
    return out


def test_every_file_of_a_run_is_explained(trained):
    explained = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [path.name for path in trained.iterdir() if f"`{path.name}" not in explained] == []


def test_summary_of_a_text_file_is_one_line(trained, tmp_path, capsys):
    file = tmp_path / "article.txt"
    file.write_text("the storm hit\nthe city on monday .")
    assert generate.main(["--model", str(trained / "policy"), "--input", str(file), "--max_length=6"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_jsonl_in_and_out_keeps_the_order(trained, tiny, tmp_path):
    out = tmp_path / "out.jsonl"
    words = [
        "--model",
        str(trained / "policy"),
        "--input",
        tiny.test,
        "--output",
        str(out),
    ]  # its column is a usual one
    generate.main([*words, "--max_length=6", "--batch_size=2"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    expected = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
    assert [(r["source"], r["prediction"]) for r in rows] == [(r["source"], r["prediction"]) for r in expected]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "none.txt"], "cannot read none.txt"),
        (["--input", "{test}", "--text_column=text"], "line 1: no column 'text' \\(found: 'document', 'summary'\\)"),
        (["--input", "{test}", "--text_column=document", "--num_beams=0"], "--num_beams"),
        (["--input", __file__, "--text_column=document"], "a text file, which has no columns"),
        (["--input", "{test}", "--text_column=document", "--output={test}"], "is also read"),
        (["--input", "{test}", "--text_column=document", "--output={test}/below/out"], "cannot write"),
        (["--input", "{test}", "--text_column=document", "--model={t5}"], "not the policy folder"),
    ],
)
def test_mistakes_of_generate(trained, tiny, words, message):
    words = [word.format(test=tiny.test, t5=tiny.t5) for word in words]
    with pytest.raises(UserError, match=message):
        generate.main(["--model", str(trained / "policy"), *words])


def test_each_token_is_shown_with_its_reward(trained, tmp_path, capsys):
    file = tmp_path / "article.txt"
    file.write_text("the storm hit the city")
    words = ["--model", str(trained / "reward_model"), "--article", str(file), "--summary", "storm hit city"]
    score_tokens.main(words)
    shown = [line.split("\t") for line in capsys.readouterr().out.strip().splitlines()]
    assert [token.strip() for _, token in shown] == ["storm", "hit", "city", "</s>"]
    reward = SummaryRewardModel.from_pretrained(str(trained / "reward_model"))
    [(_, rewards)] = score_tokens.text_rewards(reward, [Row("the storm hit the city", "storm hit city")])
    assert [float(value) for value, _ in shown] == pytest.approx(rewards, abs=1e-6)
    score_tokens.main([*words, "--form=color"])
    assert "\033[48;2;" in capsys.readouterr().out
    score_tokens.main([*words, "--form=json"])
    assert json.loads(capsys.readouterr().out)["rewards"] == pytest.approx(rewards, abs=1e-6)
    page = tmp_path / "page.html"
    score_tokens.main([*words, "--html", str(page)])
    assert "storm" in page.read_text()


def test_a_saved_reward_model_scores_texts_by_itself(trained, tiny, tmp_path, capsys):
    """What a summarization run's folder says of texts is what the run itself reads: prefix, separator, lengths."""
    decoder_only = tiny.reward_model(tiny.policy(model_name_or_path=tiny.llama))
    decoder_only.save_pretrained(tmp_path / "llama")
    trained_on = TokenRewardModel.from_pretrained(trained / "reward_model").config.trained_on or {}
    assert trained_on["preference"] == "rouge1"
    long = " ".join(["storm", "fire", "town"] * 12)  # more than a source may have
    articles, summaries = ["the storm hit the city", long], ["storm hit", "fire in the town"]
    for folder in (trained / "reward_model", tmp_path / "llama"):
        own = SummaryRewardModel.from_pretrained(str(folder))
        expected = score_tokens.text_rewards(own, list(map(Row, articles, summaries)))
        model = TokenRewardModel.from_pretrained(folder)
        rows = [{"source": a, "prediction": s} for a, s in zip(articles, summaries, strict=True)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        score_any.main(["--model", str(folder), "--input", str(tmp_path / "rows.jsonl"), "--form=json"])
        shown = [json.loads(line)["rewards"] for line in capsys.readouterr().out.splitlines()]
        assert shown == [pytest.approx(rewards, abs=1e-6) for _, rewards in expected]
        for (_, rewards), scored in zip(expected, model.score_texts(summaries, articles), strict=True):
            assert scored.rewards == pytest.approx(rewards, abs=1e-6)
    replace(decoder_only.format, source_language="en_XX").reply_format().save(tmp_path / "llama")
    with pytest.raises(UserError, match="languages or marks of line breaks"):
        model.score_texts(summaries, articles)


def test_predictions_of_a_run_can_be_scored(trained, capsys):
    words = ["--model", str(trained / "reward_model"), "--input", str(trained / "predictions.jsonl")]
    score_tokens.main([*words, "--limit=2", "--form=json"])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_both_read_what_training_reads(trained, tmp_path, capsys):
    row = {"document": "the storm\u2028 hit", "summary": "storm\x85 hit"}
    files = {kind: tmp_path / f"rows.{kind}" for kind in ("jsonl", "json", "csv", "parquet")}
    files["jsonl"].write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    files["json"].write_text(json.dumps([row]))
    frame = pd.DataFrame([row])
    frame.to_csv(files["csv"], index=False)
    frame.to_parquet(files["parquet"])
    for file in files.values():
        columns = ["--input", str(file), "--text_column=document"]
        generate.main(["--model", str(trained / "policy"), *columns, "--max_length=2"])
        score_tokens.main(
            ["--model", str(trained / "reward_model"), *columns, "--summary_column=summary", "--form=json"]
        )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert len(set(lines)) == 2


def test_control_characters_do_not_reach_the_terminal(trained, tmp_path, capsys):
    shown = score_tokens._shown("color", ["a\x1b[2J"], [0.5], 0.0, 1.0)
    assert "\x1b[2J" not in shown


def test_mistakes_of_score_tokens(trained, tmp_path):
    model = ["--model", str(trained / "reward_model")]
    with pytest.raises(UserError, match="either --input, or --article"):
        score_tokens.main(model)
    with pytest.raises(UserError, match="--text_column: --article is a text file"):
        score_tokens.main([*model, "--article", __file__, "--summary=x", "--text_column=y"])
    with pytest.raises(UserError, match=r"--input: .* is not a"):
        score_tokens.main([*model, "--input", __file__])
    with pytest.raises(UserError, match="--summary"):
        score_tokens.main([*model, "--article", __file__])
    with pytest.raises(UserError, match="not the reward_model folder"):
        score_tokens.main(["--model", str(tmp_path), "--article", __file__, "--summary=x"])
