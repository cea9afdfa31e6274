"""Any number for any option, of today or added later: a run that goes well, or one line that names option and range.

What an option allows is read off the settings, so that no list here can fall behind.
"""

import dataclasses
import os
import signal
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chat_task import command_line as chat_command
from chat_task import run_chat
from chat_task.settings import ChatSettings
from common.errors import UserError, UserErrors
from common.training.command_line import read_yaml
from common.training.ranges import LARGEST, LEAST
from common.training.settings import TaskSettings
from prompt_task import run_fsc
from prompt_task.settings import FewShotSettings
from sum_task import command_line as sum_command
from sum_task import run_sum
from sum_task.settings import SummarizationSettings
from tests.chat_task.test_run_chat import POLICY, words  # noqa: F401  a fixture
from tests.forks import Child, fork
from tests.sum_task.conftest import stand_in_for_wordnet, tiny  # noqa: F401  a fixture
from tests.tiny_runs import published_options

TASKS: dict[str, tuple[type[TaskSettings], Callable[[], dict[str, Any]]]] = {
    "prompts": (FewShotSettings, published_options),
    "summaries": (SummarizationSettings, lambda: read_yaml(sum_command.DEFAULTS) | {"dataset_name": "xsum"}),
    "replies": (ChatSettings, lambda: read_yaml(chat_command.DEFAULTS) | {"dataset_name": "x"}),
}
ABSURD: list[Any] = [
    0, -1, 1, 10**8, 10**12, 2**63, 10**30, 10**400, -(10**400), 10**5000, 1e-300, 1e300, -1e300, 1e12, 0.5,
    float("nan"), float("inf"), -float("inf"), "9" * 5000, "1e999", "x" * 10_000,
]  # fmt: skip


def numbers(settings: type[TaskSettings]) -> dict[str, tuple[type, Mapping[str, Any]]]:
    """The options that are numbers: kind and limits."""
    limits = {f.name: f.metadata for g in typing.get_type_hints(settings).values() for f in dataclasses.fields(g)}
    return {name: (of, limits[name]) for name, (of, _) in settings.kinds().items() if of in (int, float)}


OPTIONS = [(task, name) for task, (settings, _) in TASKS.items() for name in numbers(settings)]


@pytest.mark.parametrize("task", TASKS)
def test_every_number_is_taken_within_bounds_or_refused_in_one_line(task):
    settings, defaults = TASKS[task]
    options = numbers(settings)
    for value in ABSURD:
        try:
            settings.from_mapping(defaults() | dict.fromkeys(options, value))
            messages = []
        except UserError as error:
            messages = error.messages if isinstance(error, UserErrors) else [str(error)]
        refused = {message.partition(": ")[0]: message for message in messages}
        for name, (_, limits) in options.items():
            if name in refused:
                assert "\n" not in refused[name] and len(refused[name]) < 300, refused[name]
            else:
                assert -LARGEST <= float(value) <= (limits["maximum"] or LARGEST), (name, value)
                assert limits["above"] is None or limits["above"] < 0 or float(value) >= LEAST, (name, value)


def ends(of: type, limits: Mapping[str, Any]) -> Iterator[float]:
    """The least and the largest number that an option allows."""
    least = LEAST if limits["above"] == 0 else -LARGEST if limits["minimum"] is None else limits["minimum"]
    yield from map(of, (least, LARGEST if limits["maximum"] is None else limits["maximum"]))


@pytest.fixture(scope="module")
def starts(world, tiny, words):  # noqa: F811
    """By task: reads the options of a tiny run in a folder, one of them replaced, and starts it."""
    short = {"max_train_steps": 4, "num_candidates": 3}
    samples: dict[str, Any] = {"reinforce_coeff": 0.1, "max_entropy_coeff": 0.1, "num_beams": 2}

    def replies(folder: Path, name: str, value: float) -> None:
        run_chat.run(chat_command.read_command([*words, *POLICY, f"--output_dir={folder}", f"--{name}={value}"]))

    return {
        "prompts": lambda folder, name, value: run_fsc.run(
            world.command(**short | {"output_folder": folder, name: value})
        ),
        "summaries": lambda folder, name, value: run_sum.run(
            tiny.settings(**samples | {"output_dir": folder, name: value})
        ),
        "replies": replies,
    }


def code_of(child: Child, seconds: float) -> int:
    """The exit code of a child, which gets SIGTERM where it takes longer."""
    limits = [(seconds, signal.SIGTERM), (2 * seconds + 30, signal.SIGKILL)]
    started = time.monotonic()
    while (code := child.poll()) is None:
        if limits and time.monotonic() - started > limits[0][0]:
            os.kill(child.pid, limits.pop(0)[1])
        time.sleep(0.02)
    return code


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("task", "name"), OPTIONS)
def test_a_run_with_the_least_and_the_largest_number_of_an_option(starts, tmp_path, monkeypatch, task, name):
    stand_in_for_wordnet(monkeypatch)
    for number, value in enumerate(ends(*numbers(TASKS[task][0])[name])):
        folder, log = tmp_path / str(number) / "run", tmp_path / f"log-{number}"
        code = code_of(fork(partial(starts[task], folder, name, value), log), seconds=5)
        said = log.read_text(encoding="utf-8", errors="replace")
        assert code in (0, 2, 143) and "Traceback" not in said, (value, code, said[-2000:])
        assert (code == 2) == (said.count("error: ") == 1), (value, said)
        overflowed = "is not finite" in said or "has no fitted normaliser" in said  # what no start can tell
        assert code != 2 or overflowed or not folder.parent.exists(), (value, said)
