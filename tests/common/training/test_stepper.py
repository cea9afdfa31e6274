"""Optimizer steps: what is left out, counted, said, and when the run stops. Overflows are made, on the CPU."""

import json
import logging
import math
from typing import Any

import pytest
import torch

from common.errors import UserError
from common.training.engine import start_engine
from common.training.stepper import MOST_SKIPPED_IN_A_ROW, Stepper
from tests.engines import scaled


class Weight:
    """One weight at 1.0, a stepper for it, and steps with a given gradient."""

    def __init__(self, engine=None, clip_norm=None):
        self.value = torch.nn.Parameter(torch.ones(()))
        optimizer = torch.optim.SGD([self.value], lr=0.1)
        self.stepper: Any = Stepper("reward", clip_norm, engine or start_engine("cpu"), optimizer)

    def step(self, slope):
        self.stepper.backward(self.value * slope)
        return self.stepper.step()[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_left_out_counted_and_said_once(bad, caplog):
    weight = Weight()
    for slope in (1.0, bad, bad, 2.0):
        weight.step(slope)
    assert weight.value.item() == pytest.approx(0.7)
    assert weight.stepper.skipped == 2
    assert [record.message for record in caplog.records] == [
        "reward learning: the gradient is not finite; the step is left out"
    ]


def test_many_in_a_row_stop_the_run_with_one_line():
    weight = Weight(clip_norm=1.0)
    for slope in [math.nan] * (MOST_SKIPPED_IN_A_ROW - 1) + [1.0] + [math.nan] * (MOST_SKIPPED_IN_A_ROW - 1):
        weight.step(slope)
    with pytest.raises(UserError, match="not finite for 10 steps in a row; a lower rew_learning_rate") as error:
        weight.step(math.nan)
    assert "\n" not in str(error.value)
    assert weight.value.item() == pytest.approx(0.9)


def test_the_norm_is_that_before_clipping_and_scaling():
    for make in (lambda: start_engine("cpu"), scaled):
        weight = Weight(make(), clip_norm=0.5)
        assert weight.step(4.0) == pytest.approx(4.0)
        assert weight.value.item() == pytest.approx(0.95)


def test_the_loss_scale_is_searched_without_an_alarm(caplog):
    weight = Weight(scaled())
    start = weight.stepper.engine.accelerator.scaler.get_scale()
    for _ in range(3):
        weight.step(torch.finfo(torch.float32).max / start * 7)  # fits once the scale has been halved three times
    assert weight.stepper.skipped == 3
    assert weight.stepper.engine.accelerator.scaler.get_scale() == start / 8
    weight.step(1.0)
    assert weight.value.item() == pytest.approx(0.9)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_gradient_that_is_nan_at_any_scale_stops_the_run():
    weight = Weight(scaled())
    halvings = int(math.log2(weight.stepper.engine.accelerator.scaler.get_scale()))
    for _ in range(halvings + MOST_SKIPPED_IN_A_ROW - 1):
        weight.step(math.nan)
    with pytest.raises(UserError, match="in a row"):
        weight.step(math.nan)


def test_going_on_from_a_checkpoint_is_exact():
    slopes = [1.0, math.inf, 0.5, math.nan, 0.25, 3e38, 0.125]
    whole, first, second = Weight(scaled()), Weight(scaled()), Weight(scaled())
    for slope in slopes:
        whole.step(slope)
    for slope in slopes[:4]:
        first.step(slope)
    second.value.data.copy_(first.value.data)
    second.stepper.load_state(json.loads(json.dumps(first.stepper.state())))
    for slope in slopes[4:]:
        second.step(slope)
    assert torch.equal(second.value, whole.value)
    assert second.stepper.state() == whole.stepper.state()
    assert second.stepper.skipped == 3
