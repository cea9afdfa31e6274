"""Planted token values are recovered from rankings of sequences alone.

Sequences of 2 to 8 tokens over a vocabulary of 12 are ranked by the sum, mean, maximum or minimum of values planted
in the tokens. The learner sees the order of five sequences at a time, never a value, a score or which of the four
it was.
"""

import pytest
import torch
from scipy.stats import spearmanr
from transformers import GPT2Config

from common.aggregation import aggregate_token_rewards
from common.grounding_loss import list_mle_loss, rank_accuracy
from common.token_reward_model import TokenRewardConfig, TokenRewardModel, bound_rewards

VOCABULARY = 12
SEQUENCES = 5
MAX_LENGTH = 8
# Small against the range of the values, 1.2: the method's soft maximum is then close to the hard one.
DIFFERENT = ("sum", "avg", "max", "min")  # mean puts the sequences of a set in the order of avg
TEMPERATURE = 0.1


def plant_values(generator):
    """A value for each token, within the range that rewards can take."""
    return 0.05 + 1.2 * torch.rand(VOCABULARY, generator=generator)


def draw_sets(generator, sets):
    """Token ids and mask, (B, K, T) each; lengths vary, so that sum and mean order sequences differently."""
    ids = torch.randint(VOCABULARY, (sets, SEQUENCES, MAX_LENGTH), generator=generator)
    lengths = torch.randint(2, MAX_LENGTH + 1, (sets, SEQUENCES, 1), generator=generator)
    return ids, torch.arange(MAX_LENGTH) < lengths


def true_scores(values, ids, mask, truth):
    token_values = values[ids]
    if truth == "sum":
        return (token_values * mask).sum(-1)
    if truth == "avg":
        return (token_values * mask).sum(-1) / mask.sum(-1)
    if truth == "max":
        return token_values.masked_fill(~mask, -torch.inf).amax(-1)
    return token_values.masked_fill(~mask, torch.inf).amin(-1)


def fit_token_rewards(ids, mask, preferences, method, generator, steps=200):
    """One free reward a token, (V,), fitted to the rankings."""
    raw = torch.zeros(VOCABULARY, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for _ in range(steps):
        scores = aggregate_token_rewards(bound_rewards(raw, "softplus")[ids], mask, method, TEMPERATURE)
        optimizer.zero_grad()
        list_mle_loss(scores, preferences, generator=generator).backward()
        optimizer.step()
    return bound_rewards(raw.detach(), "softplus")


def correlation(first, second):
    return float(spearmanr(first.flatten(), second.flatten())[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_behind_a_sum_are_recovered(seed):
    generator = torch.Generator().manual_seed(seed)
    values = plant_values(generator)
    ids, mask = draw_sets(generator, 256)
    rewards = fit_token_rewards(ids, mask, true_scores(values, ids, mask, "sum"), "sum", generator)
    assert correlation(rewards, values) >= 0.9

    ids, mask = draw_sets(generator, 400)
    scores = aggregate_token_rewards(rewards[ids], mask, "sum")
    assert correlation(scores, true_scores(values, ids, mask, "sum")) >= 0.9


@pytest.mark.parametrize("truth", DIFFERENT)
def test_the_right_aggregation_beats_the_wrong_ones(truth):
    generator = torch.Generator().manual_seed(0)
    values = plant_values(generator)
    ids, mask = draw_sets(generator, 256)
    held_out_ids, held_out_mask = draw_sets(generator, 400)
    preferences = true_scores(values, ids, mask, truth)
    held_out_preferences = true_scores(values, held_out_ids, held_out_mask, truth)

    accuracies = {}
    for method in DIFFERENT:
        rewards = fit_token_rewards(ids, mask, preferences, method, generator)
        scores = aggregate_token_rewards(rewards[held_out_ids], held_out_mask, method, TEMPERATURE)
        accuracies[method] = rank_accuracy(scores, held_out_preferences).item()

    right = accuracies.pop(truth)
    assert right >= 0.85
    assert right > max(accuracies.values()) + 0.01, (right, accuracies)


@pytest.mark.parametrize("head_init_gain", [1e-4, 1.0])
def test_a_transformer_recovers_them_too(head_init_gain):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    values = plant_values(generator)
    backbone = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=MAX_LENGTH,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = TokenRewardModel(
        TokenRewardConfig(backbone=backbone.to_dict(), head_hidden_size=64, head_init_gain=head_init_gain)
    ).eval()

    def rewards_of(ids, mask):
        return model(ids.flatten(0, 1), mask.flatten(0, 1)).view(mask.shape)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        ids, mask = draw_sets(generator, 32)
        scores = aggregate_token_rewards(rewards_of(ids, mask), mask, "sum")
        optimizer.zero_grad()
        list_mle_loss(scores, true_scores(values, ids, mask, "sum"), generator=generator).backward()
        optimizer.step()

    with torch.no_grad():
        ids, mask = draw_sets(generator, 400)
        rewards = rewards_of(ids, mask)
    assert correlation(rewards.sum(-1), true_scores(values, ids, mask, "sum")) >= 0.9
    # Within a sequence a transformer may credit a neighbour for a token, so tokens agree less well than sums.
    assert correlation(rewards[mask], values[ids][mask]) >= 0.7
