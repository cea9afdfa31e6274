import itertools
import math

import pytest
import torch
from scipy import stats

from common.grounding_loss import kendall_tau, list_mle_loss, partial_order_losses, rank_accuracy


def plackett_luce_probability(scores, order, temperature=1.0):
    """Probability of drawing `order`, best first, straight from the definition."""
    strengths = [math.exp(score / temperature) for score in scores]
    probability = 1.0
    for place, chosen in enumerate(order):
        probability *= strengths[chosen] / sum(strengths[other] for other in order[place:])
    return probability


def preferences_of(order):
    """Preferences that rank the sequences in this order, best first."""
    preferences = torch.empty(len(order))
    preferences[list(order)] = torch.arange(len(order), 0, -1.0)
    return preferences


class TestListMLE:
    def test_hand_computed_value(self):
        # Strengths 1, 2, 3 and order 0, 2, 1: P = 1/6 * 3/5 * 2/2 = 1/10.
        scores = torch.tensor([[1.0, 2.0, 3.0]]).log()
        preferences = torch.tensor([[9.0, -4.0, 0.5]])
        torch.testing.assert_close(list_mle_loss(scores, preferences), torch.tensor(math.log(10)))

    def test_is_the_mean_over_sets(self):
        # The set above, ln 10, and strengths 1, 2, 3 in the order 2, 1, 0: P = 3/6 * 2/3 = 1/3.
        scores = torch.tensor([[1.0, 2.0, 3.0]] * 2).log()
        preferences = torch.tensor([[9.0, -4.0, 0.5], [0.0, 1.0, 2.0]])
        expected = torch.tensor((math.log(10) + math.log(3)) / 2)
        torch.testing.assert_close(list_mle_loss(scores, preferences), expected)

    def test_two_sequences_are_the_bradley_terry_loss(self):
        generator = torch.Generator().manual_seed(0)
        scores = 3 * torch.randn(50, 2, generator=generator)
        preferences = torch.randn(50, 2, generator=generator)
        better_minus_worse = (scores[:, 0] - scores[:, 1]) * (preferences[:, 0] - preferences[:, 1]).sign()
        for temperature in (1.0, 0.5):
            expected = -torch.nn.functional.logsigmoid(better_minus_worse / temperature).mean()
            torch.testing.assert_close(list_mle_loss(scores, preferences, temperature), expected)

    @pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
    def test_is_the_plackett_luce_likelihood_of_every_order(self, temperature):
        values = [0.3, -1.2, 2.0, 0.9]
        scores = torch.tensor([values], dtype=torch.float64)
        total = 0.0
        for order in itertools.permutations(range(4)):
            loss = list_mle_loss(scores, preferences_of(order).unsqueeze(0), temperature).item()
            assert math.exp(-loss) == pytest.approx(plackett_luce_probability(values, order, temperature), rel=1e-12)
            total += math.exp(-loss)
        assert total == pytest.approx(1, rel=1e-12)

    def test_equal_scores_cost_log_factorial(self):
        loss = list_mle_loss(torch.full((3, 5), 0.7), torch.arange(15.0).view(3, 5))
        torch.testing.assert_close(loss, torch.tensor(math.log(120)))

    def test_order_of_sets_and_sequences_changes_nothing(self):
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(6, 5, generator=generator, dtype=torch.float64)
        preferences = torch.randn(6, 5, generator=generator)
        sets, sequences = torch.randperm(6, generator=generator), torch.randperm(5, generator=generator)
        moved = list_mle_loss(scores[sets][:, sequences], preferences[sets][:, sequences])
        torch.testing.assert_close(moved, list_mle_loss(scores, preferences))

    def test_only_the_order_of_preferences_matters(self):
        scores = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        preferences = torch.rand(8, 4, generator=torch.Generator().manual_seed(1))
        expected = list_mle_loss(scores, preferences)
        assert torch.equal(list_mle_loss(scores, 1e3 * preferences.exp() - 7), expected)
        assert torch.equal(list_mle_loss(scores, (1e6 * preferences).long()), expected)

    def test_gradient_agrees_with_finite_differences(self):
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        preferences = torch.randn(3, 4, generator=generator)
        assert torch.autograd.gradcheck(lambda s: list_mle_loss(s, preferences, 0.7), (scores,))

    def test_preferences_get_no_gradient(self):
        preferences = torch.randn(2, 3, requires_grad=True)
        list_mle_loss(torch.randn(2, 3, requires_grad=True), preferences).backward()
        assert preferences.grad is None


class TestExtremes:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("size", [1e4, 6e4])
    def test_large_scores_in_every_dtype(self, dtype, size):
        # Worst first: each of the two choices costs the distance to the best that is left, 2 * size and size.
        scores = torch.tensor([[-size, 0.0, size]], dtype=dtype, requires_grad=True)
        best_first, worst_first = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[2.0, 1.0, 0.0]])
        assert list_mle_loss(scores, best_first).item() == 0
        loss = list_mle_loss(scores, worst_first)
        assert loss.item() == pytest.approx(3 * scores[0, 2].item(), rel=1e-6)
        loss.backward()
        # d/de of (e_2 - e_0) + (e_2 - e_1)
        torch.testing.assert_close(scores.grad, torch.tensor([[-1, -1, 2]], dtype=dtype), rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("size", [1e8, 1e30])
    def test_far_larger_scores_stay_finite(self, size):
        scores = size * torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
        scores.requires_grad_()
        loss = list_mle_loss(scores, torch.randn(20, 5, generator=torch.Generator().manual_seed(1)))
        loss.backward()
        assert loss.isfinite()
        assert scores.grad.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_scores_are_compared_in_float32(self, dtype):
        scores = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
        preferences = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
        loss = list_mle_loss(scores, preferences)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, list_mle_loss(scores.float(), preferences))


class TestTies:
    SCORES = (0.0, 0.5, 2.0)

    def losses_of_all_orders(self, tied_orders):
        losses = torch.tensor([-math.log(plackett_luce_probability(self.SCORES, order)) for order in tied_orders])
        return losses.mean().item(), losses.std(unbiased=False).item()

    @pytest.mark.parametrize(
        ("preferences", "tied_orders"),
        [
            ((1.0, 1.0, 1.0), list(itertools.permutations(range(3)))),
            ((1.0, 1.0, 0.0), [(0, 1, 2), (1, 0, 2)]),
            ((0.0, 1.0, 0.0), [(1, 0, 2), (1, 2, 0)]),
        ],
    )
    def test_are_broken_without_bias_and_for_each_set_on_its_own(self, preferences, tied_orders):
        # One call over many sets comes close to the mean over the tied orders. A fixed order, or one order drawn
        # for the whole batch, would give the loss of that single order, far away.
        sets = 20_000
        loss = list_mle_loss(
            torch.tensor([self.SCORES]).expand(sets, 3),
            torch.tensor([preferences]).expand(sets, 3),
            generator=torch.Generator().manual_seed(0),
        )
        mean, deviation = self.losses_of_all_orders(tied_orders)
        assert abs(loss.item() - mean) < 4 * deviation / math.sqrt(sets)

    def test_are_broken_anew_in_every_call(self):
        generator = torch.Generator().manual_seed(0)
        losses = {
            round(list_mle_loss(torch.tensor([self.SCORES]), torch.zeros(1, 3), generator=generator).item(), 4)
            for _ in range(100)
        }
        assert len(losses) == 6

    def test_the_generator_decides(self):
        scores, preferences = torch.randn(4, 6), torch.zeros(4, 6)
        first, second = (
            list_mle_loss(scores, preferences, generator=torch.Generator().manual_seed(3)) for _ in range(2)
        )
        assert torch.equal(first, second)

    def test_the_global_generator_is_the_default(self):
        scores, preferences = torch.randn(4, 6), torch.zeros(4, 6)
        torch.manual_seed(3)
        first = list_mle_loss(scores, preferences)
        torch.manual_seed(3)
        assert torch.equal(list_mle_loss(scores, preferences), first)


class TestRankAccuracy:
    def test_counts_pairs(self):
        # Pairs by preference: 0 > 1 right, 0 > 2 right, 1 > 2 wrong.
        accuracy = rank_accuracy(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[0.9, 0.5, 0.1]]))
        assert accuracy.item() == pytest.approx(2 / 3)

    def test_tied_scores_count_half_and_tied_preferences_nothing(self):
        # 0 and 1 tie in preference; 0 > 2 has tied scores, 1 > 2 is right.
        accuracy = rank_accuracy(torch.tensor([[1.0, 2.0, 1.0]]), torch.tensor([[5.0, 5.0, 3.0]]))
        assert accuracy.item() == 0.75

    def test_constant_scores_are_half_right(self):
        assert rank_accuracy(torch.zeros(10, 4), torch.randn(10, 4)).item() == 0.5

    def test_is_taken_over_the_pairs_of_all_sets(self):
        # First set: 0 > 1 wrong, 2 > 1 has tied scores, 0 and 2 tie in preference. Second set: three right.
        scores = torch.tensor([[1.0, 2.0, 2.0], [3.0, 2.0, 1.0]])
        preferences = torch.tensor([[1.0, 0.0, 1.0], [3.0, 2.0, 1.0]])
        assert rank_accuracy(scores, preferences).item() == pytest.approx((0 + 0.5 + 3) / 5)

    def test_is_nan_where_nothing_can_be_compared(self):
        assert rank_accuracy(torch.randn(2, 3), torch.ones(2, 3)).isnan()

    def test_takes_half_precision_and_gives_no_gradient(self):
        scores = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
        accuracy = rank_accuracy(scores, torch.randn(2, 3))
        assert accuracy.dtype == torch.float32
        assert not accuracy.requires_grad


@pytest.mark.parametrize("function", [list_mle_loss, rank_accuracy])
@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"scores": torch.zeros(3)}, "scores"),
        ({"scores": torch.zeros(2, 1), "preferences": torch.zeros(2, 1)}, "scores"),
        ({"scores": torch.zeros(0, 3), "preferences": torch.zeros(0, 3)}, "scores"),
        ({"scores": torch.zeros(2, 3).long()}, "scores"),
        ({"preferences": torch.zeros(3, 2)}, "preferences"),
        ({"preferences": torch.full((2, 3), math.nan)}, "preferences"),
    ],
)
def test_bad_input_is_named(function, changes, argument):
    arguments = {"scores": torch.zeros(2, 3), "preferences": torch.zeros(2, 3)} | changes
    with pytest.raises(ValueError, match=f"^{argument}: "):
        function(**arguments)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_the_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=r"^temperature: "):
        list_mle_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature)


class TestKendallTau:
    def test_equals_scipy_with_and_without_ties(self):
        generator = torch.Generator().manual_seed(0)
        scores = torch.randint(0, 4, (40, 5), generator=generator).float()
        preferences = torch.randint(0, 3, (40, 5), generator=generator).float()
        scores[0], preferences[1] = 1.0, 2.0
        found = kendall_tau(scores, preferences)
        expected = [stats.kendalltau(*pair).statistic for pair in zip(scores.numpy(), preferences.numpy(), strict=True)]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), equal_nan=True)
        assert found[:2].isnan().all()
        assert not found[2:].isnan().any()

    def test_is_1_for_the_same_order_and_minus_1_for_the_opposite_one(self):
        order = torch.tensor([[3.0, 1.0, 2.0]])
        assert kendall_tau(order, 10 * order).item() == 1
        assert kendall_tau(order, -order).item() == -1

    def test_refuses_shapes_that_do_not_belong_together(self):
        with pytest.raises(ValueError, match="preferences"):
            kendall_tau(torch.zeros(2, 3), torch.zeros(2, 4))


class TestPartialOrders:
    def test_ties_carry_no_preference(self):
        # Strengths 2, 3, 1, 4 with the first two equally good, then the third, then the last:
        # 2 / (2 + 1 + 4) * 3 / (3 + 1 + 4) * 1 / (1 + 4) * 1
        scores = torch.tensor([[2.0, 3.0, 1.0, 4.0]]).log()
        losses = partial_order_losses(scores, torch.tensor([[5.0, 5.0, 1.0, 0.0]]))
        torch.testing.assert_close(losses, torch.tensor([-math.log(2 / 7 * 3 / 8 / 5)]))
        # All equal: nothing to learn, and no gradient.
        losses = partial_order_losses(scores.requires_grad_(), torch.ones(1, 4))
        (gradient,) = torch.autograd.grad(losses.sum(), scores)
        assert losses.item() == pytest.approx(0, abs=1e-6) and not gradient.any()

    def test_without_ties_it_is_list_mle(self):
        generator = torch.Generator().manual_seed(0)
        scores, preferences = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
        losses = partial_order_losses(scores, preferences, temperature=0.7)
        torch.testing.assert_close(losses.mean(), list_mle_loss(scores, preferences, temperature=0.7))

    def test_margins_are_those_of_bradley_terry_reward_models(self):
        # -log sigmoid(better - worse - margin)
        scores, preferences = torch.tensor([[1.0, 3.0], [1.0, 3.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        losses = partial_order_losses(scores, preferences, margins=torch.tensor([0.5, 0.5]))
        expected = -torch.tensor([2 - 0.5, -2 - 0.5]).sigmoid().log()
        torch.testing.assert_close(losses, expected)
        with pytest.raises(ValueError, match=r"^margins"):
            partial_order_losses(scores, preferences, margins=torch.tensor([-1.0, 0]))

    def test_sets_of_different_size(self):
        scores = torch.tensor([[1.0, 3.0, math.nan], [1.0, 2.0, 3.0]]).requires_grad_()
        preferences = torch.tensor([[1.0, 0.0, math.nan], [0.0, 1.0, 2.0]])
        mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
        losses = partial_order_losses(scores, preferences, mask)
        alone = partial_order_losses(scores[:1, :2], preferences[:1, :2])
        torch.testing.assert_close(losses[:1], alone)
        (gradient,) = torch.autograd.grad(losses.sum(), scores)
        assert gradient.isfinite().all() and gradient[0, 2] == 0
