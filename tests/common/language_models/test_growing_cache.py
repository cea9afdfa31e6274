"""A cache that grows in place holds what one that is joined holds, and copies far less."""

import torch
from transformers import DynamicCache, LlamaConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from common.language_models.growing_cache import GrowingLayer, let_grow


def states(count, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, tokens, 3, generator=generator), torch.randn(count, 2, tokens, 5, generator=generator)


def test_it_holds_what_a_joined_one_holds_also_after_rows_were_selected():
    joined, growing = DynamicLayer(), GrowingLayer()
    count = 4
    for step in range(60):
        new = states(count, 7 if step == 0 else 1, step)
        for expected, found in zip(joined.update(*new), growing.update(*new), strict=True):
            assert torch.equal(expected, found)
        if step in (3, 30, 31):
            rows = torch.arange(count).flip(0)[: count - 1]
            joined.batch_select_indices(rows)
            growing.batch_select_indices(rows)
            count -= 1
    assert growing.get_seq_length() == joined.get_seq_length() == 66


def test_selecting_all_rows_in_another_order_is_seen():
    growing = GrowingLayer()
    keys, values = states(3, 4, 0)
    growing.update(keys, values)
    order = torch.tensor([2, 1, 0])
    growing.batch_select_indices(order)
    more = states(3, 1, 1)
    found = growing.update(*more)[0]
    assert torch.equal(found, torch.cat([keys[order], more[0]], 2))


def test_tokens_are_written_where_they_stay():
    growing = GrowingLayer()
    growing.update(*states(2, 20, 0))
    growing.update(*states(2, 1, 1))
    place = growing.keys.data_ptr()  # type: ignore[union-attr]
    for step in range(19):
        growing.update(*states(2, 1, step))
        assert growing.keys.data_ptr() == place  # type: ignore[union-attr]


def test_a_cache_goes_on_from_what_it_holds_and_other_layers_stay():
    cache = DynamicCache(config=LlamaConfig(num_hidden_layers=2))
    first = states(2, 3, 0)
    cache.update(*first, 0)
    cache.layers.append(DynamicSlidingWindowLayer(sliding_window=4))
    let_grow(cache)
    assert [type(layer) for layer in cache.layers] == [GrowingLayer, GrowingLayer, DynamicSlidingWindowLayer]
    more = states(2, 1, 1)
    assert torch.equal(cache.update(*more, 0)[0], torch.cat([first[0], more[0]], 2))
    assert torch.equal(cache.update(*more, 1)[1], more[1])
