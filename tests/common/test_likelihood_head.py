"""The likelihood head: log-probabilities of chosen tokens in the memory of the logits alone."""

import pytest
import torch

from common import likelihood_head
from common.likelihood_head import LikelihoodHead, chosen_log_probabilities


def of_torch(logits, ids):
    return logits.float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("at_once", [2**22, 30])  # one part, and parts of three rows
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_are_those_of_log_softmax(monkeypatch, at_once, dtype):
    monkeypatch.setattr(likelihood_head, "_LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 5, 4, generator=generator).to(dtype).requires_grad_()
    weights = torch.randn(10, 4, generator=generator).to(dtype)
    ids = torch.randint(10, (2, 5), generator=generator)
    outer = torch.randn(2, 5, generator=generator)

    chosen = chosen_log_probabilities(states @ weights.T, ids)
    expected = of_torch(states @ weights.T, ids)
    assert chosen.dtype == torch.float32
    torch.testing.assert_close(chosen, expected, rtol=0, atol=1e-6)
    gradient = torch.autograd.grad((chosen * outer).sum(), states)[0]
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        gradient, torch.autograd.grad((expected * outer).sum(), states)[0], rtol=tolerance, atol=tolerance
    )


def test_the_logits_are_written_over_and_a_second_backward_pass_is_refused():
    logits = torch.zeros(1, 2, requires_grad=True)
    own = logits * 1
    chosen = chosen_log_probabilities(own, torch.tensor([0]))
    assert own.tolist() == [[0.0, 0.0]]
    chosen.backward(retain_graph=True)
    assert logits.grad is not None
    assert logits.grad.tolist() == own.tolist() == [[0.5, -0.5]]  # 1 - p and -p
    with pytest.raises(RuntimeError, match="used up"):
        chosen.backward()


def test_training_starts_at_a_quarter_of_the_log_probability_plus_one():
    raw = LikelihoodHead()(torch.tensor([0.0, -4.0]))
    assert raw.tolist() == [1.0, 0.0]
