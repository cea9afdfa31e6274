"""The token rewards of reference summaries, remembered from one epoch to the next."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from common.training.engine import Engine
from common.transfers import upload
from sum_task.batching import Batch


class ReferenceRewards:
    """One reward a token of every training row; NaN, which no reward is, where it has not been computed yet.

    A row is worked on by one process in one epoch and by another in the next, so that each step's new rewards are
    exchanged.

    Args:
        lengths: tokens of each row's reference.

    Attributes:
        fresh: rewards (B, T) that were computed since the last `keep`, on the device, with the rows they are of.
    """

    def __init__(self, lengths: Sequence[int]):
        self._ends = [0, *np.cumsum(lengths).tolist()]
        self.values = torch.full((self._ends[-1],), torch.nan)
        self.fresh: list[tuple[list[int], Tensor]] = []

    def forget(self) -> None:
        """Know nothing: the reward model has changed."""
        self.values.fill_(torch.nan)

    def knows(self, row: int) -> bool:
        """Whether the rewards of a row are there."""
        return not bool(self._of(row).isnan().any())

    def lack(self, rows: Iterable[int]) -> bool:
        """Whether any of these rows is not known."""
        return not all(self.knows(row) for row in rows)

    def of(self, batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        """Rewards (B, T) of the references of a batch, 0 beyond the end of each.

        Args:
            batch: the rows.
            compute: rewards (b, t) of the references that are not known, 0 beyond the end of each.
        """
        table = torch.zeros(batch.targets.mask.shape)
        missing = []
        for place, row in enumerate(batch.indices):
            if self.knows(row):
                own = self._of(row)
                table[place, : len(own)] = own
            else:
                missing.append(place)
        table = upload(table, batch.targets.mask.device)
        if missing:
            part = batch if len(missing) == len(batch.rows) else batch.only(missing)
            found = compute(part)
            self.fresh.append((part.indices, found))
            table[upload(torch.tensor(missing), table.device), : found.shape[1]] = found
        return table

    def put(self, row: int, rewards: Tensor) -> None:
        """Remember the rewards of a row's tokens; further ones, of padding, are left out."""
        own = self._of(row)
        own.copy_(rewards[: len(own)])

    def keep(self, fetched: Sequence[Tensor], engine: Engine) -> None:
        """Remember what is `fresh`, `fetched` to the CPU, here and in every other process; all take part."""
        new = [row for rows, _ in self.fresh for row in rows]
        for row, rewards in zip(new, (rewards for part in fetched for rewards in part), strict=True):
            self.put(row, rewards)
        self.fresh = []
        if engine.count > 1:
            for others in engine.gather_tensors({str(row): self._of(row) for row in new}):
                for name, rewards in others.items():
                    self._of(int(name)).copy_(rewards)

    def _of(self, row: int) -> Tensor:
        return self.values[self._ends[row] : self._ends[row + 1]]
