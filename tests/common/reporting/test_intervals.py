import math

import pytest
import torch

from common.reporting.intervals import Answers, interval_figures, interval_results, wilson


def test_wilson_intervals_are_those_of_the_books():
    # Newcombe, Stat. Med. 17 (1998), table I: 81/263, 15/148, 0/20, 1/29.
    for right, asked, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                                    (1, 29, 0.0061, 0.1718)]:  # fmt: skip
        assert wilson(right / asked, asked) == pytest.approx((low, high), abs=5e-5)
    assert all(math.isnan(end) for end in wilson(0.5, 0) + wilson(math.nan, 10))


def test_independent_answers_are_worth_their_number_and_repeated_ones_the_number_of_units():
    single = Answers.of([1] * 8 + [0] * 2, [1] * 10)
    assert (single.share, single.effective) == (pytest.approx(0.8), pytest.approx(10))
    assert single.interval == pytest.approx(wilson(0.8, 10))
    repeated = Answers.of([7] * 8 + [0] * 2, [7] * 10)  # each unit says the same seven times
    assert (repeated.share, repeated.effective) == (pytest.approx(0.8), pytest.approx(10))
    assert repeated.asked == 70


def test_parts_add_up_and_units_without_an_answer_are_none():
    right, asked = [3.0, 1.5, 0.0, 2.0, 0.0], [3.0, 3.0, 2.0, 2.0, 0.0]
    whole, parts = Answers.of(right, asked), Answers.of(right[:2], asked[:2]) + Answers.of(right[2:], asked[2:])
    assert whole == parts and whole.units == 4
    assert Answers().effective == 0 and math.isnan(Answers().share) and math.isnan(Answers().interval[0])


def test_where_all_are_right_every_unit_is_one_answer():
    assert Answers.of([10.0] * 6, [10.0] * 6).effective == 6
    assert Answers.of([4.0] * 5, [4.0] * 5, units_of_an_answer=2).effective == 2.5  # five prompts, ten pairs


@pytest.mark.parametrize("pairs_of_items", [False, True])
def test_the_interval_holds_the_truth_nineteen_times_in_twenty(pairs_of_items):
    """Noisy scores rank 5 sequences in each of 40 sets, or all pairs of 16 prompts are compared."""
    generator = torch.Generator().manual_seed(0)
    draws, shape = 600, ((40, 5) if not pairs_of_items else (1, 16))
    preferences = torch.randn(draws, *shape, generator=generator, dtype=torch.float64)
    scores = preferences + 2 * torch.randn(draws, *shape, generator=generator, dtype=torch.float64)
    better = preferences.unsqueeze(-1) > preferences.unsqueeze(-2)
    right = better & (scores.unsqueeze(-1) > scores.unsqueeze(-2))
    truth = 0.5 + math.asin(1 / math.sqrt(5)) / math.pi  # of normal pairs with this correlation
    held = 0
    for r, b in zip(right.double(), better.double(), strict=True):
        if pairs_of_items:
            found = Answers.of((r.sum(-1) + r.sum(-2))[0].tolist(), (b.sum(-1) + b.sum(-2))[0].tolist(), 2)
        else:
            found = Answers.of(r.sum((-2, -1)).tolist(), b.sum((-2, -1)).tolist())
        low, high = found.interval
        held += low <= truth <= high
    assert 0.92 <= held / draws <= 0.98


def test_figures_of_a_log_line_become_those_of_the_results():
    figures = interval_figures("reward/dev_rank", Answers.of([1] * 8 + [0] * 2, [1] * 10))
    assert interval_results(figures, "rank") == {
        "reward_rank_pairs": 10,
        "reward_rank_interval": pytest.approx([0.4902, 0.9433], abs=5e-5),
    }
    nothing = {"reward_rank_pairs": 0.0, "reward_rank_interval": None}
    assert interval_results(interval_figures("reward/dev_rank", Answers()), "rank") == nothing
    assert interval_results({}, "swap") == {"reward_swap_pairs": None, "reward_swap_interval": None}
