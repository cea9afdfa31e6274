"""Batches of rows with similar lengths, padded to the longest row of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.training.random_keys import Purpose, keyed_generator
from common.transfers import upload
from sum_task.data import Row

BATCHES_SORTED_TOGETHER = 50


class Padded:
    """Texts as token ids, padded to one width.

    Attributes:
        tokens: (N, T).
        mask: (N, T), True at real tokens, an end token included. What a token is makes no difference: a padding token
            that was sampled within a summary is real.
        known: the mask on the CPU, so that nobody has to ask the device how long a text is; fetched if it is not given.
    """

    def __init__(self, tokens: Tensor, mask: Tensor, known: Tensor | None = None):
        self.tokens = tokens
        self.mask = mask
        self.known = mask.cpu() if known is None else known

    @property
    def count(self) -> int:
        """How many real tokens there are."""
        return int(self.known.sum())

    def to(self, device: torch.device) -> "Padded":
        """The same on `device`."""
        return Padded(upload(self.tokens, device), upload(self.mask, device), self.known)

    def rows(self, places: slice | Sequence[int]) -> "Padded":
        """Some of the texts, without the columns that are padding in all of them."""
        known = self.known[places]
        real = known.any(0).nonzero()
        columns = slice(int(real[0]), int(real[-1]) + 1)
        where = places if isinstance(places, slice) else upload(torch.tensor(places), self.tokens.device)
        return Padded(self.tokens[where, columns], self.mask[where, columns], known[:, columns])

    def lists(self) -> list[list[int]]:
        """The real token ids of each text, of those that are padded on the right."""
        lengths = self.known.sum(-1).tolist()
        return [row[:length] for row, length in zip(self.tokens.tolist(), lengths, strict=True)]


@dataclass(frozen=True)
class TokenizedRows:
    """Rows of a split with their token ids.

    Attributes:
        rows: the texts.
        sources, targets: token ids of each row.
    """

    rows: Sequence[Row]
    sources: Sequence[Sequence[int]]
    targets: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, count: int) -> "TokenizedRows":
        """The first so many rows, or all."""
        return TokenizedRows(self.rows[:count], self.sources[:count], self.targets[:count])


@dataclass
class Batch:
    """Some rows of a split.

    Attributes:
        rows: the texts.
        sources, targets: articles and references, B each.
        indices: number of each row within its split.
    """

    rows: list[Row]
    sources: Padded
    targets: Padded
    indices: list[int]

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on `device`."""
        return Batch(self.rows, self.sources.to(device), self.targets.to(device), self.indices)

    def only(self, places: Sequence[int]) -> "Batch":
        """Some of its rows."""
        rows, indices = ([values[place] for place in places] for values in (self.rows, self.indices))
        return Batch(rows, self.sources.rows(places), self.targets.rows(places), indices)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Collator:
    """Makes batches of rows.

    Attributes:
        pad_id: token id at padded positions; masks say which those are.
        sources_left: pad sources on the left, where a summary follows them in one sequence.
        pad_lengths: pad to (source, target) lengths, or None for the longest row of the batch.
        learn_padding: padding after a target counts as real.
    """

    pad_id: int
    sources_left: bool
    pad_lengths: tuple[int, int] | None = None
    learn_padding: bool = False

    def __call__(self, data: TokenizedRows, indices: Sequence[int]) -> Batch:
        source_length, target_length = self.pad_lengths or (None, None)
        sources = pad([data.sources[i] for i in indices], self.pad_id, source_length, self.sources_left)
        targets = pad([data.targets[i] for i in indices], self.pad_id, target_length)
        if self.learn_padding:
            targets = Padded(targets.tokens, torch.ones_like(targets.mask))
        return Batch([data.rows[i] for i in indices], sources, targets, list(indices))


def pad(sequences: Sequence[Sequence[int]], pad_id: int, length: int | None = None, left: bool = False) -> Padded:
    """Token ids of N texts, padded to `length` or the longest."""
    width = max(max(len(ids) for ids in sequences), length or 0)
    tokens = torch.full((len(sequences), width), pad_id)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, ids in enumerate(sequences):
        part = slice(width - len(ids), None) if left else slice(len(ids))
        tokens[row, part] = torch.tensor(ids, dtype=torch.long)
        mask[row, part] = True
    return Padded(tokens, mask)


def shuffled_batches(data: TokenizedRows, batch_size: int, purpose: Purpose, *words: int) -> list[list[int]]:
    """All rows in batches of similar lengths, in random order: the same for the same key.

    Rows are shuffled, then sorted within stretches of 50 batches: batches stay random samples of the data to a
    good part, and the padding in them nearly vanishes. The last batch may be smaller.
    """
    generator = keyed_generator(purpose, *words)
    order = torch.randperm(len(data), generator=generator).tolist()
    stretch = BATCHES_SORTED_TOGETHER * batch_size
    batches = []
    for start in range(0, len(order), stretch):
        part = sorted(order[start : start + stretch], key=lambda i: _length(data, i))
        # The short batch, if any, is made of the shortest rows, so that none is left over between two stretches.
        first = len(part) % batch_size
        batches += [part[:first]] if first else []
        batches += [part[i : i + batch_size] for i in range(first, len(part), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def sorted_batches(data: TokenizedRows, batch_size: int) -> list[list[int]]:
    """All rows in batches by length, longest first: what does not fit into memory fails at once."""
    order = sorted(range(len(data)), key=lambda i: _length(data, i), reverse=True)
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _length(data: TokenizedRows, index: int) -> tuple[int, int]:
    return len(data.sources[index]), len(data.targets[index])
