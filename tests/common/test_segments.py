import math

import pytest
import torch

from common.segments import (
    LocationNormalizer,
    fit_location_normalizer,
    huber_line,
    next_token_entropies,
    segment_ends,
    segment_locations,
    segment_numbers,
    spread_segments,
)

# The example of the published code: six tokens, the end token last.
ENTROPIES = torch.tensor([[0.1, 3.0, 0.1, 0.1, 0.1, 9.0]])
MASK = torch.ones(1, 6)
END = torch.tensor([[0, 0, 0, 0, 0, 1]])


def places(ends):
    return [row.nonzero().flatten().tolist() for row in ends]


class TestEnds:
    def test_published_example(self):
        assert places(segment_ends("segment", MASK, END, ENTROPIES, 2.0)) == [[1, 4]]
        assert places(segment_ends("segment", MASK, END, ENTROPIES, 0.0)) == [[0, 1, 2, 3, 4]]
        assert places(segment_ends("token", MASK, END)) == [[0, 1, 2, 3, 4]]
        assert places(segment_ends("sequence", MASK, END)) == [[5]]

    def test_the_cut_is_strict_and_a_large_one_leaves_one_segment(self):
        assert places(segment_ends("segment", MASK, END, ENTROPIES, 3.0)) == [[4]]
        assert places(segment_ends("segment", MASK, END, ENTROPIES, 1e9)) == [[4]]

    def test_a_reply_that_was_cut_off_has_no_end_token(self):
        none = torch.zeros(1, 6)
        assert places(segment_ends("segment", MASK, none, ENTROPIES, 2.0)) == [[1, 5]]
        assert places(segment_ends("token", MASK, none)) == [[0, 1, 2, 3, 4, 5]]
        assert places(segment_ends("sequence", MASK, none)) == [[5]]

    @pytest.mark.parametrize("granularity", ["token", "segment", "sequence"])
    def test_nothing_but_an_end_token_is_one_segment(self, granularity):
        mask, end = torch.tensor([[1, 0, 0]]), torch.tensor([[1, 0, 0]])
        assert places(segment_ends(granularity, mask, end, torch.zeros(1, 3), 2.0)) == [[0]]

    def test_each_row_has_its_own_end_and_padding_none(self):
        mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
        end = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1]])
        entropies = torch.tensor([[0.0, 9, 9, 9], [9, 0, 0, 9]])
        assert places(segment_ends("segment", mask, end, entropies, 1.0)) == [[1], [0, 2]]
        assert places(segment_ends("sequence", mask, end)) == [[2], [3]]

    def test_what_is_missing_or_wrong_is_named(self):
        with pytest.raises(ValueError, match=r"^entropies"):
            segment_ends("segment", MASK, END)
        with pytest.raises(ValueError, match=r"^granularity"):
            segment_ends("word", MASK, END)
        with pytest.raises(ValueError, match=r"^mask"):
            segment_ends("token", torch.zeros(1, 6), END)


def test_entropies_in_nats():
    logits = torch.tensor([[0.0, 0, 0, 0], [math.log(3), 0, -math.inf, -math.inf]])
    # ln 4; and 3/4, 1/4: ln 4 - 3/4 ln 3. A token that cannot occur adds nothing.
    found = next_token_entropies(logits.clamp(min=-1e30))
    torch.testing.assert_close(found, torch.tensor([math.log(4), math.log(4) - 0.75 * math.log(3)]))


ENDS = torch.tensor([[0, 1, 0, 0, 1, 0]]).bool()


def test_numbers_and_locations():
    assert segment_numbers(ENDS).tolist() == [[0, 0, 1, 1, 1, -1]]
    assert segment_locations(ENDS).tolist() == [[0, 0.5, 0, 0, 1, 0]]
    bandit = torch.tensor([[0, 0, 1]]).bool()
    assert segment_numbers(bandit).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("how", "expected"),
    [("even", [1.0, 1, -1, -1, -1, 0]), ("repeat", [2.0, 2, -3, -3, -3, 0]), ("last", [0.0, 2, 0, 0, -3, 0])],
)
def test_spreading(how, expected):
    rewards = torch.tensor([[math.nan, 2, 7, 7, -3, 7]])
    assert spread_segments(rewards, ENDS, MASK, how).tolist() == [expected]


class TestNormalizer:
    def test_values_and_floor(self):
        # At p = 1/2: mean 2 ln .5 + 1 = -.3863, deviation ln .5 + 3 = 2.3069; at p = 1 mean 1, deviation 3
        normalizer = LocationNormalizer(2.0, 1.0, 1.0, 3.0, floor=0.5)
        found = normalizer(torch.full((1, 6), 4.0), ENDS)
        torch.testing.assert_close(found, torch.tensor([[0, 4.3863 / 2.3069, 0, 0, 1, 0]]), rtol=1e-4, atol=1e-6)
        # A published deviation, .9906 ln p + 5.4513, is below zero at p = 1/300, which turned the sign.
        steep = LocationNormalizer(0.0, 0.0, 0.9906, 5.4513, floor=0.5)
        found = steep(torch.ones(1, 300), torch.ones(1, 300).bool())
        assert found.min() > 0 and found[0, 0] == 2

    def test_fit_recovers_mean_and_deviation_by_location(self):
        # 40 replies of four segments; rewards are mean +- deviation at each location, both linear in ln p
        ends = torch.ones(40, 4).bool()
        logs = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64).log()
        sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(20)[:, None]
        found = fit_location_normalizer(0.7 * logs + 0.2 + sign * (0.1 * logs + 0.5), ends)
        fitted = (found.mean_slope, found.mean_intercept, found.deviation_slope, found.deviation_intercept)
        assert fitted == pytest.approx((0.7, 0.2, 0.1, 0.5), abs=1e-5)
        assert found.floor > 0

    def test_one_location_gives_one_mean_and_deviation(self):
        found = fit_location_normalizer(torch.tensor([[1.0], [3.0]]), torch.ones(2, 1).bool())
        assert (found.mean_slope, found.mean_intercept) == (0, 2)
        assert (found.deviation_slope, found.deviation_intercept) == (0, 1)
        with pytest.raises(ValueError, match=r"^rewards"):
            fit_location_normalizer(torch.ones(3, 1), torch.ones(3, 1).bool())

    def test_huber_regression_is_hardly_moved_by_an_outlier(self):
        x = [0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        slope, intercept = huber_line(x, [2 * v + 1 for v in x[:-1]] + [100.0])
        assert (slope, intercept) == pytest.approx((2, 1), abs=1e-3)
        assert huber_line([1.0, 1.0], [2.0, 4.0]) == (0, 3)
