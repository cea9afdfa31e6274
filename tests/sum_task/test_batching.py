"""Token ids of texts, and batches by length."""

import random

import pytest
from transformers import ByT5Tokenizer

from common.errors import UserError
from common.training.random_keys import Purpose
from sum_task import batching as module
from sum_task.batching import Collator, TextFormat, TokenizedRows, shuffled_batches, sorted_batches, tokenize
from sum_task.data import Row
from tests.sum_task.tiny import byte_tokenizer, spied, word_tokenizer


def text_format(encoder_decoder=True, length=20, tokenizer=None):
    return TextFormat(tokenizer or word_tokenizer(), encoder_decoder, "summarize : ", " . town", length)


def data(count=23, seed=0):
    draw = random.Random(seed)
    rows = [Row("", "")] * count
    return TokenizedRows(rows, [[3] * draw.randint(1, 50) for _ in rows], [[4] * draw.randint(1, 9) for _ in rows])


def words(form, ids):
    return form.tokenizer.convert_ids_to_tokens(ids)


def test_encoder_decoder_source_is_cut_at_the_end_and_keeps_its_end_token():
    form = text_format(length=5)
    [ids] = form.sources(["the storm hit the city"])
    assert words(form, ids) == ["summarize", ":", "the", "storm", "</s>"]


def test_of_a_decoder_only_source_the_article_alone_is_cut():
    form = text_format(False, length=6)
    [ids] = form.sources(["the storm hit the city"])
    assert words(form, ids) == ["summarize", ":", "the", "storm", ".", "town"]
    with pytest.raises(UserError, match="take 4 tokens of 4"):
        text_format(False, length=4).sources(["the storm"])


@pytest.mark.parametrize("encoder_decoder", [True, False])
def test_summary_ends_with_the_end_token_even_when_it_is_cut(encoder_decoder):
    form = text_format(encoder_decoder)
    short, long = form.targets(["the city", "the storm hit the city"], 4)
    assert words(form, short) == ["the", "city", "</s>"]
    assert words(form, long) == ["the", "storm", "hit", "</s>"]


def test_every_row_is_in_one_batch_and_batches_are_of_similar_lengths():
    rows = data(200)
    batches = shuffled_batches(rows, 8, Purpose.POLICY_SHUFFLE, 1)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(batch) == 8 for batch in batches)
    padded = sum(len(batch) * max(len(rows.sources[i]) for i in batch) for batch in batches)
    assert padded < 1.1 * sum(map(len, rows.sources))


def test_batches_are_those_of_their_key():
    first, again, other = (shuffled_batches(data(), 4, Purpose.POLICY_SHUFFLE, epoch) for epoch in (2, 2, 3))
    assert first == again
    assert first != other
    batches = shuffled_batches(data(23), 4, Purpose.POLICY_SHUFFLE, 0)
    assert sorted(map(len, batches)) == [3, 4, 4, 4, 4, 4]


def test_evaluation_begins_with_the_longest_rows():
    rows = data()
    order = [i for batch in sorted_batches(rows, 4) for i in batch]
    assert [len(rows.sources[i]) for i in order] == sorted(map(len, rows.sources), reverse=True)


def test_collator_pads_sources_on_the_side_and_to_the_length_asked_for():
    rows = TokenizedRows([Row("", "")] * 2, [[5], [6, 7]], [[8, 9, 1], [1]])
    right = Collator(0, False)(rows, [0, 1])
    assert right.source_ids.tolist() == [[5, 0], [6, 7]]
    assert right.target_mask.tolist() == [[True] * 3, [True, False, False]]
    left = Collator(0, True, pad_lengths=(4, 5), learn_padding=True)(rows, [0, 1])
    assert left.source_ids.tolist() == [[0, 0, 0, 5], [0, 0, 6, 7]]
    assert left.source_mask.tolist() == [[False] * 3 + [True], [False] * 2 + [True] * 2]
    assert left.target_mask.tolist() == [[True] * 5] * 2


def test_worker_processes_give_the_same_tokens_in_the_same_order():
    rows = [Row(f"the storm hit {'the city ' * n}", "a flood " * n) for n in range(1, 6)]
    alone, shared = (tokenize(rows, text_format(), 6, workers) for workers in (None, 2))
    assert (alone.sources, alone.targets) == (shared.sources, shared.targets)


def test_tokens_of_a_large_split_are_cached_until_they_are_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CACHED_ROWS", 2)
    calls = []
    monkeypatch.setattr(module, "_tokenized", spied(module._tokenized, lambda *_: calls.append(1)))
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
    monkeypatch.setattr(module, "CACHED_ROWS", 2)
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


def test_some_rows_of_a_batch_keep_no_column_that_is_padding_in_all_of_them():
    rows = [Row(str(i), "") for i in range(3)]
    split = TokenizedRows(rows, [[5, 6], [7, 8, 9, 1], [2]], [[3], [4, 4], [5, 5, 5]])
    for left in (False, True):
        part = Collator(pad_id=0, sources_left=left)(split, [2, 1, 0]).only([0, 2])
        assert part.source_ids.tolist() == ([[0, 2], [5, 6]] if left else [[2, 0], [5, 6]])
        assert part.target_ids.tolist() == [[5, 5, 5], [3, 0, 0]]
        assert part.target_mask.tolist() == [[True] * 3, [True, False, False]]
        assert [row.source for row in part.rows] == ["2", "0"]
        assert part.indices == [2, 0]
