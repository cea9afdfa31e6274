import importlib.metadata
import json
import subprocess

import pytest
import torch
import yaml

from common.errors import UserError
from common.training import run_folder
from common.training.checkpoint import StateTree, save_checkpoint
from common.training.lock import alone_in
from common.training.run_folder import (
    RunFolder,
    check_same_options,
    environment,
    folders_made,
    git_commit,
    open_run_folder,
    start_undone,
)


def start(path, complete=False, checkpoints=(), **options):
    """A run that has begun and perhaps ended in `path`."""
    folder = open_run_folder(path, **options)
    folder.prepare()
    folder.write_config({"learning_rate": 0.1}, ["run.py", "learning_rate=0.1"])
    folder.metrics.write_text("{}\n")
    for step in checkpoints:
        state = StateTree()
        state.put("x", {"y": torch.zeros(1)})
        save_checkpoint(folder.checkpoint_folder(step), state)
    if complete:
        folder.write_results({"status": "complete"})
    return folder


def content(path):
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*"))


def test_opening_writes_nothing(tmp_path):
    open_run_folder(tmp_path / "a" / "b")
    assert content(tmp_path) == []
    before = content(start(tmp_path / "run", complete=True).path)
    open_run_folder(tmp_path / "run", overwrite=True)
    assert content(tmp_path / "run") == before


def test_a_fresh_folder_is_made_with_its_parents(tmp_path):
    folder = start(tmp_path / "a" / "b")
    assert content(folder.path) == ["config.yaml", "metrics.jsonl"]
    assert folder.checkpoint is None
    assert not folder.is_complete


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    (tmp_path / "run").mkdir()
    assert start(tmp_path / "run").config.is_file()


@pytest.mark.parametrize(("complete", "word"), [(True, "complete"), (False, "partial")])
def test_a_folder_that_holds_a_run_is_refused(complete, word, tmp_path):
    start(tmp_path / "run", complete)
    with pytest.raises(UserError, match=f"already holds a {word} run; .*resume=auto.*overwrite=true"):
        open_run_folder(tmp_path / "run")


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_a_folder_that_holds_something_else_is_refused_whatever_is_asked(options, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        open_run_folder(tmp_path / "thesis", **options)
    for other in ("a: 1\n", "[unbalanced", "", "- 1\n", b"\xff\xfe"):
        path = tmp_path / "thesis" / "config.yaml"  # many a project has a file of this name
        path.write_bytes(other if isinstance(other, bytes) else other.encode())
        with pytest.raises(UserError, match="is not empty and holds no run"):
            open_run_folder(tmp_path / "thesis", **options)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="holds no run"):
        open_run_folder(tmp_path / "file", **options)


def test_overwriting_leaves_nothing_of_the_earlier_run(tmp_path):
    folder = start(tmp_path / "run", complete=True, checkpoints=[500])
    (folder.policy).mkdir()
    (folder.path / "prompts.csv").write_text("stale")
    outside = tmp_path / "data"
    outside.mkdir()
    (outside / "keep").write_text("x")
    (folder.path / "link").symlink_to(outside)
    again = open_run_folder(folder.path, overwrite=True)
    assert again.checkpoint is None
    again.prepare()
    assert content(folder.path) == []
    assert (outside / "keep").read_text() == "x"


def test_going_on_takes_the_newest_checkpoint_and_keeps_everything(tmp_path):
    folder = start(tmp_path / "run", checkpoints=[500, 1000])
    before = content(folder.path)
    again = open_run_folder(folder.path, resume=True)
    assert again.checkpoint == folder.checkpoints / "step-001000"
    again.prepare()
    assert content(folder.path) == before


def test_going_on_without_a_checkpoint_starts_again(tmp_path):
    start(tmp_path / "run")
    again = open_run_folder(tmp_path / "run", resume=True)
    assert again.checkpoint is None
    again.prepare()
    assert content(tmp_path / "run") == []
    assert open_run_folder(tmp_path / "new", resume=True).checkpoint is None


def test_going_on_with_a_complete_run_says_that_it_is_complete(tmp_path):
    start(tmp_path / "run", complete=True, checkpoints=[500])
    assert open_run_folder(tmp_path / "run", resume=True).is_complete


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        open_run_folder(tmp_path / "file" / "run").prepare()


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.os, "access", lambda place, mode: place != tmp_path)
    with pytest.raises(UserError, match=rf"cannot be written: '{tmp_path}' is not writable"):
        open_run_folder(tmp_path / "a" / "b")


def test_old_checkpoints_are_dropped_by_their_number(tmp_path):
    folder = start(tmp_path / "run", checkpoints=[999_500, 1_000_000, 1_000_500])
    folder.drop_old_checkpoints(2)
    assert content(folder.checkpoints) == [
        f"step-{step}{name}"
        for step in ("1000000", "1000500")
        for name in ("", "/state.json", "/state.safetensors")
    ]  # fmt: skip


def test_config_yaml_holds_all_that_is_needed_to_run_again(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_config({"prompt": "é: \n", "rate": 1e-4, "list": [1]}, ["run.py", "x='y z'"])
    config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    assert config["options"] == {"prompt": "é: \n", "rate": 1e-4, "list": [1]}
    assert config["command"] == ["run.py", "x='y z'"]
    assert config["environment"]["packages"]["torch"] == importlib.metadata.version("torch")
    assert config["environment"].keys() == {"python", "platform", "packages", "git_commit"}


def test_results_are_the_mark_of_a_whole_run(tmp_path):
    folder = RunFolder(tmp_path)
    before = folder.is_complete
    folder.write_results({"status": "complete", "x": float("nan")})
    assert (before, folder.is_complete) == (False, True)
    assert json.loads(folder.results.read_text()) == {"status": "complete", "x": None}


def test_the_commit_is_that_of_the_checkout_and_says_whether_files_differ(tmp_path, monkeypatch):
    (tmp_path / "common").mkdir()
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "common" / "training" / "run_folder.py"))
    assert git_commit() is None

    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert git_commit() is None  # nothing committed yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    git("tag", "v1")
    assert git_commit() == git("rev-parse", "HEAD")
    (tmp_path / "a").write_text("2")
    assert git_commit() == git("rev-parse", "HEAD") + "-dirty"


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(run_folder, "PACKAGES", ("torch", "no-such-package"))
    assert environment()["packages"]["no-such-package"] is None


def test_options_that_change_results_cannot_change_on_the_way(tmp_path):
    before = {"rate": 0.1, "seed": 1, "folder": "a", "old": 1}
    check_same_options(before, before | {"folder": "b"}, {"folder"}, tmp_path)
    with pytest.raises(UserError) as caught:
        check_same_options(before, {"rate": 0.2, "seed": 1, "folder": "b", "new": 2}, {"folder"}, tmp_path)
    assert "rate was 0.1, is 0.2" in str(caught.value)
    assert "old was 1, is None" in str(caught.value)
    assert "new was None, is 2" in str(caught.value)
    assert "folder" not in str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize("learnt", [False, True])
def test_a_start_that_fails_leaves_nothing_and_one_that_learnt_something_stays(tmp_path, learnt):
    folder = RunFolder(tmp_path / "a" / "b" / "run")
    with pytest.raises(UserError), folders_made(folder.path.parent), alone_in(folder.path), start_undone(folder):
        folder.prepare()
        folder.write_config({}, [])
        folder.metrics.write_text("{}\n" if learnt else "")
        raise UserError("no")
    assert folder.path.exists() == learnt
    assert (content(tmp_path) == []) == (not learnt)


def test_what_was_there_before_a_failed_start_stays(tmp_path):
    (tmp_path / "a" / "run").mkdir(parents=True)
    folder = RunFolder(tmp_path / "a" / "run")
    with pytest.raises(UserError), folders_made(folder.path.parent), start_undone(folder):
        raise UserError("no")
    assert content(tmp_path) == ["a", "a/run"]
