"""Whatever the disk refuses, at whichever write: one line, nothing that claims to be whole, and the run goes on later.

An audit hook sees each file that is opened to be written, renamed, made or removed, and fails in its place: no root, no
mount, and no list of the places that write.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chat_task import run_chat
from chat_task.command_line import read_command as read_chat_command
from common.errors import UserError, machine_refusal
from prompt_task import run_fsc
from sum_task import run_sum
from tests.chat_task.test_run_chat import words  # noqa: F401  a fixture
from tests.prompt_task.test_run_fsc import figures as prompt_outcome
from tests.sum_task.conftest import (
    stand_in_for_wordnet,
    tiny,  # noqa: F401  a fixture
)
from tests.sum_task.test_run_sum import outcome as summary_outcome

WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "shutil.copyfile"}


class Disk:
    """Counts the writes below a folder while it is watched, and lets `fail` take part in each."""

    def __init__(self) -> None:
        self.below: str | None = None
        self.writes = 0
        self.event = ""  # of the last write
        self.fail: Callable[[int, str], None] = lambda number, path: None
        sys.addaudithook(self._hook)  # there is no way to take it back: it does nothing while nothing is watched

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.below is None or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        path = os.fspath(arguments[0])
        writes = event in WRITES or (event == "open" and _is_written(*arguments[1:3]))
        is_there = event == "os.mkdir" and os.path.isdir(path)  # python asks, and takes the answer for success
        if not path.startswith(self.below) or not writes or is_there:
            return
        below, self.below = self.below, None  # what the failure itself does is not seen
        try:
            self.writes, self.event = self.writes + 1, event
            self.fail(self.writes, path)
        finally:
            self.below = below

    @contextmanager
    def watched(self, folder: Path, fail: Callable[[int, str], None] = lambda number, path: None) -> Iterator[None]:
        self.below, self.writes, self.fail = str(folder), 0, fail
        try:
            yield
        finally:
            self.below = None


def _is_written(mode: str | None, flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if mode is None else bool(set(mode) & set("wax+"))


DISK = Disk()


def refused(number: int, path: str, first: int, code: int, lasting: bool) -> None:
    """The failure of the writes from the first one on, or of that one alone."""
    if number == first or (lasting and number > first):
        raise OSError(code, os.strerror(code), path)


def is_passed_over(event: str, path: str) -> bool:
    """Whether nobody must hear of it: the Trainer of transformers leaves an old checkpoint that it cannot remove."""
    return event == "os.rmdir" and "/trainer/checkpoint-" in path


def one_line(start: Callable[[], Any]) -> str:
    """How a command ends that must end early."""
    try:
        start()
    except UserError as error:
        return str(error)
    except OSError as error:
        line = machine_refusal(error)
        assert line is not None, repr(error)
        return line
    return ""


@pytest.fixture(scope="module")
def tasks(world, tiny, words, tmp_path_factory):  # noqa: F811
    """By task: how to start a run, what came of it, and that of a run which nothing disturbed with its writes."""
    report = lambda folder, *_: folder.report.write_text("", encoding="utf-8")  # noqa: E731
    prompt = {"max_train_steps": 8, "save_steps": 3, "num_candidates": 3}
    summary: dict[str, Any] = {"num_train_epochs": 1, "reward_retrain_epochs": 1, "checkpoint_steps": 1}

    def start_prompts(folder, resume="none"):
        return run_fsc.run(world.command(output_folder=folder, resume=resume, **prompt))

    def start_summaries(folder, resume="none"):
        return run_sum.run(tiny.settings(output_dir=folder, resume=resume, **summary))

    def start_replies(folder, resume="none"):
        more = [f"--output_dir={folder}", f"--resume={resume}", "--checkpoint_steps=4", "--swap_test=false"]
        return run_chat.run(read_chat_command([*words, *more]))

    def reply_outcome(folder):
        return (folder / "reward_model" / "model.safetensors").read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        stand_in_for_wordnet(patch)
        for module, name in ((run_fsc, "write_run_report"), (run_sum, "write_run_report")):
            patch.setattr(module, name, report)
        patch.setattr(run_chat, "write_reward_report", lambda page, *_: page.write_text("", encoding="utf-8"))
        found = {}
        for name, start, outcome in (
            ("prompts", start_prompts, prompt_outcome),
            ("summaries", start_summaries, summary_outcome),
            ("replies", start_replies, reply_outcome),
        ):
            folder = tmp_path_factory.mktemp(name) / "run"
            with DISK.watched(folder.parent):
                start(folder)
            found[name] = (start, outcome, outcome(folder), DISK.writes)
        yield found


def check(task, tmp_path, share, code, lasting):
    """A run whose disk fails at a share of its writes."""
    start, outcome, whole, writes = task
    first = 1 + int(share * (writes - 1))
    folder, refusals = tmp_path / "run", []

    def fail(number: int, path: str) -> None:
        try:
            refused(number, path, first, code, lasting)
        except OSError:
            refusals.append((DISK.event, path))
            raise

    with DISK.watched(tmp_path, fail):
        line = one_line(lambda: start(folder))
    if all(is_passed_over(*each) for each in refusals):
        assert refusals and not line, (first, writes, line)
    else:
        assert os.strerror(code) in line and "\n" not in line, (first, writes, line)
        assert not (folder / "results.json").exists()
        start(folder, "auto")
    assert outcome(folder) == whole, (first, writes)


SHARES = [0.0, 0.3, 0.8, 1.0]


@pytest.mark.parametrize("share", SHARES)
def test_a_disk_without_room(tasks, tmp_path, share):
    check(tasks["prompts"], tmp_path, share, errno.ENOSPC, lasting=False)


@pytest.mark.parametrize(("name", "share"), [("prompts", 0.4), ("summaries", 0.6), ("replies", 0.7), ("replies", 0.97)])
def test_a_disk_that_becomes_read_only(tasks, tmp_path, name, share):
    check(tasks[name], tmp_path, share, errno.EROFS, lasting=True)


def test_an_old_checkpoint_of_the_trainer_that_cannot_be_removed_ends_no_run(tasks, tmp_path):
    start, outcome, whole, _ = tasks["replies"]
    left = []

    def fail(number: int, path: str) -> None:
        if is_passed_over(DISK.event, path):
            left.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with DISK.watched(tmp_path, fail):
        start(tmp_path / "run")
    assert left
    assert outcome(tmp_path / "run") == whole


def check_removal(task, tmp_path, place, share):
    """A run whose folder, the one above it or that of its checkpoints somebody removes at a share of its writes."""
    start, outcome, whole, writes = task
    folder, first = tmp_path / "above" / "run", 1 + int(share * (writes - 1))
    removed = {"run": folder, "above": folder.parent, "checkpoints": folder / "checkpoints"}[place]

    def remove(number: int, path: str) -> None:
        if number == first:
            shutil.rmtree(removed, ignore_errors=True)  # it may not be there yet, or no more

    with DISK.watched(tmp_path, remove):
        line = one_line(lambda: start(folder))
    assert "\n" not in line
    if line:
        assert place == "checkpoints" or not removed.exists(), (first, writes, line, list(removed.rglob("*")))
        assert not (folder / "results.json").exists()
        shutil.rmtree(folder, ignore_errors=True)
        start(folder)
    assert outcome(folder) == whole, (first, writes)
    return line


REMOVED = [
    ("prompts", "run", 0.2),
    ("prompts", "above", 0.7),
    ("summaries", "run", 0.5),
    ("replies", "above", 0.3),
    ("summaries", "checkpoints", 0.4),
]


@pytest.mark.parametrize(("name", "place", "share"), REMOVED)
def test_a_folder_that_is_removed(tasks, tmp_path, name, place, share):
    check_removal(tasks[name], tmp_path, place, share)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", ["run", "above", "checkpoints"])
@pytest.mark.parametrize("name", ["prompts", "summaries", "replies"])
def test_a_folder_that_is_removed_at_any_write(tasks, tmp_path, name, place):
    for number in range(20):
        check_removal(tasks[name], tmp_path / str(number), place, number / 19)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["prompts", "summaries", "replies"])
def test_any_write_of_a_run(tasks, tmp_path, name):
    writes = tasks[name][3]
    for place in range(0, writes, max(writes // 40, 1)):
        for code, lasting in ((errno.ENOSPC, False), (errno.EROFS, True)):
            check(tasks[name], tmp_path / f"{place}-{code}", place / (writes - 1), code, lasting)
