"""Win rates, as they are and at equal length."""

import numpy as np
import pytest

from common.reporting.win_rate import length_controlled_win_rate, win_rate_figures


def logit(p):
    return np.log(p / (1 - p))


def test_two_lengths_by_hand():
    # Three quarters of wins where the reply is longer, a quarter where it is shorter: the length is all there is.
    longer = [5, 5, 5, 5, -5, -5, -5, -5]
    assert length_controlled_win_rate([1, 1, 1, 0, 1, 0, 0, 0], longer) == pytest.approx(0.5, abs=1e-4)
    # 0.9 and 0.6: the logits' mean is left, of so many prompts that the penalty is nothing.
    found = length_controlled_win_rate([0.9, 0.6] * 10_000, [7, -7] * 10_000)
    assert found == pytest.approx(1 / (1 + np.exp(-(logit(0.9) + logit(0.6)) / 2)), abs=1e-3)
    assert length_controlled_win_rate([1, 0, 1, 1], [3, 3, 3, 3]) == 0.75
    assert length_controlled_win_rate([1, 0], [4, -4]) == pytest.approx(0.5, abs=1e-6)  # a line separates them


def test_few_prompts_are_not_extrapolated_to_certainty():
    for wins, longer in (([1, 1, 1, 0], [5, 4, 3, 2]), ([1, 1, 0, 0], [4, 3, 2, 1])):
        assert 0.05 < length_controlled_win_rate(wins, longer) < 0.9
    assert 0.8 < length_controlled_win_rate([1] * 8, [1, 2, -1, 3, 0, 2, -2, 1]) < 1


def test_what_is_planted_is_found():
    draw = np.random.default_rng(1)
    longer = draw.normal(15, 20, 20_000)
    chance = 1 / (1 + np.exp(-(-0.4 + 1.5 * np.tanh(longer / longer.std()))))
    wins = (draw.random(20_000) < chance).astype(float)
    assert length_controlled_win_rate(wins, longer) == pytest.approx(1 / (1 + np.exp(0.4)), abs=0.02)
    assert wins.mean() > 0.5  # which the length alone makes of it


def test_figures_and_their_intervals():
    scores, lengths = [2.0, 1.0, 3.0, 0.5] * 20, [10, 12, 14, 16] * 20
    figures = win_rate_figures(scores, [1.0, 1.0, 4.0, 0.0] * 20, lengths, [11, 11, 15, 15] * 20)
    assert figures["win_rate"] == 0.625  # two wins, a tie and a loss
    assert figures["judge_gain"] == 0.125  # 1, 0, -1 and 0.5
    for name in ("judge_gain", "win_rate", "win_rate_length_controlled"):
        assert -1 < figures[f"{name}_low"] < figures[name] < figures[f"{name}_high"] < 1
    assert figures == win_rate_figures(scores, [1.0, 1.0, 4.0, 0.0] * 20, lengths, [11, 11, 15, 15] * 20)


def test_answers_to_one_prompt_are_drawn_together():
    scores, lengths = [1.0, 0.0, 2.0, 0.0], [10, 12, 11, 9]
    alone = win_rate_figures(scores, [0.0] * 4, lengths, [10] * 4)
    # As many answers again to each prompt, all the same: nothing is known better for that.
    thrice = win_rate_figures(scores * 3, [0.0] * 12, lengths * 3, [10] * 12, list("abcd") * 3)
    for name in ("judge_gain", "win_rate"):
        for part in ("", "_low", "_high"):
            assert thrice[f"{name}{part}"] == pytest.approx(alone[f"{name}{part}"])
    one = win_rate_figures(scores, [0.0] * 4, lengths, [10] * 4, ["a"] * 4)
    assert one["judge_gain_low"] == one["judge_gain"] == one["judge_gain_high"] == 0.75


@pytest.mark.parametrize(("preferences", "longer"), [([], []), ([1.5], [0]), ([0.5, 0.5], [1])])
def test_wrong_values_name_the_argument(preferences, longer):
    with pytest.raises(ValueError, match=r"preferences|longer_by"):
        length_controlled_win_rate(preferences, longer)
