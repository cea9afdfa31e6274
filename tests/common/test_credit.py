"""What weighs a sequence against the others of its batch."""

import math

import pytest
import torch
from torch.nn import functional as F

from common.credit import sequence_scores, sequence_weights, shares_over_batch
from common.policy_losses import shared_likelihood_loss

MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]]).bool()
REWARDS = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.7, math.nan], [0.4, math.nan, 7.0]])
SCORES = [0.2, 0.6, 0.4]  # mean 0.4, deviation sqrt(0.08 / 3)


def test_scores_are_means_over_real_tokens():
    assert sequence_scores(REWARDS, MASK).tolist() == pytest.approx(SCORES)


def test_weights_by_hand():
    z = [-0.2 / math.sqrt(0.08 / 3), 0.2 / math.sqrt(0.08 / 3), 0.0]
    expected = [math.exp(x / 0.5) for x in z]
    assert sequence_weights(torch.tensor(SCORES)).tolist() == pytest.approx(expected, rel=1e-5)
    # Another level or scale of the reward is no other preference.
    assert sequence_weights(5 + 3 * torch.tensor(SCORES)).tolist() == pytest.approx(expected, rel=1e-4)
    assert sequence_weights(torch.tensor(SCORES), 1.0)[1].item() == pytest.approx(math.exp(z[1]), rel=1e-5)


@pytest.mark.parametrize("scores", [[0.31], [0.3, 0.3, 0.3], [0.3, 0.3 + 6e-8, 0.3 - 6e-8], [0.0, 0.0]])
def test_scores_that_are_equal_but_for_rounding_weigh_alike(scores):
    assert sequence_weights(torch.tensor(scores)).tolist() == [1.0] * len(scores)


def test_equal_weights_are_plain_cross_entropy_of_the_batch():
    logits = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[0, 1, 2], [3, 4, -100], [1, -100, 99]])
    weights = sequence_weights(torch.full((3,), 0.4)).unsqueeze(-1)
    loss = shared_likelihood_loss(logits, labels, shares_over_batch(weights, MASK), MASK)
    assert loss.item() == pytest.approx(F.cross_entropy(logits[MASK], labels[MASK]).item(), rel=1e-6)


def test_parts_of_a_batch_add_up_given_its_total():
    weights = torch.tensor([[2.0], [1.0], [4.0]])
    whole = shares_over_batch(weights, MASK)  # of 2 * 3 + 1 * 2 + 4 * 1 = 12
    torch.testing.assert_close(whole, torch.tensor([[2.0, 2, 2], [1, 1, 0], [4, 0, 0]]) / 12)
    parts = [shares_over_batch(weights[i : i + 1], MASK[i : i + 1], total=12.0) for i in range(3)]
    assert torch.equal(torch.cat(parts), whole)
    assert shares_over_batch(torch.zeros(3, 3), MASK)[MASK].tolist() == pytest.approx([1 / 6] * 6)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: sequence_weights(torch.tensor([0.1, math.nan])), "scores"),
        (lambda: sequence_weights(torch.tensor([0.1, 0.2]), 0.0), "temperature"),
        (lambda: shares_over_batch(torch.tensor([[-1.0], [1.0], [1.0]]), MASK), "weights"),
        (lambda: shares_over_batch(torch.ones(3, 2), MASK), "weights"),
        (lambda: sequence_scores(REWARDS, torch.zeros(3, 3)), "mask"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}:"):
        call()
