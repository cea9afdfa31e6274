"""Remembered token rewards: what is put is found, of each row its own, and every process learns what the others put."""

from typing import Any

import torch

from common.training.engine import Engine
from sum_task.reference_rewards import ReferenceRewards
from tests.engines import pretended


def test_rewards_are_found_again_row_by_row():
    known = ReferenceRewards([2, 3, 1])
    assert known.lack([0, 1, 2])
    known.put(1, torch.tensor([0.1, 0.2, 0.3, 9.0]))  # the last is padding
    known.put(2, torch.tensor([0.5]))
    assert [known.knows(row) for row in range(3)] == [False, True, True]
    assert not known.lack([2, 1])
    torch.testing.assert_close(known.table([2, 1], 4), torch.tensor([[0.5, 0, 0, 0], [0.1, 0.2, 0.3, 0]]))


def test_forgotten_rewards_are_not_there():
    known = ReferenceRewards([1, 1])
    known.put(0, torch.ones(1))
    known.forget()
    assert known.lack([0])


def test_every_process_learns_what_the_others_put(monkeypatch):
    both = [ReferenceRewards([2, 3, 1]) for _ in range(2)]
    both[0].put(1, torch.tensor([0.1, 0.2, 0.3]))
    both[0].put(0, torch.tensor([0.7, 0.8]))  # the second has put nothing
    sent: list[Any] = []

    def gather(engine: Engine, tensors: Any) -> list[Any]:
        sent.append({name: tensor.clone() for name, tensor in tensors.items()})
        return sent

    monkeypatch.setattr(Engine, "gather_tensors", gather)
    for rank in (1, 0):  # the last one sees what all have sent
        both[rank].exchange(pretended(rank, 2))
    both[1].exchange(pretended(1, 2))
    assert torch.equal(both[0].values.isnan(), both[1].values.isnan())
    assert torch.equal(both[0].table([0, 1], 3), both[1].table([0, 1], 3))
    assert [list(rows) for rows in sent] == [[], ["1", "0"], []]  # nothing is sent twice
