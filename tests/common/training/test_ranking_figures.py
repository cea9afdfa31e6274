"""Figures of reward learning, added up over batches."""

import math

import pytest
import torch

from common.grounding_loss import kendall_tau, rank_accuracy
from common.training.ranking_figures import RankingFigures


def figures_of(scores, lengths):
    """Figures of ranking sets with these scores (B, K), made by `avg` of equal rewards within each summary."""
    lengths, scores = torch.tensor(lengths), torch.tensor(scores)
    mask = torch.arange(int(lengths.max())) < lengths.flatten().unsqueeze(-1)
    means = scores / lengths.float().mean(-1, keepdim=True)
    rewards = means.flatten().unsqueeze(-1).expand(mask.shape)
    return RankingFigures.of(torch.tensor(1.0), scores, rewards, mask, scores.double(), "softplus")


def test_length_correlation_is_that_within_sets():
    # Mean rewards 0.5, 0.52, 0.5 in a set of 3 tokens on average and 0.5, 0.52, 0.5015 in one of 30: `avg` multiplies
    # by these, so that over all six summaries the scores are lengths.
    lengths = [[2, 3, 4], [29, 30, 31]]
    scores = [[1.5, 1.56, 1.5], [15.0, 15.6, 15.045]]
    assert torch.corrcoef(torch.tensor([scores, lengths]).flatten(1))[0, 1] > 0.995
    # Products of the deviations: 0.02 - 0.02 and 0.215 - 0.17; squares: 0.0024 + 0.22335 and 2 + 2.
    expected = 0.045 / math.sqrt(0.22575 * 4)
    assert figures_of(scores, lengths).means()["reward/length_correlation"] == pytest.approx(expected, rel=1e-3)
    # A batch of each set adds up to the same.
    both = figures_of(scores[:1], lengths[:1]) + figures_of(scores[1:], lengths[1:])
    assert both.means()["reward/length_correlation"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("scores", "lengths"), [([[0.1, 0.1, 0.1]], [[2, 3, 4]]), ([[0.1, 0.2, 0.3]], [[3, 3, 3]])])
def test_length_correlation_is_undefined_where_one_is_constant_within_sets(scores, lengths):
    assert math.isnan(figures_of(scores, lengths).means()["reward/length_correlation"])


def test_sequences_may_stand_in_several_sets_and_sums_are_divided_at_the_end():
    torch.manual_seed(0)
    rewards, preferences = torch.rand(5, 3), torch.randint(0, 4, (5,)).double()
    sets = torch.tensor([[0, 1, 2], [2, 4, 0]])
    scores = rewards.sum(-1)[sets]
    mask = torch.ones(5, 3, dtype=torch.bool)
    one = RankingFigures.of(torch.tensor(2.0), scores, rewards, mask, preferences[sets], "sigmoid")
    found = (one + one).means()
    expected = {
        "reward/loss": 2.0,
        "reward/rank_accuracy": rank_accuracy(scores, preferences[sets]).item(),
        "reward/kendall_tau": kendall_tau(scores, preferences[sets]).nanmean().item(),
        "reward/token_mean": rewards.mean().item(),
        "reward/token_std": rewards.std(correction=0).item(),
        "reward/preference": preferences[sets].mean().item(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert math.isnan(found["reward/length_correlation"])


def test_what_is_undefined_in_one_batch_does_not_count():
    equal = RankingFigures.of(
        torch.tensor(0.0), torch.tensor([[1.0, 2.0]]), torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool),
        torch.tensor([[3.0, 3.0]]), "softplus",
    )  # fmt: skip
    assert math.isnan(equal.means()["reward/rank_accuracy"]) and math.isnan(equal.means()["reward/kendall_tau"])
    ordered = RankingFigures(sets=1, pairs=4, ordered=3, tau=0.5, tau_sets=1)
    both = (equal + ordered).means()
    assert (both["reward/rank_accuracy"], both["reward/kendall_tau"]) == (0.75, 0.5)
