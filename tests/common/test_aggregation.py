import math

import pytest
import torch

from common.aggregation import AGGREGATIONS, aggregate_token_rewards

# One set of two sequences with 3 and 2 real tokens: C = 2.5. Rewards are logarithms, so that log-sum-exps are
# logarithms of small sums.
REWARDS = torch.tensor([[[1.0, 2.0, 5.0], [4.0, 4.0, 1.0]]]).log()
MASK = torch.tensor([[[1, 1, 1], [1, 1, 0]]])
SOFT = 0.75 * math.log(3)  # of three equal rewards at temperature 0.25, C = 3
SMOOTH = ("sum", "avg", "max", "min", "mean")  # every token of a sequence has a gradient, which another need not give


def random_sets(batch=4, sequences=5, tokens=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(batch, sequences, tokens, generator=generator, dtype=dtype)
    lengths = torch.randint(1, tokens + 1, (batch, sequences, 1), generator=generator)
    return rewards, torch.arange(tokens) < lengths


class TestValues:
    def test_sum(self):
        # ln 1 + ln 2 + ln 5 = ln 10; ln 4 + ln 4 = ln 16
        scores = aggregate_token_rewards(REWARDS, MASK, "sum")
        torch.testing.assert_close(scores, torch.tensor([[math.log(10), math.log(16)]]))

    def test_avg_is_the_mean_times_the_mean_length_of_the_set(self):
        scores = aggregate_token_rewards(REWARDS, MASK, "avg")
        torch.testing.assert_close(scores, torch.tensor([[2.5 * math.log(10) / 3, 2.5 * math.log(16) / 2]]))

    def test_soft_max(self):
        # beta 1: 2.5 * ln(1 + 2 + 5) and 2.5 * ln(4 + 4)
        scores = aggregate_token_rewards(REWARDS, MASK, "max", temperature=1.0)
        torch.testing.assert_close(scores, torch.tensor([[2.5 * math.log(8), 2.5 * math.log(8)]]))

    def test_soft_min(self):
        # beta 1: -2.5 * ln(1/1 + 1/2 + 1/5) and -2.5 * ln(1/4 + 1/4) = 2.5 * ln 2
        scores = aggregate_token_rewards(REWARDS, MASK, "min", temperature=1.0)
        torch.testing.assert_close(scores, torch.tensor([[-2.5 * math.log(1.7), 2.5 * math.log(2)]]))

    def test_mean_counts_each_the_same(self):
        scores = aggregate_token_rewards(REWARDS, MASK, "mean")
        torch.testing.assert_close(scores, torch.tensor([[math.log(10) / 3, math.log(16) / 2]]))

    @pytest.mark.parametrize("method", ["max", "min"])
    def test_default_temperature_is_two(self, method):
        # Rewards and temperature doubled: C * 2 * log sum exp(2 r / 2), twice the scores at temperature 1.
        doubled = aggregate_token_rewards(2 * REWARDS, MASK, method)
        torch.testing.assert_close(doubled, 2 * aggregate_token_rewards(REWARDS, MASK, method, temperature=1.0))

    def test_a_low_temperature_approaches_the_hard_maximum_and_minimum(self):
        rewards = torch.tensor([[[0.1, 0.9], [0.5, 0.4]]])
        mask = torch.ones(1, 2, 2)  # C = 2
        largest = aggregate_token_rewards(rewards, mask, "max", temperature=1e-3)
        smallest = aggregate_token_rewards(rewards, mask, "min", temperature=1e-3)
        torch.testing.assert_close(largest, torch.tensor([[1.8, 1.0]]))
        torch.testing.assert_close(smallest, torch.tensor([[0.2, 0.8]]))

    @pytest.mark.parametrize(
        ("method", "expected"),
        [("sum", 1.5), ("avg", 1.5), ("max", 1.5 + SOFT), ("min", 1.5 - SOFT), ("mean", 0.5)],
    )
    def test_equal_lengths_and_equal_rewards(self, method, expected):
        # All 3 tokens worth 0.5, C = 3: 1.5, 1.5, 3 (0.5 + beta ln 3), 3 (0.5 - beta ln 3)
        scores = aggregate_token_rewards(torch.full((1, 2, 3), 0.5), torch.ones(1, 2, 3), method, temperature=0.25)
        torch.testing.assert_close(scores, torch.full((1, 2), expected))

    @pytest.mark.parametrize("method", AGGREGATIONS)
    def test_large_rewards_stay_finite(self, method):
        scores = aggregate_token_rewards(REWARDS * 1e6, MASK, method)
        assert scores.isfinite().all()


@pytest.mark.parametrize("method", AGGREGATIONS)
class TestInvariance:
    @pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
    def test_masked_positions_have_no_influence(self, method, garbage):
        rewards, mask = random_sets()
        clean = rewards.clone().requires_grad_()
        dirty = rewards.masked_fill(~mask, garbage).requires_grad_()
        expected = aggregate_token_rewards(clean, mask, method)
        scores = aggregate_token_rewards(dirty, mask, method)
        assert torch.equal(scores, expected)

        expected.square().sum().backward()
        scores.square().sum().backward()
        assert torch.equal(dirty.grad, clean.grad)
        assert (dirty.grad[~mask] == 0).all()
        if method in SMOOTH:
            assert (dirty.grad[mask] != 0).all()

    def test_padding_on_either_side_changes_nothing(self, method):
        rewards, mask = random_sets()
        columns = torch.full((4, 5, 2), math.nan, dtype=rewards.dtype)
        padded = aggregate_token_rewards(
            torch.cat([columns, rewards, columns], -1),
            torch.cat([columns.isfinite(), mask, columns.isfinite()], -1),
            method,
        )
        torch.testing.assert_close(padded, aggregate_token_rewards(rewards, mask, method))

    def test_order_of_sets_and_sequences_is_carried_through(self, method):
        rewards, mask = random_sets()
        sets, sequences = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
        moved = aggregate_token_rewards(rewards[sets][:, sequences], mask[sets][:, sequences], method)
        torch.testing.assert_close(moved, aggregate_token_rewards(rewards, mask, method)[sets][:, sequences])

    def test_sets_do_not_mix(self, method):
        rewards, mask = random_sets()
        together = aggregate_token_rewards(rewards, mask, method)
        alone = torch.cat([aggregate_token_rewards(rewards[[b]], mask[[b]], method) for b in range(4)])
        torch.testing.assert_close(alone, together)

    def test_gradient_agrees_with_finite_differences(self, method):
        rewards, mask = random_sets(batch=2, sequences=3, tokens=4)
        rewards.requires_grad_()
        assert torch.autograd.gradcheck(lambda r: aggregate_token_rewards(r, mask, method, 0.5), (rewards,))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_rewards_are_aggregated_in_float32(self, method, dtype):
        rewards, mask = random_sets(tokens=300, dtype=torch.float32)
        half = rewards.to(dtype).requires_grad_()
        scores = aggregate_token_rewards(half, mask, method)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, aggregate_token_rewards(half.detach().float(), mask, method))
        scores.sum().backward()
        assert half.grad.dtype == dtype
        assert half.grad.isfinite().all()

    @pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
    def test_masks_may_be_bool_integer_or_float(self, method, mask_dtype):
        scores = aggregate_token_rewards(REWARDS, MASK.to(mask_dtype), method)
        assert torch.equal(scores, aggregate_token_rewards(REWARDS, MASK, method))


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "argument"),
        [
            ({"token_rewards": REWARDS[0]}, "token_rewards"),
            ({"token_rewards": REWARDS.long()}, "token_rewards"),
            ({"token_rewards": REWARDS[:, :0], "mask": MASK[:, :0]}, "token_rewards"),
            ({"mask": MASK[0]}, "mask"),
            ({"mask": 2 * MASK}, "mask"),
            ({"mask": MASK.float().masked_fill(MASK == 0, math.nan)}, "mask"),
            ({"mask": torch.tensor([[[1, 1, 1], [0, 0, 0]]])}, "mask"),
            ({"method": "median"}, "method"),
            ({"temperature": 0.0}, "temperature"),
            ({"temperature": math.nan}, "temperature"),
        ],
    )
    def test_bad_input_is_named(self, changes, argument):
        arguments = {"token_rewards": REWARDS, "mask": MASK, "method": "max"} | changes
        with pytest.raises(ValueError, match=f"^{argument}: "):
            aggregate_token_rewards(**arguments)
