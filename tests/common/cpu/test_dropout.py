"""Dropout that draws 16 bits an element keeps the right share, scales it rightly and has the gradient of a factor."""

import pytest
import torch
from torch.nn import functional as F

from common.cpu.dropout import PIECE, CheapDropout, draw_kept, kept_factors, kept_scale, kept_share


@pytest.mark.parametrize("dropout", [0.1, 0.3, 0.5, 0.9])
def test_the_share_that_is_kept(dropout):
    torch.manual_seed(0)
    kept = draw_kept((1000, 1003), dropout)  # no multiple of the four elements of a word
    assert kept.shape == (1000, 1003)
    assert kept_share(dropout) == pytest.approx(1 - dropout, abs=2**-17)
    deviation = (dropout * (1 - dropout) / kept.numel()) ** 0.5
    assert abs(kept.double().mean().item() - (1 - dropout)) < 5 * deviation


def test_elements_are_independent_of_their_neighbours_and_rows():
    torch.manual_seed(0)
    kept = draw_kept((1000, 1000), 0.5).double() - 0.5
    for one, other in ((kept[:, :-1], kept[:, 1:]), (kept[:, :-4], kept[:, 4:]), (kept[:-1], kept[1:])):
        assert abs((one * other).mean().item()) < 5 * 0.25 / one.numel() ** 0.5


@pytest.mark.parametrize(("dropout", "mean"), [(0.0, 1.0), (1.0, 0.0)])
def test_nothing_and_everything(dropout, mean):
    assert draw_kept((50, 3), dropout).double().mean() == mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradient_are_scaled_where_kept(dtype):
    layer = CheapDropout(0.25)
    states = torch.ones(64, 65, dtype=dtype, requires_grad=True)
    torch.manual_seed(1)
    output = layer(states)
    output.sum().backward()
    torch.manual_seed(1)
    expected = (draw_kept(states.shape, 0.25).double() / 0.75).to(dtype)
    torch.testing.assert_close(output.detach(), expected)
    torch.testing.assert_close(states.grad, expected)
    assert output.dtype == dtype


def test_in_half_precision_the_mean_stays_where_it_is():
    torch.manual_seed(5)
    states = torch.randn(400, 1000).exp().bfloat16()
    output = CheapDropout(0.1)(states)
    kept = output != 0
    # 1 / 0.9 is 1.1094 in bf16, 1.6e-3 too little; rounding of single products averages out
    assert (output[kept].double().sum() / states[kept].double().sum()).item() == pytest.approx(1 / 0.9, rel=3e-4)


def test_all_dropped_is_zero():
    assert CheapDropout(1.0)(torch.ones(3, 4)).tolist() == torch.zeros(3, 4).tolist()


def test_gradient_against_finite_differences():
    states = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)

    def seeded(x):
        torch.manual_seed(3)
        return CheapDropout(0.4)(x)

    assert torch.autograd.gradcheck(seeded, states)


def test_in_evaluation_mode_it_does_nothing():
    states = torch.randn(3, 4)
    assert CheapDropout(0.5).eval()(states) is states or torch.equal(CheapDropout(0.5).eval()(states), states)


def test_a_byte_an_element_is_kept_for_the_backward_pass():
    states = torch.randn(8, 8, requires_grad=True)
    kept: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        CheapDropout(0.5)(states)
    assert [t.dtype for t in kept] == [torch.bool]


def test_pieces_of_a_large_tensor_fit_together_whatever_its_layout():
    states = torch.ones(PIECE // 100, 201).t().requires_grad_()
    layer = CheapDropout(0.5)
    torch.manual_seed(4)
    output = layer(states)
    output.sum().backward()
    torch.manual_seed(4)
    expected = draw_kept(states.shape, 0.5).float() * 2
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    torch.testing.assert_close(states.grad, expected, rtol=0, atol=0)


def test_factors_of_what_is_kept():
    kept = torch.tensor([[True, False]])
    for dtype, of_factors in ((torch.float64,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)):
        factors = kept_factors(kept, 1.25, dtype)
        assert (factors.tolist(), factors.dtype) == ([[1.25, 0.0]], of_factors)
    assert (kept_scale(0.5), kept_scale(1.0)) == (2.0, 0.0)


def test_mean_over_draws_is_the_input():
    torch.manual_seed(0)
    states = torch.full((200_000,), 2.0)
    ours, theirs = CheapDropout(0.1)(states), F.dropout(states, 0.1)
    assert ours.mean().item() == pytest.approx(2.0, abs=0.01)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.02)
