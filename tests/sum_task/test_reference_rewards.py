"""Remembered token rewards: what is put is found, of each row its own, and every process learns what the others put."""

from typing import Any

import torch

from common.training.engine import Engine
from sum_task.batching import Collator, TokenizedRows
from sum_task.data import Row
from sum_task.reference_rewards import ReferenceRewards
from tests.engines import pretended


def batch_of(rows, lengths):
    """A batch of these rows, whose references have so many tokens."""
    rows_of_split = TokenizedRows([Row("", "")] * len(lengths), [[1]] * len(lengths), [[1] * n for n in lengths])
    return Collator(0, False)(rows_of_split, rows)


def never(part):
    raise AssertionError


def test_rewards_are_found_again_row_by_row():
    known = ReferenceRewards([2, 3, 1])
    assert known.lack([0, 1, 2])
    known.put(1, torch.tensor([0.1, 0.2, 0.3, 9.0]))  # the last is padding
    known.put(2, torch.tensor([0.5]))
    assert [known.knows(row) for row in range(3)] == [False, True, True]
    assert not known.lack([2, 1])
    found = known.of(batch_of([2, 1], [2, 3, 1]), never)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0, 0], [0.1, 0.2, 0.3]]))


def test_only_what_is_not_known_is_computed_and_then_kept():
    known = ReferenceRewards([2, 4, 1])
    known.put(1, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    asked = []

    def compute(part):
        asked.append(part.indices)
        return torch.tensor([[0.5, 0.0], [0.6, 0.7]])

    found = known.of(batch_of([2, 1, 0], [2, 4, 1]), compute)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0, 0, 0], [0.1, 0.2, 0.3, 0.4], [0.6, 0.7, 0, 0]]))
    assert asked == [[2, 0]]
    known.keep([rewards for _, rewards in known.fresh], pretended(0, 1))
    assert known.fresh == []
    torch.testing.assert_close(known.of(batch_of([0, 2], [2, 4, 1]), never), torch.tensor([[0.6, 0.7], [0.5, 0]]))


def test_forgotten_rewards_are_not_there():
    known = ReferenceRewards([1, 1])
    known.put(0, torch.ones(1))
    known.forget()
    assert known.lack([0])


def test_every_process_learns_what_the_others_put(monkeypatch):
    both = [ReferenceRewards([2, 3, 1]) for _ in range(2)]
    new = torch.tensor([[0.1, 0.2, 0.3], [0.7, 0.8, 0]])
    both[0].fresh = [([1, 0], new)]  # the second has computed nothing
    sent: list[Any] = []

    def gather(engine: Engine, tensors: Any) -> list[Any]:
        sent.append({name: tensor.clone() for name, tensor in tensors.items()})
        return sent

    monkeypatch.setattr(Engine, "gather_tensors", gather)
    for rank, fetched in ((1, []), (0, [new])):  # the last one sees what all have sent
        both[rank].keep(fetched, pretended(rank, 2))
    both[1].keep([], pretended(1, 2))
    assert torch.equal(both[0].values.isnan(), both[1].values.isnan())
    batch = batch_of([0, 1], [2, 3, 1])
    assert torch.equal(both[0].of(batch, never), both[1].of(batch, never))
    assert [list(rows) for rows in sent] == [[], ["1", "0"], []]  # nothing is sent twice
