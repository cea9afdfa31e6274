"""Figures of rankings, by hand."""

import math

import numpy as np
import pytest

from chat_task.evaluation import (
    MISSING,
    by_length_difference,
    by_set_size,
    calibration,
    most_wrong,
    pairs_of,
    ranking_figures,
)

NONE = [MISSING] * 7
# Score, preference, tokens, rewards read, their sum and sum of squares, saturated ones.
# Set 0: right order, but for a tie of the scores; the better is longer, then the two last are as long.
# Set 1: wrong order; the better is shorter.
TABLE = np.array(
    [
        [[2.0, 2, 10, 2, 4.0, 10.0, 1], [1, 1, 5, 1, 1, 1, 0], [1, 0, 5, 1, 1, 1, 0]],
        [[0.0, 1, 5, 1, 0.0, 0.0, 1], [3, 0, 10, 1, 3, 9, 0], NONE],
    ]
)


def test_pairs_and_figures():
    assert sorted(pairs_of(TABLE).margins.tolist()) == [-3, 0, 1, 1]
    figures = ranking_figures(TABLE)
    assert figures["rank_accuracy"] == (1 + 1 + 0.5 + 0) / 4
    assert figures["longer_accuracy"] == (1 + 1 + 0.5 + 0) / 4
    # tau-b: set 0 has 2 concordant pairs of 3 by preference and 2 by score, set 1 is reversed
    assert figures["kendall_tau"] == pytest.approx((2 / math.sqrt(6) - 1) / 2)
    # read: 6 rewards, sum 9, squares 21, 2 saturated
    assert figures["token_mean"] == 1.5 and figures["saturation_share"] == pytest.approx(2 / 6)
    assert figures["token_std"] == pytest.approx(math.sqrt(21 / 6 - 1.5**2))
    # Within sets scores go with length: (2/3, -1/3, -1/3) with (10/3, -5/3, -5/3), (-1.5, 1.5) with (-2.5, 2.5)
    score, length = np.array([2 / 3, -1 / 3, -1 / 3, -1.5, 1.5]), np.array([10 / 3, -5 / 3, -5 / 3, -2.5, 2.5])
    assert figures["length_correlation"] == pytest.approx(np.corrcoef(score, length)[0, 1])


def test_by_size_and_by_length():
    assert [(row["replies"], row["sets"], row["rank_accuracy"]) for row in by_set_size(TABLE)] == [
        (2, 1, 0.0),
        (3, 1, pytest.approx(2.5 / 3)),
    ]
    rows = {row["pairs"]: (row["n"], row["accuracy"], row["length alone"]) for row in by_length_difference(TABLE, True)}
    assert rows["all pairs"] == (4, 0.625, 0.625)
    assert rows["better one longer"] == (2, 1, 1)
    assert rows["similar length"] == (1, 0.5, 0.5)
    assert rows["better one shorter"] == (1, 0, 0)
    assert by_length_difference(TABLE, False)[0]["length alone"] == 0.375


def test_calibration():
    # sigmoid(0) = .5, right by half; sigmoid(1) = .73 twice, right; sigmoid(3) = .95, wrong
    rows, error = calibration(TABLE)
    assert [(row["probability"], row["n"], row["right"]) for row in rows] == [
        ("0.5 to 0.6", 1, 0.5),
        ("0.7 to 0.8", 2, 1.0),
        ("0.9 to 1.0", 1, 0.0),
    ]
    one, three = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))
    assert error == pytest.approx(0.5 * (1 - one) + 0.25 * three)


def test_most_wrong_first_and_nothing_to_judge_last():
    tied = TABLE[1:].copy()
    tied[0, :2, 1] = 0
    assert most_wrong(np.concatenate([tied, TABLE])) == [2, 1, 0]
    assert math.isnan(ranking_figures(tied)["rank_accuracy"])
