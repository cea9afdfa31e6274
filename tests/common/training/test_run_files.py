"""Files of a run that are torn, edited or foreign: what was written, or one line; never another exception."""

import json
import random
import shutil
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.reporting.run_table import collect
from common.training.checkpoint import StateTree, checkpoint_folders, load_checkpoint, save_checkpoint
from common.training.inputs import fingerprint
from common.training.run_files import Made, read_config, read_results
from common.training.run_folder import open_run_folder
from common.training.tracking import check_events, read_metrics
from scripts.collect_results import TASKS
from tests.written_runs import prompt_run, summary_run

few = settings(
    max_examples=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
many = settings(few, max_examples=3000)
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -0.0, 1e308, 5e-324, 2**63])
keys = st.text(max_size=4) | st.sampled_from(["status", "task", "options", "inputs", "values", "run", "phase", "step"])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)
contents = st.one_of(
    st.binary(max_size=80),
    values.map(lambda value: json.dumps(value).encode()),
    values.map(lambda value: yaml.safe_dump(value).encode()),
    st.sampled_from(
        [b"", b"[" * 20_000, b"a: 2020-99-99", b"1" * 5000, b"&a [*a]", b"\xff\xfe", b"? [1]\n: 2", b"{}\n" * 3]
    ),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint."""
    folder = tmp_path_factory.mktemp("saved") / "step-1"
    state = StateTree()
    state.put("x", {"y": torch.arange(6.0)}, {"n": 1, "rate": 0.1, "nothing": float("nan")})
    state.put("run", {}, {"options": {"a": 1}, "inputs": {}, "events": 0, "seconds": 1.5})
    save_checkpoint(folder, state)
    return folder


def one_line(function, *arguments) -> Any:
    """What it returns, or None where it refuses."""
    try:
        return function(*arguments)
    except UserError as error:
        assert str(error).strip()
        return None


def try_readers(tmp_path, saved, content):
    path = tmp_path / "any"
    path.write_bytes(content)
    results = one_line(read_results, path)
    assert results is None or isinstance(results["status"], str)
    config = one_line(read_config, path)
    assert config is None or isinstance(config.options, dict)
    for event in one_line(read_metrics, path) or []:
        assert isinstance(event["phase"], str)
    one_line(check_events, path, 1)
    assert fingerprint(str(path))
    torn = tmp_path / "torn"
    shutil.copytree(saved, torn, dirs_exist_ok=True)
    (torn / "state.json").write_bytes(content)
    one_line(load_checkpoint, torn)
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    for name in ("config.yaml", "results.json"):
        (run / name).write_bytes(content)
    one_line(lambda: open_run_folder(run, resume=True))
    collect([tmp_path], TASKS)


@few
@given(contents)
def test_any_content_of_any_file_of_a_run(tmp_path, saved, content):
    try_readers(tmp_path, saved, content)


@pytest.mark.slow
@many
@given(contents)
def test_thousands_of_contents_of_any_file_of_a_run(tmp_path, saved, content):
    try_readers(tmp_path, saved, content)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_one_byte_of_a_checkpoint_that_is_another_is_noticed(name, tmp_path, saved):
    right = (saved / name).read_bytes()
    folder = tmp_path / "step-1"
    shutil.copytree(saved, folder)
    draw = random.Random(0)
    for place in draw.sample(range(len(right)), 60):
        (folder / name).write_bytes(right[:place] + bytes([right[place] ^ 1]) + right[place + 1 :])
        found = one_line(load_checkpoint, folder)
        assert found is None or "sha256" not in (folder / name).read_text(), place  # the word itself may be hit


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"options": []}, "options"), ({"options": {}, "inputs": {"a": "b"}}, "inputs"), (None, "options"),
        ({"options": {}, "events": -1}, "events"), ({"options": {}, "events": True}, "events"),
        ({"options": {}, "seconds": "1"}, "seconds"), ({"options": {}, "seconds": float("nan")}, "seconds"),
    ],
)  # fmt: skip
def test_what_a_run_was_made_from_is_checked_part_by_part(content, part, tmp_path):
    with pytest.raises(UserError, match=f"{part} is missing or damaged"):
        Made.of(content, tmp_path)


def test_odd_names_among_checkpoints_are_none(tmp_path, saved):
    for name in ("step-7", "step-²", "step-", "step-1.5", "step--1", "step-1 2", "step-" + "9" * 200):
        shutil.copytree(saved, tmp_path / name)
    (tmp_path / "step-8").write_text("a file")
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-7"]


def test_the_table_names_the_odd_run_and_goes_on(tmp_path):
    prompt_run(tmp_path / "good", 0.9)
    for name, content in (
        ("torn", '{"status": "comp'),
        ("list", "[]"),
        ("other", '{"status": "complete", "task": []}'),
    ):
        prompt_run(tmp_path / name, 0.9, seed=1)
        (tmp_path / name / "results.json").write_text(content)
    foreign = summary_run(tmp_path / "foreign", 30.0)
    (foreign / "results.json").write_text((tmp_path / "good" / "results.json").read_text())
    rows, problems = collect([tmp_path], TASKS)
    assert [run.folder.name for row in rows for run in row.runs.values()] == ["good"]
    assert sorted(problem.where.rsplit("/")[-1] for problem in problems) == ["foreign", "list", "other", "torn"]
