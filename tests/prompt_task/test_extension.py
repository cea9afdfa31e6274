"""A complete run that goes on with more steps is the longer run, to the last bit, and refuses what is none."""

import csv
import json
import shutil
import signal

import pytest

from common.errors import Interrupted, UserError
from common.training import run as run_module
from common.training.origin import extension_folder
from common.training.tracking import read_metrics
from prompt_task import policy_trainer, run_fsc
from prompt_task.run_fsc import run
from tests.tiny_runs import untimed

# No round of reward learning falls between the halves of the two lengths, where only the longer run would have one.
SHORT = {"max_train_steps": 8, "reward_retrain_period": 8, "early_stop_eval_period": 2, "log_every": 1,
         "save_steps": 0, "checkpoint_steps": 3, "num_candidates": 4, "candidate_steps": 3}  # fmt: skip
LONG = SHORT | {"max_train_steps": 16}
WORK = {"wall_seconds", "peak_memory_mib", "seconds_in_this_process", "prompts_scored", "pairs_scored"}


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    monkeypatch.setattr(run_fsc, "write_run_report", lambda folder, *_: folder.report.write_text("", encoding="utf-8"))


@pytest.fixture(scope="module")
def short(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("short") / "run"
    run(world.command(output_folder=folder, **SHORT))
    return folder


@pytest.fixture(scope="module")
def long(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long") / "run"
    run(world.command(output_folder=folder, **LONG))
    return folder


@pytest.fixture
def mine(short, tmp_path):
    return shutil.copytree(short, tmp_path / "run")


def outcome(folder):
    """What the longer run gives in whichever way; of work, the extended one has done that of both ends."""
    results = json.loads((folder / "results.json").read_text())
    events = [
        {k: v for k, v in e.items() if k != "perf/prompts_scored"} for e in read_metrics(folder / "metrics.jsonl")
    ]
    with open(folder / "prompts.csv", encoding="utf-8", newline="") as file:
        prompts = list(csv.DictReader(file))
    return {
        "results": {key: value for key, value in results.items() if key not in WORK},
        "prompts": prompts,
        "policy": (folder / "policy" / "adaptor.safetensors").read_bytes(),
        "reward": (folder / "reward_model" / "model.safetensors").read_bytes(),
        "events": untimed(events),
    }


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_twice_the_steps_are_the_run_of_twice_the_steps(world, mine, long, tmp_path, capsys):
    run(world.command(output_folder=mine, extend=True, **LONG))
    assert outcome(mine) == outcome(long)
    assert f"  {mine / 'results.json'}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.lock", "run"]
    with pytest.raises(UserError, match=r"has max_train_steps=16; max_train_steps=16 is no more"):
        run(world.command(output_folder=mine, extend=True, **LONG))
    again = run(world.command(output_folder=mine, resume="auto", **LONG))
    assert again["policy_steps"] == 16


def test_the_old_results_stay_until_the_longer_run_is_whole(world, mine, long, tmp_path, monkeypatch):
    before = content(mine)
    with monkeypatch.context() as patch:
        step = policy_trainer.PolicyTrainer._step

        def stopped(self, number):
            if number == 12:
                raise Interrupted(signal.SIGTERM)
            return step(self, number)

        patch.setattr(policy_trainer.PolicyTrainer, "_step", stopped)
        with pytest.raises(Interrupted, match=r"go on from '.*\.run\.extended.*' with the same command"):
            run(world.command(output_folder=mine, extend=True, **LONG))
    assert content(mine) == before
    with pytest.raises(UserError, match="with other options: max_train_steps was 16, is 20"):
        run(world.command(output_folder=mine, extend=True, **LONG | {"max_train_steps": 20}))
    with monkeypatch.context() as patch, pytest.raises(UserError, match="no room"):

        def full(folder, *_):
            raise UserError("no room")

        patch.setattr(run_fsc, "write_run_report", full)
        run(world.command(output_folder=mine, extend=True, **LONG))
    assert content(mine) == before
    run(world.command(output_folder=mine, resume="auto", **SHORT))  # it is the short run as before
    run(world.command(output_folder=mine, extend=True, **LONG))
    assert outcome(mine) == outcome(long)


def test_a_kill_while_it_takes_its_place_leaves_a_whole_run(world, mine, long, monkeypatch):
    def killed(new, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "replace_folder", killed)
        run(world.command(output_folder=mine, extend=True, **LONG))
    assert (extension_folder(mine) / "results.json").is_file()
    # and this is how it is in the middle of the two renames
    mine.rename(mine.with_name(".run.replaced"))
    monkeypatch.setattr(run_fsc, "load_task_lm", None)
    with pytest.raises(UserError, match="max_train_steps=16 is no more"):
        run(world.command(output_folder=mine, extend=True, **LONG))
    assert outcome(mine) == outcome(long)
    assert not extension_folder(mine).exists() and not mine.with_name(".run.replaced").exists()


def test_what_cannot_be_extended_is_refused_in_one_line_and_nothing_changes(world, mine, tmp_path, monkeypatch):
    monkeypatch.setattr(run_fsc, "load_task_lm", None)

    def refused(words, folder=mine, **options):
        before = content(tmp_path)
        with pytest.raises(UserError, match=words):
            run(world.command(output_folder=folder, extend=True, **LONG | options))
        assert content(tmp_path) == before

    refused("has max_train_steps=8; max_train_steps=7 is no more", max_train_steps=7)
    refused("with other options: learning_rate was 0.01, is 0.02", learning_rate=0.02)
    refused("there is no complete run in '.*nowhere.run'", tmp_path / "nowhere" / "run")
    assert not (tmp_path / "nowhere").exists()
    refused("set no overwrite and no checkpoint_path", overwrite=True)
    results = json.loads((mine / "results.json").read_text())
    (mine / "results.json").write_text(json.dumps(results | {"policy_steps": 6}))
    refused("ended by itself after 6 of 8 steps")
    (mine / "results.json").write_text(json.dumps(results))
    shutil.rmtree(mine / "checkpoints")
    refused("kept no checkpoint")
    (mine / "results.json").unlink()
    refused("there is no complete run in .*; resume=auto goes on with a partial one")


def test_rounds_that_only_the_longer_run_would_have_had_are_named(world, tmp_path, caplog):
    options = SHORT | {"reward_retrain_period": 3}
    run(world.command(output_folder=tmp_path / "run", **options))
    results = run(world.command(output_folder=tmp_path / "run", extend=True, **options | {"max_train_steps": 18}))
    assert "a run of 18 steps would have learnt them after 6 steps too" in caplog.text
    rounds = [e["round"] for e in read_metrics(tmp_path / "run" / "metrics.jsonl") if e["phase"] == "reward"]
    assert results["reward_rounds"] == max(rounds) + 1 == 3  # after 0, 3 and 9 steps
