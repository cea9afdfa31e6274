"""Which token is swapped for which."""

import pytest
import torch

from common.swaps import draw_places, swap_tokens


def test_places_are_even_and_leave_the_end_token_alone():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    drawn = torch.stack([draw_places(mask, torch.full((3,), number)) for number in (0.0, 0.34, 0.67, 1 - 2**-24)])
    assert drawn.tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 0, 0]]


def test_the_likeliest_other_token_takes_the_place():
    tokens = torch.tensor([[5, 6, 7], [1, 0, 0]])
    logits = torch.tensor([[0.0, 3, 1, 0, 0, 0, 4, 2], [0.0, 9, 2, 0, 8, 0, 0, 0]])
    swapped = swap_tokens(tokens, torch.tensor([1, 0]), logits)
    assert swapped.tolist() == [[5, 1, 7], [4, 0, 0]]
    assert tokens.tolist() == [[5, 6, 7], [1, 0, 0]]
    assert logits[0, 6] == 4


def test_shapes_that_do_not_belong_together_are_named():
    with pytest.raises(ValueError, match=r"^noise: "):
        draw_places(torch.ones(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"^places: "):
        swap_tokens(torch.ones(2, 3).long(), torch.zeros(1).long(), torch.ones(2, 4))
