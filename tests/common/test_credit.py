"""What weighs a token, or a sequence against the others of its batch."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from common.credit import (
    CREDITS,
    NEED_EXPECTATION,
    SAMPLE_CREDITS,
    Judged,
    advantage_weights,
    advantages,
    expected_rewards,
    leave_one_out,
    leave_one_out_by_position,
    moved_within_sequences,
    reference_weights,
    sample_weights,
    sequence_scores,
    sequence_weights,
    shares_over_batch,
)
from common.policy_losses import reinforce_loss, shared_likelihood_loss

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


EXPECTED = torch.tensor([[0.2, 0.2, 0.2], [0.4, 0.4, math.nan], [0.6, 5.0, 5.0]])
ADVANTAGES = torch.tensor([[-0.1, 0.0, 0.1], [0.1, 0.3, 0.0], [-0.2, 0.0, 0.0]])
JUDGED = Judged(REWARDS, MASK, EXPECTED)


def test_the_expectation_is_over_the_policys_distribution():
    logits = torch.tensor([[[math.log(3.0), 0.0]]])  # 3/4 and 1/4
    assert expected_rewards(logits, torch.tensor([[[0.2, 1.0]]])).item() == pytest.approx(0.4)


def test_advantages_by_hand_and_free_of_the_level_of_a_state():
    torch.testing.assert_close(advantages(REWARDS, EXPECTED, MASK), ADVANTAGES)
    # Rankings leave open what is added to all rewards of a state.
    level = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(advantages(REWARDS + level, EXPECTED + level, MASK), ADVANTAGES, rtol=0, atol=1e-6)


def test_advantage_weights_by_hand():
    real = ADVANTAGES[MASK].double()
    deviation = (real - real.mean()).square().mean().sqrt()
    softplus = [math.log1p(math.exp(1 + a / deviation)) for a in real.tolist()]
    assert advantage_weights(ADVANTAGES, MASK)[MASK].tolist() == pytest.approx(softplus, rel=1e-5)
    assert reference_weights("advantage", JUDGED)[MASK].tolist() == pytest.approx(softplus, rel=1e-4)
    exponential = [math.exp(a / deviation) for a in real.tolist()]
    assert reference_weights("exp-advantage", JUDGED)[MASK].tolist() == pytest.approx(exponential, rel=1e-4)
    product = reference_weights("product", JUDGED)
    torch.testing.assert_close(product, reference_weights("sequence", JUDGED) * reference_weights("advantage", JUDGED))
    # The scores of the sequences may be others than their mean token rewards.
    oracle = Judged(REWARDS, MASK, EXPECTED, scores=torch.tensor([3.0, 1.0, 2.0]))
    assert reference_weights("product", oracle)[0, 0] > product[0, 0]


def test_leave_one_out_by_hand_sums_to_zero_and_needs_two():
    scores = torch.tensor([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]])
    assert leave_one_out(scores).tolist() == [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]
    assert leave_one_out(scores).sum(-1).abs().max() == 0
    with pytest.raises(ValueError, match="2 samples of a source"):
        leave_one_out(torch.ones(3, 1))
    with pytest.raises(ValueError, match="2 samples of a source"):
        sample_weights("sequence", JUDGED, 1)


def test_leave_one_out_by_position_compares_the_samples_of_a_source_alone():
    weights = torch.tensor([[1.0, 4.0], [3.0, 6.0], [5.0, math.nan], [9.0, 1.0], [7.0, math.nan], [2.0, math.nan]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1], [1, 0], [1, 0]])
    found = leave_one_out_by_position(weights, mask, 3)
    # The lone second token of the fourth sample has nothing to be compared with.
    expected = [[1 - 4.0, 4 - 6.0], [3 - 3.0, 6 - 4.0], [5 - 2.0, 0], [9 - 4.5, 0], [7 - 5.5, 0], [2 - 8.0, 0]]
    assert found.tolist() == expected
    assert found.unflatten(0, (2, 3)).sum(1).abs().max() == 0


def test_a_baseline_keeps_the_expected_gradient_and_lowers_its_variance():
    """All samples of two one-token sequences over three tokens, weighed by their probability: no estimate."""
    logits = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 1.2, 0.9], dtype=torch.float64)
    probabilities = logits.detach().softmax(-1)
    moments = {}
    for baseline in (False, True):
        mean, square = torch.zeros(3, dtype=torch.float64), 0.0
        for tokens in itertools.product(range(3), repeat=2):
            actions = torch.tensor(tokens).unsqueeze(1)
            mask = torch.ones(2, 1)
            weights = rewards[actions]
            weights = leave_one_out_by_position(weights, mask, 2) if baseline else weights
            loss = reinforce_loss(logits.expand(2, 1, 3), actions, weights, mask)
            (gradient,) = torch.autograd.grad(loss, logits)
            probability = probabilities[list(tokens)].prod()
            mean += probability * gradient
            square += float(probability * gradient.square().sum())
        moments[baseline] = (mean, square - float(mean.square().sum()))
    torch.testing.assert_close(moments[True][0], moments[False][0])
    assert moments[True][1] < 0.1 * moments[False][1]


def test_sample_weights_by_hand():
    rewards, mask = torch.tensor([[1.0, 2.0], [3.0, 7.0]]), torch.tensor([[1, 1], [1, 0]]).bool()
    judged = Judged(rewards, mask, expected=torch.ones(2, 2))
    assert sample_weights("reward", judged).tolist() == [[1, 2], [3, 0]]
    assert sample_weights("reward-to-go", judged).tolist() == [[3, 2], [3, 0]]
    assert sample_weights("reward-to-go", judged, 2).tolist() == [[0, 0], [0, 0]]
    assert sample_weights("sequence", judged).tolist() == [[1.5, 1.5], [3, 0]]
    assert sample_weights("sequence", judged, 2).tolist() == [[-1.5, -1.5], [1.5, 0]]
    assert sample_weights("advantage", judged).tolist() == [[0, 1], [2, 0]]


def test_weights_that_are_moved_within_sequences_by_hand():
    weights = torch.tensor([[1.0, 2.0, 3.0, 9.0], [9.0, 4.0, 5.0, 9.0], [9.0, 9.0, 9.0, 6.0]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
    assert moved_within_sequences(weights, mask).tolist() == [[2, 3, 1, 0], [0, 5, 4, 0], [0, 0, 0, 6]]


def test_the_control_of_the_product_has_its_weights_at_other_tokens():
    token_part = moved_within_sequences(reference_weights("advantage", JUDGED), MASK)
    expected = reference_weights("sequence", JUDGED) * token_part
    torch.testing.assert_close(reference_weights("shifted-product", JUDGED), expected)
    assert not torch.allclose(reference_weights("product", JUDGED), expected)


EVERY = [(reference_weights, kind) for kind in CREDITS] + [(sample_weights, kind) for kind in SAMPLE_CREDITS]


@pytest.mark.parametrize(("weigh", "kind"), EVERY)
class TestEveryKind:
    def test_padding_has_no_influence_on_any_side(self, weigh, kind):
        weights = weigh(kind, JUDGED)
        assert (weights[~MASK] == 0).all()
        wide = Judged(
            F.pad(REWARDS, (2, 1), value=math.nan), F.pad(MASK, (2, 1)), F.pad(EXPECTED, (2, 1), value=math.inf)
        )
        torch.testing.assert_close(weigh(kind, wide)[:, 2:5], weights)

    def test_the_order_of_the_sequences_has_no_influence(self, weigh, kind):
        order = torch.tensor([2, 0, 1])
        torch.testing.assert_close(
            weigh(kind, Judged(REWARDS[order], MASK[order], EXPECTED[order])), weigh(kind, JUDGED)[order]
        )

    @pytest.mark.parametrize(("dtype", "own"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
    def test_dtype_and_no_gradient(self, weigh, kind, dtype, own):
        rewards = REWARDS.to(dtype).requires_grad_()
        weights = weigh(kind, Judged(rewards, MASK, EXPECTED.to(dtype)))
        assert weights.dtype == own
        assert not weights.requires_grad
        torch.testing.assert_close(weights.float(), weigh(kind, JUDGED), rtol=0.05, atol=0.05)

    def test_an_expectation_is_asked_for_where_it_is_needed(self, weigh, kind):
        if kind in NEED_EXPECTATION:
            with pytest.raises(ValueError, match=r"^expected: "):
                weigh(kind, Judged(REWARDS, MASK))
        else:
            assert weigh(kind, Judged(REWARDS, MASK)).isfinite().all()


@pytest.mark.parametrize("kind", sorted({*CREDITS} - {"reward-to-go"}))
def test_equal_rewards_with_shares_over_the_batch_are_plain_cross_entropy(kind):
    logits = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2], [3, 4, -100], [1, -100, 99]])
    equal = Judged(torch.full((3, 3), 0.4), MASK, torch.full((3, 3), 0.3))
    loss = shared_likelihood_loss(logits, labels, shares_over_batch(reference_weights(kind, equal), MASK), MASK)
    assert loss.item() == pytest.approx(F.cross_entropy(logits[MASK], labels[MASK]).item(), rel=1e-6)


@pytest.mark.parametrize(("weigh", "names"), [(reference_weights, CREDITS), (sample_weights, SAMPLE_CREDITS)])
def test_an_unknown_kind_is_told_which_there_are(weigh, names):
    with pytest.raises(ValueError, match=f"^kind: unknown value 'q'; allowed: {', '.join(names)}$"):
        weigh("q", JUDGED)
