"""Replies that a model writes, ranked: what the file holds, and what is refused."""

import json
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from chat_task import rank_replies
from chat_task.data import load_preferences
from chat_task.ranking_rows import Columns
from common.builtin.planted_errors import known_errors
from common.errors import UserError
from common.language_models.replies import ReplyFormat
from tests import tiny_models

SMALL = ["--samples=3", "--max_reply_length=12", "--batch_size=2", "--device=cpu"]


def by_length(prompts, replies):
    assert len(prompts) == len(replies)
    return [len(reply) for reply in replies]


def ends_well(prompts, replies):
    return [reply.endswith("t") for reply in replies]


def by_last_message(prompts, replies):
    return [len(prompt[-1]["content"]) + len(reply) for prompt, reply in zip(prompts, replies, strict=True)]


def all_alike(prompts, replies):
    return [1.0] * len(replies)


def fails_later(prompts, replies):
    if len(replies) > 2:
        raise RuntimeError("no such\nreply")
    return [0, 1]


def too_few(prompts, replies):
    return [1.0]


@pytest.fixture
def given(tmp_path):
    """A saved model and a file of five rows, four different prompts among them."""
    model, tokenizer = tiny_models.make("llama")
    model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    rows = [{"question": text} for text in ("the plot", "a great film", "the plot", "terrible", "long " * 50)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"--model={tmp_path / 'lm'}", f"--input={tmp_path / 'prompts.jsonl'}", "--prompt_column=question",
            "--max_prompt_length=20", *SMALL]  # fmt: skip


def ranked(words, file):
    rank_replies.main([*words, f"--output={file}"])
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_prompt_has_different_replies_with_their_scores(given, tmp_path, caplog):
    words = [*given, f"--preference={__name__}:by_length"]
    rows = ranked(words, tmp_path / "ranked.jsonl")
    assert {row["prompt"] for row in rows} <= {"the plot", "a great film", "terrible"}
    assert len(rows) >= 2 and "longer than --max_prompt_length: 1 of 4 left out" in caplog.text  # the long one
    for row in rows:
        assert row["scores"] == [len(text) for text in row["completions"]]
        assert len(set(row["completions"])) == len(row["completions"]) <= 3
    assert rows == ranked(words, tmp_path / "again.jsonl")
    assert rows != ranked([*words, "--seed=1"], tmp_path / "other.jsonl")
    found = load_preferences(columns=Columns(), train_file=str(tmp_path / "ranked.jsonl"), validation_share=0.5)
    assert len(found.train) + len(found.validation) == len(rows)


def test_built_in_replies_get_their_true_scores(tmp_path):
    words = ["--model=builtin/report-lm", "--input=builtin/planted-errors", "--prompt_template=summarize: {prompt}",
             "--limit=6", "--samples=4", "--max_reply_length=32", "--device=cpu"]  # fmt: skip
    known = known_errors(count=10)
    for row in ranked(words, tmp_path / "ranked.jsonl"):
        for text, score, wrong in zip(row["completions"], row["scores"], row["wrong"], strict=True):
            edits = known.edits(row["prompt"], text)
            assert score == -sum(count for _, count in edits) and text.count(" ") > 3
            assert all([start, end] in wrong or not count for (start, end), count in edits[:-1])


def test_empty_replies_and_bools_make_no_rows_that_are_refused(given, tmp_path, caplog, monkeypatch):
    written = [["", "cat", "cat"], [" ", "\n", ""], ["dog", "cat", "dog"]]
    monkeypatch.setattr(
        rank_replies, "sample_replies",
        lambda model, form, prompts, *_: [[rank_replies.Sample(t, True) for t in written.pop()] for _ in prompts],
    )  # fmt: skip
    rows = ranked([*given, f"--preference={__name__}:ends_well"], tmp_path / "ranked.jsonl")
    assert [(row["completions"], row["scores"]) for row in rows] == [(["dog", "cat"], [0.0, 1.0])]
    assert "empty replies: 4 of 9 left out" in caplog.text


def test_prompts_may_be_messages(given, tmp_path):
    folder = tmp_path / "lm"
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }} {% endfor %}")
    prompts = [[{"role": "user", "content": text}] for text in ("the plot", "a great film")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"question": p}) + "\n" for p in [*prompts, "the plot"]))
    rows = ranked([*given, f"--preference={__name__}:by_length"], tmp_path / "mixed.jsonl")
    assert [row["prompt"] for row in rows] == [*prompts, "the plot"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"question": prompt}) + "\n" for prompt in prompts))
    assert ranked([*given, f"--preference={__name__}:by_last_message"], tmp_path / "messages.jsonl")


@pytest.mark.parametrize("kind", ["llama", "llama with adapters", "t5"])
def test_samples_end_where_policies_end_and_do_not_depend_on_the_models_own_search(kind):
    model, tokenizer = tiny_models.make("llama")
    if kind == "t5":
        sizes: dict[str, Any] = {
            "decoder_start_token_id": 0,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 16,
            "num_layers": 1,
            "num_heads": 2,
        }
        torch.manual_seed(0)
        config = T5Config(vocab_size=len(tokenizer), eos_token_id=2, **sizes)
        model = T5ForConditionalGeneration(config)
    if kind == "llama with adapters":
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    form = ReplyFormat(tokenizer, kind == "t5", max_reply_length=12)
    prompts = ["the plot", "a great film is long"]

    def sampled():
        torch.manual_seed(2)
        return rank_replies.sample_replies(model.eval(), form, prompts, 40)

    plain = sampled()
    assert [len(of_prompt) for of_prompt in plain] == [40, 40]
    assert {sample.ended for of_prompt in plain for sample in of_prompt} == {True, False}
    own = GenerationConfig(num_beams=3, repetition_penalty=2.0, eos_token_id=5, decoder_start_token_id=0)
    for holder in [model, model.get_base_model()] if kind == "llama with adapters" else [model]:
        holder.generation_config = own
    found = sampled()
    assert model.generation_config is own
    assert kind != "llama with adapters" or model.get_base_model().generation_config is own
    fifth = tokenizer.decode([5])
    assert not [s for of_prompt in found for s in of_prompt if fifth in s.text.split()]  # the model's own end token
    assert sum(s.ended for o in found for s in o) > sum(s.ended for o in plain for s in o)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "--preference: name a function that ranks"),
        (["--preference=mine"], "has not the form package.module:function"),
        ([f"--preference={__name__}:too_few"], r"numbers of shape \(1,\), not \(2,\)"),
        ([f"--preference={__name__}:fails_later"], "fails_later' fails: RuntimeError: no such$"),
        ([f"--preference={__name__}:all_alike"], "all alike, or equally good"),
        ([f"--preference={__name__}:by_length", "--prompt_column=answer"], "no column 'answer'"),
        ([f"--preference={__name__}:by_length", "--prompt_template=Q:"], "has no {prompt}"),
        ([f"--preference={__name__}:by_length", "--max_prompt_length=1"], "all of them are empty or longer"),
        (
            [f"--preference={__name__}:by_length", "--max_reply_length=500"],
            "max_prompt_length: the backbone reads at most 128 tokens",
        ),
        ([f"--preference={__name__}:by_length", "--samples=1"], "at least 2"),
        (["--input=builtin/planted-errors", f"--preference={__name__}:by_length"], "by their true score; leave it out"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(given, tmp_path, flags, line):
    with pytest.raises(UserError, match=line):
        rank_replies.main([*given, *flags, f"--output={tmp_path / 'ranked.jsonl'}"])
    assert not (tmp_path / "ranked.jsonl").exists()
