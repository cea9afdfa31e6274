"""Token ids of whole splits."""

import pytest
from transformers import ByT5Tokenizer

from sum_task import tokenizing
from sum_task.data import Row
from sum_task.text_format import TextFormat
from sum_task.tokenizing import tokenize
from tests.sum_task.tiny import byte_tokenizer, spied, word_tokenizer


def text_format(encoder_decoder=True, length=20, tokenizer=None):
    return TextFormat(tokenizer or word_tokenizer(), encoder_decoder, "summarize : ", " . town", length)


@pytest.mark.slow
def test_worker_processes_give_the_same_tokens_in_the_same_order():
    rows = [Row(f"the storm hit {'the city ' * n}", "a flood " * n) for n in range(1, 6)]
    alone, shared = (tokenize(rows, text_format(), 6, workers) for workers in (None, 2))
    assert (alone.sources, alone.targets) == (shared.sources, shared.targets)


def test_tokens_of_a_large_split_are_cached_until_they_are_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "CACHED_ROWS", 2)
    calls = []
    monkeypatch.setattr(tokenizing, "_tokenized", spied(tokenizing._tokenized, lambda *_: calls.append(1)))
    rows = [Row("the storm hit", "the storm"), Row("a flood", "a"), Row("", "")]
    first = tokenize(rows, text_format(), 6, cache=tmp_path)
    again = tokenize(rows, text_format(), 6, cache=tmp_path)
    assert (first.sources, first.targets, len(calls)) == (again.sources, again.targets, 1)
    tokenize(rows, text_format(), 6, overwrite_cache=True, cache=tmp_path)
    tokenize(rows[:2], text_format(), 6, cache=tmp_path)
    tokenize(rows, text_format(length=3), 6, cache=tmp_path)
    tokenize(rows, text_format(tokenizer=byte_tokenizer()), 6, cache=tmp_path)
    assert len(calls) == 5


def test_a_cache_that_cannot_be_kept_is_left_out_with_a_note(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(tokenizing, "CACHED_ROWS", 2)
    rows = [Row("a b", "c"), Row("d", "e")]
    expected = tokenize(rows[:1], text_format(), 6).sources
    (tmp_path / "file").write_text("")
    assert tokenize(rows, text_format(), 6, cache=tmp_path / "file" / "tokens").sources[:1] == expected
    assert "are not kept on the disk" in caplog.text
    caplog.clear()
    slow = text_format(tokenizer=ByT5Tokenizer())
    assert tokenize(rows, slow, 6, cache=tmp_path / "tokens").targets == [[ord("c") + 3, 1], [ord("e") + 3, 1]]
    assert "no fast one" in caplog.text
    assert not (tmp_path / "tokens").exists()
