import os
import signal

import pytest

from common.errors import Interrupted
from common.training.checkpoint import StateTree, save_checkpoint
from common.training.interruption import Checkpointer, StopRequest, telling_how_to_go_on


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_outside_of_training_ends_at_once():
    with pytest.raises(Interrupted) as caught, StopRequest():
        send()
    assert caught.value.exit_code == 143


def test_a_signal_in_training_waits_for_the_step_and_its_checkpoint():
    written: list[int] = []
    with pytest.raises(Interrupted) as caught, StopRequest() as stop, stop.after_steps():
        send(signal.SIGINT)
        Checkpointer(written.append, stop=stop).after_step(7)
    assert written == [7]
    assert caught.value.exit_code == 130


def test_a_signal_after_the_last_step_is_not_lost():
    with pytest.raises(Interrupted, match="SIGTERM"), StopRequest() as stop, stop.after_steps():
        send()


def test_the_second_signal_does_not_wait():
    with pytest.raises(Interrupted), StopRequest() as stop, stop.after_steps():
        send()
        send()
        raise AssertionError("it waited")


def test_the_handlers_are_those_of_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_it_says_from_where_to_go_on(tmp_path):
    with pytest.raises(Interrupted, match="it had no checkpoint yet"), telling_how_to_go_on(tmp_path, "X"):
        raise Interrupted(signal.SIGTERM)
    save_checkpoint(tmp_path / "step-000003", StateTree())
    with pytest.raises(Interrupted, match=r"go on from '.*step-000003' with X"), telling_how_to_go_on(tmp_path, "X"):
        raise Interrupted(signal.SIGTERM)
