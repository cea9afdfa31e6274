"""The token rewards of reference summaries, remembered from one epoch to the next."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from common.training.engine import Engine


class ReferenceRewards:
    """One reward a token of every training row; NaN, which no reward is, where it has not been computed yet.

    A row is worked on by one process in one epoch and by another in the next, so that each step's new rewards are
    exchanged.

    Args:
        lengths: tokens of each row's reference.
    """

    def __init__(self, lengths: Sequence[int]):
        self._ends = [0, *np.cumsum(lengths).tolist()]
        self.values = torch.full((self._ends[-1],), torch.nan)
        self._new: list[int] = []

    def forget(self) -> None:
        """Know nothing: the reward model has changed."""
        self.values.fill_(torch.nan)

    def knows(self, row: int) -> bool:
        """Whether the rewards of a row are there."""
        return not bool(self._of(row).isnan().any())

    def put(self, row: int, rewards: Tensor) -> None:
        """Remember the rewards of a row's tokens; further ones, of padding, are left out."""
        own = self._of(row)
        own.copy_(rewards[: len(own)])
        self._new.append(row)

    def table(self, rows: Sequence[int], width: int) -> Tensor:
        """Rewards (B, width) of some rows, 0 beyond the end of each."""
        table = torch.zeros(len(rows), width)
        for place, row in enumerate(rows):
            own = self._of(row)
            table[place, : len(own)] = own
        return table

    def exchange(self, engine: Engine) -> None:
        """Let every process know what the others have put since the last call."""
        if engine.count > 1:
            for part in engine.gather_tensors({str(row): self._of(row) for row in self._new}):
                for row, rewards in part.items():
                    self._of(int(row)).copy_(rewards)
        self._new = []

    def lack(self, rows: Iterable[int]) -> bool:
        """Whether any of these rows is not known."""
        return not all(self.knows(row) for row in rows)

    def _of(self, row: int) -> Tensor:
        return self.values[self._ends[row] : self._ends[row + 1]]
