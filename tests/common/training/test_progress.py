import io
import re

import pytest

from common.training import progress as module
from common.training.progress import Progress, progress, set_quiet


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until `advance` is called."""

    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

        def advance(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


@pytest.fixture(autouse=True)
def not_quiet():
    yield
    set_quiet(False)


def test_a_log_file_gets_a_plain_line_after_5_seconds_and_then_every_30(clock):
    log = io.StringIO()
    shown_after = []
    with Progress(100, "Learning rewards", stream=log) as bar:
        for second in range(1, 101):
            clock.advance(1)
            before = log.getvalue()
            bar.update(1)
            if log.getvalue() != before:
                shown_after.append(second)
    assert shown_after == [5, 35, 65, 95]
    assert "\r" not in log.getvalue()
    assert log.getvalue().splitlines()[0] == "Learning rewards: 5/100 steps, 1.0 steps/s, 01:35 left"
    assert log.getvalue().splitlines()[-1] == "Learning rewards: 100/100 steps, 1.0 steps/s, 01:40 in all"


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_the_time_of_other_work_is_not_that_of_the_steps(clock, kind):
    log = kind()
    with Progress(10, "Learning", stream=log) as bar:
        with bar.paused():
            clock.advance(600)
        for _ in range(2):
            clock.advance(6)
            bar.update(1)
        with bar.paused():
            clock.advance(600)
        for _ in range(8):
            clock.advance(6)
            bar.update(1)
    lines = log.getvalue().splitlines()
    if kind is Terminal:
        assert "01:00" in lines[-1]
        assert not re.search(r"\d+:\d\d:\d\d|[12]\d:\d\d", log.getvalue())
    else:
        assert re.fullmatch(r"Learning: 1/10 steps, 6.0 s/step, 00:5[34] left", lines[0])
        assert lines[-1] == "Learning: 10/10 steps, 6.0 s/step, 01:00 in all"


def test_nothing_is_paused_where_nothing_is_shown(clock):
    set_quiet(True)
    with Progress(10, "Learning", stream=io.StringIO()) as bar, bar.paused():
        clock.advance(5)


def test_slow_steps_are_given_in_seconds_a_step_and_figures_are_shown(clock):
    log = io.StringIO()
    with Progress(3, "Evaluating", "prompt", stream=log) as bar:
        clock.advance(8)
        bar.update(1, loss=0.25)
    assert log.getvalue() == "Evaluating: 1/3 prompts, 8.0 s/prompt, 00:16 left, loss=0.25\n"


@pytest.mark.parametrize(("unit", "units"), [("batch", "batches"), ("prompt", "prompts"), ("loss", "losses")])
def test_the_plural_of_a_unit(clock, unit, units):
    log = io.StringIO()
    with Progress(3, "Testing", unit, stream=log) as bar:
        clock.advance(8)
        bar.update(1)
    assert log.getvalue().startswith(f"Testing: 1/3 {units}, ")


def test_work_of_a_few_seconds_leaves_a_log_file_clean(clock):
    log = io.StringIO()
    for _ in progress(range(4), "Quick", stream=log):
        clock.advance(1)
    assert log.getvalue() == ""


def test_steps_done_before_a_resumption_do_not_count_in_the_rate(clock):
    log = io.StringIO()
    with Progress(1000, "Training", initial=900, stream=log) as bar:
        clock.advance(10)
        bar.update(10)
    assert log.getvalue() == "Training: 910/1000 steps, 1.0 steps/s, 01:30 left\n"


def test_an_unknown_number_of_items_has_no_time_left(clock):
    log = io.StringIO()
    for _ in progress(iter(range(2)), "Reading", "row", stream=log):
        clock.advance(6)
    lines = log.getvalue().splitlines()
    assert lines[0].startswith("Reading: 1 rows")
    assert not any("left" in line for line in lines)


def test_an_error_passes_and_the_log_says_how_far_it_came(clock):
    log = io.StringIO()
    with pytest.raises(ZeroDivisionError), Progress(50, "Training", stream=log) as bar:
        for _ in range(8):
            clock.advance(1)
            bar.update(1)
        raise ZeroDivisionError
    assert log.getvalue().splitlines()[-1].startswith("Training: 8/50 steps")


def test_a_terminal_gets_a_bar():
    terminal = Terminal()
    assert list(progress([1, 2, 3], "Scoring", "prompt", stream=terminal)) == [1, 2, 3]
    last = terminal.getvalue().split("\r")[-1]
    assert "Scoring: 100%" in last
    assert "3/3" in last


@pytest.mark.parametrize("stream_class", [io.StringIO, Terminal])
def test_quiet_shows_nothing(clock, stream_class):
    set_quiet(True)
    stream = stream_class()
    with Progress(10, "Training", stream=stream) as bar:
        for _ in range(10):
            clock.advance(60)
            bar.update(1, loss=1.0)
    assert stream.getvalue() == ""


def test_the_error_stream_is_the_default(clock, capsys):
    for _ in progress(range(3), "Waiting"):
        clock.advance(module.FIRST_LINE_SECONDS)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Waiting: ")
