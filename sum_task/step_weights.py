"""Weights of all tokens of a step against each other, whichever process or accumulated batch they stand in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from common.credit import Judged
from common.training.engine import Engine
from common.transfers import fetch, upload


@dataclass(frozen=True)
class WeighedBatch:
    """The sequences of a batch with their weights.

    Attributes:
        rewards, weights: (B, T).
        total: weight of all tokens of the step.
    """

    rewards: Tensor
    weights: Tensor
    total: float


def weigh_together(
    batches: Sequence[Judged | None], weigh: Callable[[Judged], Tensor], engine: Engine
) -> list[WeighedBatch | None]:
    """Weigh the batches of a step as one, so that neither processes nor accumulation change a weight.

    Args:
        batches: this process's part of each; None where it has none.
        weigh: what is known of N sequences -> weights (N, T).
        engine: each process takes part, also one without a row.

    Returns:
        This process's part of each batch, weighed.
    """
    own = [batch for batch in batches if batch is not None]
    named = {f"{i}.{name}": t for i, batch in enumerate(own) for name, t in vars(batch).items() if t is not None}
    fetched = dict(zip(named, fetch(*named.values()), strict=True))
    everyone = [_batches(tensors) for tensors in engine.gather_tensors(fetched)]
    together = [batch for part in everyone for batch in part]
    width = max(batch.mask.shape[1] for batch in together)
    weights = weigh(_joined(together, width))
    total = weights.sum(dtype=torch.float64).item()
    first = sum(len(batch.mask) for part in everyone[: engine.rank] for batch in part)
    weighed: list[WeighedBatch | None] = []
    for batch in batches:
        if batch is None:
            weighed.append(None)
            continue
        count, length = batch.mask.shape
        part = upload(weights[first : first + count, :length], batch.mask.device)
        weighed.append(WeighedBatch(batch.rewards, part, total))
        first += count
    return weighed


def _batches(tensors: dict[str, Tensor]) -> list[Judged]:
    """The batches whose parts are named ``0.mask`` and so on."""
    count = sum(name.endswith(".mask") for name in tensors)
    parts = [{field.name: tensors.get(f"{i}.{field.name}") for field in fields(Judged)} for i in range(count)]
    return [Judged(**part | {"mask": part["mask"].bool()}) for part in parts]  # type: ignore[union-attr]


def _joined(batches: Sequence[Judged], width: int) -> Judged:
    def joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
        there = [tensor for tensor in tensors if tensor is not None]
        if not there:
            return None
        return torch.cat([F.pad(t, (0, width - t.shape[1])) if t.dim() == 2 else t for t in there])

    columns = zip(*(vars(batch).values() for batch in batches), strict=True)
    return Judged(*map(joined, columns))  # type: ignore[arg-type]
