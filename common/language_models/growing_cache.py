"""A key/value cache that is not copied for every token that is written.

transformers' own dynamic cache joins each new token to what it holds, so that writing T tokens copies T^2 / 2 of them.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_LEAST_ROOM = 16  # tokens that are made room for beside a quarter of those held


class GrowingLayer(DynamicLayer):
    """Keys and values at the front of memory that grows by a quarter whenever it is full."""

    def __init__(self) -> None:
        super().__init__()
        self._key_memory: Tensor | None = None
        self._value_memory: Tensor | None = None

    @classmethod
    def of(cls, layer: DynamicLayer) -> "GrowingLayer":
        """One that goes on from what `layer` holds."""
        made = cls()
        if layer.keys is not None and layer.values is not None:
            made.lazy_initialization(layer.keys, layer.values)
            made.keys, made.values = layer.keys, layer.values
        return made

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add new tokens (N, H, t, d) and return all that are held."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        held = self.get_seq_length()
        self._key_memory, self.keys = _joined(self._key_memory, self.keys, key_states, held)
        self._value_memory, self.values = _joined(self._value_memory, self.values, value_states, held)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, and no memory of the others."""
        super().batch_select_indices(indices)
        self._key_memory = self._value_memory = None


def _joined(memory: Tensor | None, old: Tensor, new: Tensor, held: int) -> tuple[Tensor, Tensor]:
    """The memory and, at its front, `old` and `new`. `old` is at its front already unless it was replaced since."""
    end = held + new.shape[2]
    if memory is None or memory.data_ptr() != old.data_ptr() or end > memory.shape[2]:
        count, heads, _, width = new.shape
        memory = new.new_empty(count, heads, max(end, held + held // 4 + _LEAST_ROOM), width)
        if held:
            memory[:, :, :held] = old
    memory[:, :, held:end] = new
    return memory, memory[:, :, :end]


def let_grow(cache: Cache) -> None:
    """Put `GrowingLayer` in the place of each plain dynamic layer of a cache; others, such as sliding ones, stay."""
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[place] = GrowingLayer.of(layer)
