import math

import pytest
import torch

from common.policy_losses import (
    GUIDANCES,
    negative_entropy,
    reinforce_loss,
    reward_weighted_mle_loss,
    token_weights,
)

LN2 = math.log(2)

# Two sequences of 3 and 2 tokens over a vocabulary of 4. Logits are logarithms of counts that sum to 8.
COUNTS = torch.tensor(
    [
        [[4.0, 2.0, 1.0, 1.0], [1.0, 4.0, 2.0, 1.0], [2.0, 2.0, 2.0, 2.0]],
        [[1.0, 1.0, 2.0, 4.0], [4.0, 2.0, 1.0, 1.0], [5.0, 1.0, 1.0, 1.0]],
    ]
)
LOGITS = COUNTS.log()
# p of these tokens: 1/2, 1/8, 1/4 and 1/8, 1/4: NLL / ln 2 = 1, 3, 2 and 3, 2
TOKENS = torch.tensor([[0, 3, 1], [1, 1, 0]])
REWARDS = torch.tensor([[1.0, 2.0, 5.0], [3.0, 1.0, 7.0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def gradient(value, tensor):
    """Gradient of the value, summed, with respect to the tensor."""
    return torch.autograd.grad(value.sum(), tensor)[0]


def random_batch(sequences=4, tokens=5, vocabulary=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return {
        "logits": torch.randn(sequences, tokens, vocabulary, generator=generator, dtype=dtype),
        "tokens": torch.randint(vocabulary, (sequences, tokens), generator=generator),
        "rewards": torch.rand(sequences, tokens, generator=generator, dtype=dtype) + 0.1,
        "mask": torch.arange(tokens) < torch.tensor([[5], [3], [1], [4]])[:sequences],
    }


LOSSES = {
    "reinforce": lambda logits, tokens, rewards, mask: reinforce_loss(logits, tokens, rewards, mask),
    "negative entropy": lambda logits, tokens, rewards, mask: negative_entropy(logits, mask),
    "weighted MLE": lambda logits, tokens, rewards, mask: reward_weighted_mle_loss(logits, tokens, rewards, mask),
    "weighted MLE, exp": lambda logits, tokens, rewards, mask: reward_weighted_mle_loss(
        logits, tokens, rewards, mask, exponentiate=True
    ),
    "weighted MLE, to go": lambda logits, tokens, rewards, mask: reward_weighted_mle_loss(
        logits, tokens, rewards, mask, guidance="reward-to-go"
    ),
}


class TestTokenWeights:
    def test_reward(self):
        assert token_weights(REWARDS, MASK, "reward").tolist() == [[1, 2, 5], [3, 1, 0]]

    def test_reward_to_go_sums_what_is_still_to_come(self):
        assert token_weights(REWARDS, MASK, "reward-to-go").tolist() == [[8, 7, 5], [4, 1, 0]]

    def test_sequence_is_the_mean_over_real_tokens(self):
        torch.testing.assert_close(
            token_weights(REWARDS, MASK, "sequence"), torch.tensor([[8 / 3, 8 / 3, 8 / 3], [2, 2, 0]])
        )

    def test_left_padding(self):
        mask = torch.tensor([[0, 1, 1]])
        assert token_weights(REWARDS[:1], mask, "reward-to-go").tolist() == [[0, 7, 5]]
        assert token_weights(REWARDS[:1], mask, "sequence").tolist() == [[0, 3.5, 3.5]]

    @pytest.mark.parametrize("guidance", GUIDANCES)
    def test_masked_rewards_have_no_influence(self, guidance):
        expected = token_weights(REWARDS, MASK, guidance)
        for garbage in (math.nan, math.inf, -1e30):
            assert torch.equal(token_weights(REWARDS.masked_fill(MASK == 0, garbage), MASK, guidance), expected)

    @pytest.mark.parametrize("guidance", GUIDANCES)
    def test_no_gradient_reaches_the_rewards(self, guidance):
        rewards = REWARDS.clone().requires_grad_()
        assert not token_weights(rewards, MASK, guidance).requires_grad

    @pytest.mark.parametrize("guidance", GUIDANCES)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_rewards_are_summed_in_float32(self, guidance, dtype):
        rewards = torch.rand(3, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
        weights = token_weights(rewards, torch.ones(3, 500), guidance)
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights, token_weights(rewards.float(), torch.ones(3, 500), guidance))


class TestReinforce:
    def test_hand_computed_value(self):
        # Weights 1, 2, 5 and 3, 1 on 1, 3, 2 and 3, 2: (1 + 6 + 10 + 9 + 2) / 5 tokens = 28/5, in units of ln 2
        torch.testing.assert_close(reinforce_loss(LOGITS, TOKENS, REWARDS, MASK), torch.tensor(28 / 5 * LN2))

    def test_hand_computed_gradient(self):
        # d NLL / d logits = p - onehot, times weight / number of tokens: first token 1/5 * ([4 2 1 1]/8 - [1 0 0 0])
        logits = LOGITS.clone().requires_grad_()
        grad = gradient(reinforce_loss(logits, TOKENS, REWARDS, MASK), logits)
        torch.testing.assert_close(grad[0, 0], torch.tensor([-4.0, 2.0, 1.0, 1.0]) / 8 / 5)
        torch.testing.assert_close(grad[1, 0], torch.tensor([1.0, -7.0, 2.0, 4.0]) / 8 * 3 / 5)
        assert (grad[1, 2] == 0).all()

    def test_weights_may_be_negative_or_zero(self):
        # A baseline can be subtracted: weights -1, 0, 1 and 0, 0: (-1 + 2) / 5
        weights = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 9.0]])
        torch.testing.assert_close(reinforce_loss(LOGITS, TOKENS, weights, MASK), torch.tensor(LN2 / 5))

    def test_no_gradient_reaches_the_weights(self):
        weights = REWARDS.clone().requires_grad_()
        logits = LOGITS.clone().requires_grad_()
        reinforce_loss(logits, TOKENS, weights, MASK).backward()
        assert weights.grad is None


class TestNegativeEntropy:
    def test_hand_computed_value(self):
        # Counts 4 2 1 1 of 8: 1/2 ln 1/2 + 1/4 ln 1/4 + 2/8 ln 1/8 = -7/4 ln 2; four such; uniform: -2 ln 2.
        torch.testing.assert_close(negative_entropy(LOGITS, MASK), torch.tensor(-(4 * 7 / 4 + 2) / 5 * LN2))

    def test_descending_it_flattens_the_distribution(self):
        logits = torch.tensor([[[2.0, 0.0, -1.0]]], requires_grad=True)
        grad = gradient(negative_entropy(logits, torch.ones(1, 1)), logits)
        assert grad[0, 0, 0] > 0
        assert grad[0, 0, 2] < 0

    def test_a_token_that_cannot_be_written_adds_nothing(self):
        logits = torch.tensor([[[0.0, 0.0, -math.inf]]], requires_grad=True)
        value = negative_entropy(logits, torch.ones(1, 1))
        torch.testing.assert_close(value.detach(), torch.tensor(-LN2))
        torch.testing.assert_close(gradient(value, logits), torch.zeros(1, 1, 3))

    def test_a_certain_token_has_no_entropy(self):
        logits = torch.tensor([[[1e4, 0.0, -1e4]]], requires_grad=True)
        value = negative_entropy(logits, torch.ones(1, 1))
        assert value.item() == 0
        assert (gradient(value, logits) == 0).all()


class TestRewardWeightedMLE:
    def test_hand_computed_value(self):
        # Weights 1/8, 2/8, 5/8 and 3/4, 1/4 on 1, 3, 2 and 3, 2: (17/8 + 11/4) / 2 sequences = 39/16
        loss = reward_weighted_mle_loss(LOGITS, TOKENS, REWARDS, MASK)
        torch.testing.assert_close(loss, torch.tensor(39 / 16 * LN2))

    def test_reward_to_go(self):
        # Weights 8/20, 7/20, 5/20 and 4/5, 1/5: (39/20 + 14/5) / 2 = 95/40
        loss = reward_weighted_mle_loss(LOGITS, TOKENS, REWARDS, MASK, guidance="reward-to-go")
        torch.testing.assert_close(loss, torch.tensor(95 / 40 * LN2))

    def test_sequence_guidance_is_plain_maximum_likelihood(self):
        # Weights 1/3 and 1/2: (6/3 + 5/2) / 2 = 9/4
        loss = reward_weighted_mle_loss(LOGITS, TOKENS, REWARDS, MASK, guidance="sequence")
        torch.testing.assert_close(loss, torch.tensor(9 / 4 * LN2))

    @pytest.mark.parametrize("guidance", ["reward", "reward-to-go", "sequence"])
    @pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
    def test_exponentiate_puts_exp_of_the_reward_in_its_place(self, guidance, shift):
        # exp(ln r + shift) is r up to a factor, which cancels in the shares.
        loss = reward_weighted_mle_loss(
            LOGITS.double(), TOKENS, REWARDS.double().log() + shift, MASK, guidance, exponentiate=True
        )
        expected = reward_weighted_mle_loss(LOGITS.double(), TOKENS, REWARDS.double(), MASK, guidance)
        torch.testing.assert_close(loss, expected)

    def test_the_scale_of_the_rewards_does_not_matter(self):
        loss = reward_weighted_mle_loss(LOGITS, TOKENS, REWARDS * torch.tensor([[1e-8], [1e3]]), MASK)
        torch.testing.assert_close(loss, torch.tensor(39 / 16 * LN2))

    def test_a_sequence_of_zero_rewards_gets_equal_weights(self):
        # First sequence 1/3 each: 6/3; second as before: (2 + 11/4) / 2 = 19/8
        rewards = torch.tensor([[0.0, 0.0, 0.0], [3.0, 1.0, 7.0]])
        logits = LOGITS.clone().requires_grad_()
        loss = reward_weighted_mle_loss(logits, TOKENS, rewards, MASK)
        torch.testing.assert_close(loss.detach(), torch.tensor(19 / 8 * LN2))
        assert gradient(loss, logits).isfinite().all()

    def test_no_gradient_reaches_the_rewards(self):
        rewards = REWARDS.clone().requires_grad_()
        logits = LOGITS.clone().requires_grad_()
        reward_weighted_mle_loss(logits, TOKENS, rewards, MASK).backward()
        assert rewards.grad is None

    def test_every_sequence_counts_the_same_whatever_its_length(self):
        batch = random_batch()
        together = reward_weighted_mle_loss(batch["logits"], batch["tokens"], batch["rewards"], batch["mask"])
        alone = [
            reward_weighted_mle_loss(*(batch[name][[n]] for name in ("logits", "tokens", "rewards", "mask")))
            for n in range(4)
        ]
        torch.testing.assert_close(torch.stack(alone).mean(), together)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
    def test_rewards_that_are_no_shares_are_refused(self, value):
        rewards = REWARDS.clone()
        rewards[1, 0] = value
        with pytest.raises(ValueError, match=r"^token_rewards: "):
            reward_weighted_mle_loss(LOGITS, TOKENS, rewards, MASK)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
class TestEveryLoss:
    @pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
    def test_masked_positions_have_no_influence(self, loss, garbage):
        batch = random_batch()
        clean = batch["logits"].clone().requires_grad_()
        expected = loss(clean, batch["tokens"], batch["rewards"], batch["mask"])

        padding = ~batch["mask"]
        dirty = batch["logits"].masked_fill(padding.unsqueeze(-1), garbage).requires_grad_()
        tokens = batch["tokens"].masked_fill(padding, -100)
        rewards = batch["rewards"].masked_fill(padding, garbage)
        value = loss(dirty, tokens, rewards, batch["mask"])
        assert torch.equal(value, expected)

        grad = gradient(value, dirty)
        assert torch.equal(grad, gradient(expected, clean))
        assert (grad[padding] == 0).all()
        assert (grad[batch["mask"]] != 0).any(dim=-1).all()

    def test_padding_on_either_side_changes_nothing(self, loss):
        batch = random_batch()
        padded = {
            name: torch.cat([torch.zeros_like(value[:, :2]), value, torch.zeros_like(value[:, :2])], dim=1)
            for name, value in batch.items()
        }
        torch.testing.assert_close(loss(**padded), loss(**batch))

    def test_the_order_of_sequences_changes_nothing(self, loss):
        batch = random_batch()
        moved = {name: value[[2, 0, 3, 1]] for name, value in batch.items()}
        torch.testing.assert_close(loss(**moved), loss(**batch))

    def test_gradient_agrees_with_finite_differences(self, loss):
        batch = random_batch()
        logits = batch.pop("logits").requires_grad_()
        assert torch.autograd.gradcheck(lambda z: loss(z, **batch), (logits,))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32(self, loss, dtype):
        batch = random_batch(vocabulary=2000, dtype=torch.float32)
        logits = batch["logits"].to(dtype).requires_grad_()
        rewards = batch["rewards"].to(dtype)
        value = loss(logits, batch["tokens"], rewards, batch["mask"])
        expected = loss(logits.detach().float(), batch["tokens"], rewards.float(), batch["mask"])
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected)
        grad = gradient(value, logits)
        assert grad.dtype == dtype
        assert grad.isfinite().all()

    @pytest.mark.parametrize("size", [1e4, 1e30])
    def test_large_logits_stay_finite(self, loss, size):
        batch = random_batch(dtype=torch.float32)
        logits = (size * batch.pop("logits")).requires_grad_()
        value = loss(logits, **batch)
        assert value.isfinite()
        assert gradient(value, logits).isfinite().all()

    @pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.float32])
    def test_masks_may_be_bool_integer_or_float(self, loss, mask_dtype):
        value = loss(LOGITS, TOKENS, REWARDS, MASK.to(mask_dtype))
        assert torch.equal(value, loss(LOGITS, TOKENS, REWARDS, MASK))


FUNCTIONS = (
    (token_weights, {"token_rewards": REWARDS, "mask": MASK, "guidance": "reward"}),
    (reinforce_loss, {"logits": LOGITS, "actions": TOKENS, "weights": REWARDS, "mask": MASK}),
    (negative_entropy, {"logits": LOGITS, "mask": MASK}),
    (reward_weighted_mle_loss, {"logits": LOGITS, "labels": TOKENS, "token_rewards": REWARDS, "mask": MASK}),
)
BAD = (
    ("logits", LOGITS[0]),
    ("logits", LOGITS.long()),
    ("logits", LOGITS[:, :, :0]),
    ("actions", TOKENS[:1]),
    ("actions", TOKENS.float()),
    ("actions", TOKENS + 2),
    ("actions", TOKENS - 1),
    ("labels", TOKENS[:, :2]),
    ("labels", TOKENS == 1),
    ("labels", TOKENS + 2),
    ("labels", torch.full((2, 3), -100)),
    ("weights", REWARDS[0]),
    ("weights", REWARDS[:, :2]),
    ("weights", REWARDS.long()),
    ("token_rewards", REWARDS[0]),
    ("token_rewards", REWARDS.long()),
    ("token_rewards", REWARDS[:0]),
    ("mask", MASK[:1]),
    ("mask", MASK * 3),
    ("mask", torch.tensor([[1, 1, 1], [0, 0, 0]])),
    ("guidance", "rewards"),
)


@pytest.mark.parametrize(
    ("function", "arguments", "name", "value"),
    [
        pytest.param(function, arguments, name, value, id=f"{function.__name__}-{name}-{number}")
        for function, arguments in FUNCTIONS
        for number, (name, value) in enumerate(BAD)
        if name in arguments or (name == "guidance" and function is reward_weighted_mle_loss)
    ],
)
def test_bad_input_is_named(function, arguments, name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        function(**arguments | {name: value})
