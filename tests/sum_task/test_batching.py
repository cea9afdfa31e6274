"""Batches by length."""

import random

from common.training.random_keys import Purpose
from sum_task.batching import Collator, TokenizedRows, shuffled_batches, sorted_batches
from sum_task.data import Row


def data(count=23, seed=0):
    draw = random.Random(seed)
    rows = [Row("", "")] * count
    return TokenizedRows(rows, [[3] * draw.randint(1, 50) for _ in rows], [[4] * draw.randint(1, 9) for _ in rows])


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
    assert right.sources.tokens.tolist() == [[5, 0], [6, 7]]
    assert right.targets.mask.tolist() == [[True] * 3, [True, False, False]]
    left = Collator(0, True, pad_lengths=(4, 5), learn_padding=True)(rows, [0, 1])
    assert left.sources.tokens.tolist() == [[0, 0, 0, 5], [0, 0, 6, 7]]
    assert left.sources.mask.tolist() == [[False] * 3 + [True], [False] * 2 + [True] * 2]
    assert left.targets.mask.tolist() == [[True] * 5] * 2


def test_some_rows_of_a_batch_keep_no_column_that_is_padding_in_all_of_them():
    rows = [Row(str(i), "") for i in range(3)]
    split = TokenizedRows(rows, [[5, 6], [7, 8, 9, 1], [2]], [[3], [4, 4], [5, 5, 5]])
    for left in (False, True):
        part = Collator(pad_id=0, sources_left=left)(split, [2, 1, 0]).only([0, 2])
        assert part.sources.tokens.tolist() == ([[0, 2], [5, 6]] if left else [[2, 0], [5, 6]])
        assert part.targets.tokens.tolist() == [[5, 5, 5], [3, 0, 0]]
        assert part.targets.mask.tolist() == [[True] * 3, [True, False, False]]
        assert [row.source for row in part.rows] == ["2", "0"]
        assert part.indices == [2, 0]
