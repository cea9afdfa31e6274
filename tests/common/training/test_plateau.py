import json
import math

import pytest
import torch
from torch import nn

from common.training.plateau import Plateau, PlateauSettings, trainable_weights


class Model(nn.Module):
    """A frozen part and a trained one, whose one weight says when it was kept."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.trained = nn.Linear(1, 1, bias=False)

    def set(self, value):
        with torch.no_grad():
            self.trained.weight.fill_(value)

    @property
    def value(self):
        return self.trained.weight.item()


def plateau(rate=1.0, **settings):
    model = Model()
    return Plateau(PlateauSettings(**settings), torch.optim.Adam(model.trained.parameters(), lr=rate), model)


@pytest.mark.parametrize(
    ("best", "value", "higher", "gain"),
    [
        (-50.0, -49.0, True, True),
        (-50.0, -51.0, True, False),
        (-50.0, -50.004, True, False),  # what value > best * (1 + 1e-4) would call a gain
        (-50.0, -49.996, True, False),  # less than 1e-4 of it
        (-50.0, -49.99, True, True),
        (50.0, 50.004, True, False),
        (50.0, 50.006, True, True),
        (2.0, 1.9, False, True),
        (2.0, 2.1, False, False),
        (2.0, 1.9999, False, False),
        (-2.0, -2.1, False, True),
        (0.0, 1e-9, True, True),
        (0.0, -1e-9, True, False),
    ],
)
def test_a_gain_is_relative_to_the_size_of_the_best_figure(best, value, higher, gain):
    one = plateau(higher_is_better=higher)
    one.update(best, 1)
    assert one.is_gain(value) == gain


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("higher", [True, False])
def test_a_figure_that_is_not_finite_is_no_gain_not_even_the_first(value, higher):
    one = plateau(higher_is_better=higher)
    assert not one.update(value, 1)
    assert one.best is None
    assert one.update(3.0, 2)
    assert not one.update(value, 3)
    assert one.best == 3.0


def test_the_first_figure_is_a_gain():
    one = plateau(higher_is_better=True)
    assert one.update(-1e9, 5)
    assert (one.best, one.best_step) == (-1e9, 5)


def test_training_stops_after_so_many_validations_in_a_row_without_a_gain():
    one = plateau(stop_after=3)
    assert one.countdown == 3
    for value, countdown in ((5.0, 3), (6.0, 2), (6.0, 1), (4.0, 3), (4.0, 2), (4.0, 1), (4.0, 0)):
        assert not one.should_stop
        one.update(value, 0)
        assert one.countdown == countdown
    assert one.should_stop


def test_the_rate_falls_after_more_than_patience_validations_without_a_gain():
    one = plateau(rate=1.0, factor=0.5, patience=2, stop_after=100)
    rates = []
    for value in (5, 6, 6, 6, 6, 6, 6, 4, 6, 6, 6):
        one.update(float(value), 0)
        rates.append(one.learning_rate)
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125]


def test_it_is_the_schedule_of_torch_for_figures_above_zero():
    values = [5, 4, 4.5, 4.2, 4.1, 3.9999, 3, 3, 3, 3, 3, 3, 3, 2.5, 2.6]
    one = plateau(rate=1.0, factor=0.8, patience=2, stop_after=100)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.8, patience=2, threshold=1e-4, min_lr=1e-6)
    for step, value in enumerate(values):
        one.update(float(value), step)
        theirs.step(float(value))
        assert one.learning_rate == pytest.approx(optimizer.param_groups[0]["lr"])


def test_the_rate_never_falls_below_the_floor_nor_rises_to_it():
    one = plateau(rate=2e-6, factor=0.1, patience=0)
    for _ in range(4):
        one.update(1.0, 0)
    assert one.learning_rate == 1e-6
    low = plateau(rate=1e-8, factor=0.1, patience=0)
    for _ in range(4):
        low.update(1.0, 0)
    assert low.learning_rate == 1e-8


def test_the_best_weights_are_kept_and_restored():
    one = plateau(higher_is_better=True)
    for step, score in enumerate((1.0, 3.0, 2.0)):
        one.model.set(step)
        one.update(score, step)
    one.model.set(99)
    assert one.restore_best()
    assert one.model.value == 1
    assert one.best_step == 1


def test_only_weights_that_training_changes_are_kept():
    one = plateau()
    one.update(1.0, 0)
    assert set(one.best_weights) == set(trainable_weights(one.model)) == {"trained.weight"}


def test_without_any_validation_the_last_weights_stay():
    one = plateau()
    one.model.set(7)
    assert not one.restore_best()
    assert one.model.value == 7


def test_its_state_survives_a_checkpoint():
    one = plateau(higher_is_better=True, stop_after=5)
    one.model.set(1)
    one.update(-3.0, 10)
    one.update(-4.0, 20)
    tensors, numbers = one.state()
    other = plateau(higher_is_better=True, stop_after=5)
    other.load_state({k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(numbers)))
    assert (other.best, other.best_step, other.countdown, other.since_reduction) == (-3.0, 10, 4, 1)
    assert other.restore_best()
    assert other.model.value == 1


def test_a_state_from_before_the_first_validation_has_no_weights():
    other = plateau()
    other.load_state(*plateau().state())
    assert not other.restore_best()
