from common.training.program import run_command

import csv
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from safetensors.torch import load_file

from common.errors import Interrupted, UserError
from common.token_reward_model import TokenRewardModel
from common.training import checkpoint as checkpoint_files
from common.training import random_keys
from common.training import run as run_module
from common.training.checkpoint import latest_checkpoint, load_checkpoint
from common.training.data_files import unmarked_cell
from common.training.inputs import fingerprints
from common.training.random_keys import Purpose
from common.training.tracking import read_metrics
from prompt_task import policy_trainer, run_fsc
from prompt_task.command_line import read_command
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.reward_trainer import RewardTrainer
from prompt_task.run_fsc import run
from prompt_task.task_lm import TaskLM, load_task_lm
from tests.tiny_runs import noted, untimed

ROOT = Path(run_fsc.__file__).resolve().parent.parent
NOT_REPEATABLE = {"wall_seconds", "peak_memory_mib", "seconds_in_this_process"}
MIDDLE = {"max_train_steps": 12, "save_steps": 3, "log_every": 1, "num_candidates": 3}


class Killed(BaseException):
    """Nothing in the program may catch it, as nothing can catch a kill."""


def start(world, folder, **options):
    return run(world.command(output_folder=folder, **options))


def figures(folder):
    """All that a run of the same seed must give again, to the last bit."""
    folder = Path(folder)
    results = json.loads((folder / "results.json").read_text())
    events = read_metrics(folder / "metrics.jsonl")
    return {
        "results": {key: value for key, value in results.items() if key not in NOT_REPEATABLE},
        "prompts": (folder / "prompts.csv").read_bytes(),
        "policy": (folder / "policy" / "adaptor.safetensors").read_bytes(),
        "reward": (folder / "reward_model" / "model.safetensors").read_bytes(),
        "events": untimed(events),
    }


def rows(folder):
    with open(Path(folder) / "prompts.csv", encoding="utf-8", newline="") as file:
        return [row | {"prompt": unmarked_cell(row["prompt"])} for row in csv.DictReader(file)]


def command(*words, cwd=None, code=0):
    """Run the command as a user types it, in another folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "prompt_task" / "run_fsc.py"), *words],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr[-3000:]
    return done


def type_in(monkeypatch, *words):
    """Run the command's `main` in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["run_fsc.py", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        run_command(run_fsc.main)
    return caught.value.code


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    """Drawing the report takes most of the time of a tiny run; that of `finished` is drawn."""
    monkeypatch.setattr(run_fsc, "write_run_report", lambda folder, *_: folder.report.write_text("", encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    start(world, folder, **MIDDLE)
    return folder


def test_the_command_works_as_typed_from_another_folder_and_repeats_itself(world, finished, tmp_path):
    done = command(*world.words(output_folder="out/run", **MIDDLE), cwd=tmp_path)
    assert "test accuracy (mean of the top 2)" in done.stdout
    assert "with an empty prompt" in done.stdout
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing is left elsewhere
    # Another process, with other hashes of text: the same run to the last bit.
    assert figures(tmp_path / "out" / "run") == figures(finished)


def test_the_run_folder_holds_all_that_it_should(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml", "metrics.jsonl", "results.json", "prompts.csv", "policy", "reward_model", "checkpoints",
        "report.html",
    }  # fmt: skip
    explained = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert all(f"| `{name}" in explained or f" `{name}" in explained for name in names)
    assert not [path for path in finished.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth", ".ckpt")]
    results = json.loads((finished / "results.json").read_text())
    assert results["status"] == "complete"
    assert (results["task"], results["dataset"], results["seed"]) == ("prompt", "sst-2", 0)
    assert results["wall_seconds"] > 0
    low, high = results["test_accuracy_interval"]
    assert low <= results["test_accuracy"] <= high
    by_class = results["test_by_class"]
    assert sum(row["texts"] for row in by_class) == results["test_texts"]
    mean = sum(row["texts"] * row["accuracy"] for row in by_class) / results["test_texts"]
    assert mean == pytest.approx(results["test_accuracy"])
    assert results["peak_memory_mib"]["cpu"] > 0
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["options"]["learning_rate"] == 1e-2
    assert config["options"]["random_seed"] == 0
    assert config["options"]["dataset"]["verbalizers"] == [" terrible", " great"]
    assert config["environment"]["packages"]["torch"] == torch.__version__
    phases = {event["phase"] for event in read_metrics(finished / "metrics.jsonl")}
    assert phases == {"reward", "policy", "eval"}


def test_the_result_is_the_mean_test_accuracy_of_the_first_candidates_by_dev_score(finished):
    results, table = json.loads((finished / "results.json").read_text()), rows(finished)
    dev = [float(row["dev_score"]) for row in table]
    assert dev == sorted(dev, reverse=True)
    first = [float(row["test_accuracy"]) for row in table[:2]]
    assert results["test_accuracy"] == pytest.approx(sum(first) / 2)
    assert [entry["prompt"] for entry in results["reported_prompts"]] == [row["prompt"] for row in table[:2]]
    assert results["candidates"] == len(table) == len({row["prompt"] for row in table})
    assert sum(row["test_accuracy"] != "" for row in table) == 3  # num_candidates
    assert results["policy_steps"] == 12
    assert results["reward_rounds"] == 2


def test_what_is_saved_can_be_used(finished):
    policy = PromptPolicy.from_pretrained(finished / "policy")
    reward_model = TokenRewardModel.from_pretrained(finished / "reward_model")
    assert not reward_model.training
    ids = [[int(i) for i in row["token_ids"].split()] for row in rows(finished)]
    assert [policy.text(torch.tensor(row)) for row in ids] == [unmarked_cell(row["prompt"]) for row in rows(finished)]
    assert reward_model(torch.tensor(ids)).shape == (len(ids), 3)
    assert (reward_model.config.trained_on or {})["dataset"] == "sst-2"
    [scored] = reward_model.score_texts([policy.text(torch.tensor(ids[0]))])
    source = policy.source_ids.tolist()
    own = policy.tokenizer.encode("".join(scored.tokens), add_special_tokens=False)
    expected = reward_model(torch.tensor([source + own]))[0, len(source) :]
    assert scored.rewards == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_report_shows_prompts_and_curves(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "Few-shot prompts for sst-2" in page
    assert "candidate 1" in page
    assert "reward less what the policy expects in its place" in page
    assert "<svg" in page
    assert "Score of sampled prompts on dev" in page


def test_another_seed_is_another_run(world, finished, tmp_path):
    start(world, tmp_path / "run", random_seed=1, **MIDDLE)
    one, other = figures(finished), figures(tmp_path / "run")
    for part in ("prompts", "policy", "reward", "events"):
        assert one[part] != other[part]


def test_no_two_draws_of_a_run_share_their_random_numbers(world, tmp_path, monkeypatch):
    keys = []
    monkeypatch.setattr(random_keys, "seed_of", noted(random_keys.seed_of, lambda *key: keys.append(key)))
    start(world, tmp_path / "run", rew_gradient_accumulation_steps=2)
    # Validations of the policy draw the same, swaps of all rounds have one place, and weights are made of one seed
    # whether or not a task LM was loaded.
    alike = (Purpose.PROMPT_VALIDATION, Purpose.PROMPT_SWAPS, Purpose.INITIAL_WEIGHTS)
    once = [key for key in keys if key[0] not in alike]
    assert len(set(once)) == len(once)
    ours = {purpose for purpose in Purpose if purpose.name.startswith("PROMPT")} - {Purpose.PROMPT_RANDOM_SEARCH}
    assert {key[0] for key in keys} == ours | {Purpose.INITIAL_WEIGHTS}


def test_seeds_are_set_before_any_model_is_made(world, tmp_path):
    torch.manual_seed(99)  # whatever happened before in this process
    start(world, tmp_path / "a")
    torch.manual_seed(7)
    torch.rand(3)
    start(world, tmp_path / "b")
    assert figures(tmp_path / "a") == figures(tmp_path / "b")


def test_several_runs_can_share_a_loaded_task_lm(world, finished, tmp_path):
    read = world.command(output_folder=tmp_path / "run", **MIDDLE)
    task_lm = load_task_lm(world.masked, read.spec, torch.device("cpu"))
    run(read, task_lm)
    assert figures(tmp_path / "run") == figures(finished)


def kill_after_checkpoint(monkeypatch, count):
    saved, save = [], run_module.save_checkpoint

    def spied(*args):
        save(*args)
        saved.append(args)
        if len(saved) == count:
            raise Killed

    monkeypatch.setattr(run_module, "save_checkpoint", spied)


def kill_in_step(monkeypatch, step):
    original = policy_trainer.PolicyTrainer._step

    def spied(self, number):
        if number == step:
            raise Killed
        return original(self, number)

    monkeypatch.setattr(policy_trainer.PolicyTrainer, "_step", spied)


def all_but(fast, values):
    """Instants of which the fast tests try one or two."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("count", all_but([2], [1, 2, 4]))
def test_a_run_killed_after_a_checkpoint_goes_on_to_the_same_end(count, world, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, count)
        start(world, tmp_path / "run", **MIDDLE)
    assert not (tmp_path / "run" / "results.json").exists()
    start(world, tmp_path / "run", resume="auto", **MIDDLE)
    assert figures(tmp_path / "run") == figures(finished)


@pytest.mark.parametrize("step", all_but([5], [1, 5, 9]))
def test_a_run_killed_between_checkpoints_goes_on_to_the_same_end(step, world, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_step(patch, step)
        start(world, tmp_path / "run", **MIDDLE)
    start(world, tmp_path / "run", resume="auto", **MIDDLE)
    assert figures(tmp_path / "run") == figures(finished)


@pytest.mark.parametrize("count", all_but([3, 6], range(1, 8)))
def test_a_run_killed_within_a_round_of_reward_learning_goes_on_to_the_same_end(
    count, world, finished, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, count)
        start(world, tmp_path / "run", **MIDDLE, checkpoint_steps=1)
    start(world, tmp_path / "run", resume="auto", **MIDDLE)
    assert figures(tmp_path / "run") == figures(finished)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_the_step_and_it_goes_on_to_the_same_end(
    number, world, finished, tmp_path, monkeypatch
):
    def ask_in_step(name, count):
        """The first time that the method is called for the `count`th time the signal arrives."""
        calls, original = [], getattr(RewardTrainer if name == "_loss" else policy_trainer.PolicyTrainer, name)

        def spied(self, *args):
            calls.append(args)
            if len(calls) == count:
                os.kill(os.getpid(), number)
            return original(self, *args)

        monkeypatch.setattr(RewardTrainer if name == "_loss" else policy_trainer.PolicyTrainer, name, spied)

    ask_in_step("_loss", 2)
    with pytest.raises(Interrupted, match=r"go on from '.*step-000002' with .* resume=auto") as caught:
        start(world, tmp_path / "run", **MIDDLE)
    assert caught.value.exit_code == 128 + number
    ask_in_step("_step", 5)
    with pytest.raises(Interrupted, match=r"step-000013"):
        start(world, tmp_path / "run", resume="auto", **MIDDLE)
    assert not (tmp_path / "run" / "results.json").exists()
    start(world, tmp_path / "run", resume="auto", **MIDDLE)
    assert figures(tmp_path / "run") == figures(finished)


def test_a_signal_while_the_pool_is_scored_keeps_the_scores(world, tmp_path, monkeypatch):
    options = MIDDLE | {"reward_pool_size": 24, "prompt_train_batch_size": 8}
    start(world, tmp_path / "whole", **options)
    probabilities = PromptScorer.probabilities
    asked = []

    def spied(self, prompts, *args, **kwargs):
        if not self.examples[0].text.endswith((" dev", " test")):
            asked.append(prompts)
            os.kill(os.getpid(), signal.SIGTERM)
        return probabilities(self, prompts, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="step-000000"):
        patch.setattr(PromptScorer, "probabilities", spied)
        start(world, tmp_path / "run", **options)
    assert [len(prompts) for prompts in asked] == [8]
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-000000")
    assert state.get("reward/progress")[1]["round"] is None
    assert state.get("scorer/train")[1]["prompts"] == list(dict.fromkeys(asked[0]))
    start(world, tmp_path / "run", resume="auto", **options)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_a_signal_before_training_ends_the_run_at_once(world, tmp_path, monkeypatch):
    def load(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr(run_fsc, "load_task_lm", load)
    with pytest.raises(Interrupted, match="stopped by SIGTERM; it had no checkpoint yet"):
        start(world, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_exit_code_of_a_run_that_a_signal_ended(world, tmp_path):
    words = [sys.executable, run_fsc.__file__, *world.words(max_train_steps=100_000, checkpoint_steps=5)]
    words.append(f"output_folder={tmp_path / 'run'}")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not list(tmp_path.glob("run/checkpoints/step-*/state.json")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert re.search(
        r"^stopped by SIGTERM; go on from '.*step-\d+' with the same command and resume=auto$", errors, re.MULTILINE
    )
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "options",
    [
        {"reward_pool_size": 10, "screening": 2, "pool_candidates": 3, "candidate_split": "both"},
        pytest.param({"guidance": "sequence", "agg_func": "max", "compute_zscore": True}, marks=pytest.mark.slow),
        pytest.param({"rew_freeze_backbone": True, "rew_gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
        {"early_stop_count": 2, "learning_rate": 1e-12, "early_stop_eval_period": 1},
    ],
    ids=["pool", "sequence", "frozen", "early stop"],
)
def test_other_kinds_of_runs_go_on_to_the_same_end_too(options, world, tmp_path, monkeypatch):
    options = MIDDLE | {"save_steps": 2} | options
    start(world, tmp_path / "whole", **options)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, 1)
        start(world, tmp_path / "run", **options)
    start(world, tmp_path / "run", resume="auto", **options)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_a_run_with_a_left_to_right_task_lm_goes_on_to_the_same_end(world, tmp_path, monkeypatch):
    options = MIDDLE | {"task_lm": world.left_to_right, "save_steps": 5}
    start(world, tmp_path / "whole", **options)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, 1)
        start(world, tmp_path / "run", **options)
    start(world, tmp_path / "run", resume="auto", **options)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_a_run_killed_in_its_last_moments_goes_on_to_the_same_end(world, finished, tmp_path, monkeypatch):
    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run_fsc, "write_run_report", killed)
        start(world, tmp_path / "run", **MIDDLE)
    assert (tmp_path / "run" / "prompts.csv").exists()
    assert not (tmp_path / "run" / "results.json").exists(), "results.json is the mark of a whole run"
    start(world, tmp_path / "run", resume="auto", **MIDDLE)
    assert figures(tmp_path / "run") == figures(finished)


def test_resume_without_anything_to_go_on_from_starts(world, finished, tmp_path):
    start(world, tmp_path / "run", resume="auto", **MIDDLE)
    assert figures(tmp_path / "run") == figures(finished)


def test_resume_of_a_complete_run_repeats_its_result_and_does_nothing(world, finished, tmp_path, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    monkeypatch.setattr(run_fsc, "load_task_lm", None)
    results = start(world, finished, resume="auto", **MIDDLE)
    assert results == json.loads((finished / "results.json").read_text())
    assert "test accuracy" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    with pytest.raises(UserError, match=r"other options: learning_rate was 0.01, is 0.02"):
        start(world, finished, resume="auto", **MIDDLE | {"learning_rate": 0.02})


def test_a_checkpoint_goes_on_in_another_folder(world, finished, tmp_path):
    start(world, tmp_path / "run", checkpoint_path=finished / "checkpoints" / "step-000017", **MIDDLE)
    assert figures(tmp_path / "run") == figures(finished)
    assert (finished / "results.json").exists()


def test_options_that_change_results_are_refused_by_name_and_others_are_not(world, finished, tmp_path):
    checkpoint = finished / "checkpoints" / "step-000017"
    with pytest.raises(UserError) as caught:
        start(world, tmp_path / "run", checkpoint_path=checkpoint, **MIDDLE | {"top_k": 3, "random_seed": 4})
    assert "random_seed was 0, is 4" in str(caught.value)
    assert "top_k was None, is 3" in str(caught.value)
    assert "output_folder" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    wanted = MIDDLE | {"top_k": 3, "resume": "changed", "save_steps": 0}
    start(world, tmp_path / "changed", checkpoint_path=checkpoint, **wanted)
    assert json.loads((tmp_path / "changed" / "results.json").read_text())["policy_steps"] == 12
    changed = {"save_steps": 0, "keep_checkpoints": 1, "quiet": False, "sentence_cache_mib": 1, "log_every": 7}
    start(world, tmp_path / "run", checkpoint_path=checkpoint, **MIDDLE | changed)


@pytest.mark.parametrize(
    ("changed", "remembers"),
    [({"resume": "auto"}, True), ({"resume": "changed", "dataset_seed": 1}, False)],
)
def test_with_other_options_no_remembered_score_holds(world, finished, tmp_path, monkeypatch, changed, remembers):
    known = []

    def train(trainer, checkpointer):
        known.append([bool(scorer._known) for scorer in (trainer.train_scorer, trainer.dev_scorer)])
        raise UserError("far enough")

    monkeypatch.setattr(policy_trainer.PolicyTrainer, "train", train)
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(UserError, match="far enough"):
        start(world, tmp_path / "run", **MIDDLE | changed)
    assert known == [[remembers] * 2]


def test_a_checkpoint_knows_the_files_it_was_made_from(world, finished, tmp_path, monkeypatch):
    command = world.command(**MIDDLE)
    inputs = fingerprints(run_fsc.run_options(command).inputs)
    checkpoint = finished / "checkpoints" / "step-000017"
    assert json.loads((checkpoint / "state.json").read_text())["values"]["run"]["inputs"] == inputs
    assert list(inputs["base_path"]) == ["dev.tsv", "test.tsv", "train.tsv"]
    assert "model.safetensors" in inputs["task_lm"] and "config.json" in inputs["policy_lm"]


def test_a_checkpoint_that_is_not_there_or_not_whole_is_an_error(world, finished, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint in '.*nowhere'"):
        start(world, tmp_path / "run", checkpoint_path=tmp_path / "nowhere", **MIDDLE)
    torn = tmp_path / "torn"
    torn.mkdir()
    for name in ("state.json", "state.safetensors"):
        (torn / name).write_bytes((finished / "checkpoints" / "step-000017" / name).read_bytes()[:500])
    with pytest.raises(UserError, match=r"the checkpoint '.*torn' cannot be read"):
        start(world, tmp_path / "run", checkpoint_path=torn, **MIDDLE)


def test_an_occupied_output_folder_is_refused_and_replaced_only_where_asked(world, tmp_path):
    start(world, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-999999").mkdir()
    before = (tmp_path / "run" / "prompts.csv").read_bytes()
    with pytest.raises(UserError, match="already holds a complete run"):
        start(world, tmp_path / "run", random_seed=1)
    assert (tmp_path / "run" / "prompts.csv").read_bytes() == before
    start(world, tmp_path / "run", random_seed=1, overwrite=True)
    assert (tmp_path / "run" / "prompts.csv").read_bytes() != before
    assert not (tmp_path / "run" / "checkpoints" / "step-999999").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds no run"):
        start(world, tmp_path / "other", overwrite=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task_lm": "/no/such/model"}, "cannot load '/no/such/model'"),
        ({"policy_lm": "/no/such/model"}, "cannot load '/no/such/model'"),
        ({"task_lm": "builtin/maskedlm"}, "is not built in; did you mean 'builtin/masked-lm'"),
        ({"base_path": "/no/such/data"}, "/no/such/data"),
        ({"dataset_seed": 2}, "16-|3-21"),
        ({"dataset": "trec"}, "no folder .*trec"),
        ({"source_str": ""}, "source_str: '' is no token"),
        ({"report_to": ["no-tracker"]}, "no tracker 'no-tracker'"),
        ({"device": "gpu"}, "device: 'gpu' is not a device"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_a_mistake_leaves_no_folder_and_an_earlier_run_as_it_was(
    options, words, world, finished, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=words):
        start(world, tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(UserError, match=words):
        start(world, tmp_path / "run", overwrite=True, **options)
    assert figures(tmp_path / "run") == figures(finished)


def test_verbalizers_that_the_task_lm_does_not_have_are_an_error(world, tmp_path):
    words = world.words(output_folder=tmp_path / "run")
    with pytest.raises(UserError, match="' unbelievable' is not one token of the task LM"):
        run(read_command([*words, "dataset.verbalizers=[' great',' unbelievable']"]))
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line_and_exit_code_2_and_no_folder(tmp_path):
    done = command("learning_rat=1", f"output_folder={tmp_path}/run", cwd=tmp_path, code=2)
    assert done.stderr == "error: unknown option 'learning_rat'; did you mean 'learning_rate'?\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["max_train_steps=0"], "max_train_steps: 0 is out of range; it must be at least 1"),
        (["max_train_steps=many"], "max_train_steps: 'many' is not a whole number"),
        (["dataset=sst2"], "did you mean 'sst-2'?"),
        (["--confg-name=builtin"], "unknown flag"),
        (["base_path=nowhere"], "no folder"),
        (["guidance=sequence", "use_q_for_weight=true"], "use_q_for_weight"),
        (["--multirun", "learning_rat=1,2"], "did you mean 'learning_rate'?"),
        (["-m", "dataset=mr,sst2"], "did you mean 'sst-2'?"),
        (["-m", "random_seed=0,1", "learning_rate=1,-1"], "learning_rate: -1.0 is out of range"),
        (["-m", "random_seed=range(0,3)", "top_k=x"], "top_k: 'x' is not a whole number"),
    ],
)
def test_every_mistake_on_the_command_line_is_one_line_and_exit_code_2(words, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_fsc, "load_task_lm", None)  # no model is loaded before the mistake is found
    monkeypatch.setattr(run_fsc, "PromptPolicy", None)
    assert type_in(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_explains_the_options(flag, monkeypatch, capsys):
    assert type_in(monkeypatch, flag) == 0
    out = capsys.readouterr().out
    assert "usage: python prompt_task/run_fsc.py" in out
    assert "# tokens of a prompt" in out


def test_a_candidate_that_fails_is_reported_with_its_error(world, tmp_path, monkeypatch, capsys):
    original = TaskLM.class_probabilities
    broken: list[str] = []

    def picky(self, pairs):
        for sentence, prompt in pairs:
            if sentence.endswith(" test") and (prompt in broken or (not broken and prompt)):
                broken.append(prompt) if prompt not in broken else None
                raise UserError("this one cannot be read")
        return original(self, pairs)

    monkeypatch.setattr(TaskLM, "class_probabilities", picky)
    results = start(world, tmp_path / "run")
    table = {row["prompt"]: row for row in rows(tmp_path / "run")}
    assert len(broken) == 1
    assert table[broken[0]]["error"] == "test: this one cannot be read"
    assert table[broken[0]]["test_accuracy"] == ""
    assert table[broken[0]]["dev_score"] != ""
    assert broken[0] not in [entry["prompt"] for entry in results["reported_prompts"]]
    assert len(results["reported_prompts"]) == 2
    assert results["failed_candidates"] == 1
    assert "1 candidates could not be scored" in capsys.readouterr().out


def test_a_run_whose_candidates_all_fail_says_so_and_is_not_whole(world, tmp_path, monkeypatch):
    original = TaskLM.class_probabilities

    def broken(self, pairs):
        if any(sentence.endswith(" test") for sentence, _ in pairs):
            raise UserError("this one cannot be read")
        return original(self, pairs)

    monkeypatch.setattr(TaskLM, "class_probabilities", broken)
    with pytest.raises(UserError, match=r"no candidate prompt could be tested; prompts.csv says why"):
        start(world, tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    assert {row["error"] for row in rows(tmp_path / "run")} == {"test: this one cannot be read"}


def test_a_run_too_short_for_a_validation_ends_well(world, tmp_path):
    results = start(world, tmp_path / "run", max_train_steps=1, early_stop_eval_period=500, save_steps=0)
    assert results["policy_steps"] == 1
    assert results["best_policy_step"] is None
    assert results["status"] == "complete"


class FakeTracker:
    """Stands for a tracker of accelerate."""

    made: ClassVar[list["FakeTracker"]] = []
    name = "wandb"
    requires_logging_directory = False

    def __init__(self, project, **options):
        self.project, self.finished = project, False
        self.config: Any = None
        self.logged: list[Any] = []
        self.tables: list[Any] = []
        self.tracker = self  # wandb's own run, where accelerate keeps it
        self.made.append(self)

    def start(self):
        pass

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "policy_step")

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step):
        self.logged.append((step, values))

    def log_table(self, name, columns, data):
        self.tables.append(data)

    def finish(self):
        self.finished = True


def test_a_tracker_gets_every_event_and_the_options(world, tmp_path, monkeypatch):
    from accelerate import tracking as theirs

    from common.training import tracking

    monkeypatch.setattr(FakeTracker, "made", [])
    found = tracking.importlib.util.find_spec
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: name == "wandb" or found(name))
    monkeypatch.setitem(theirs.LOGGER_TYPE_TO_CLASS, "wandb", FakeTracker)
    start(world, tmp_path / "run", report_to_wandb=True)
    (tracker,) = FakeTracker.made
    events = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(tracker.logged) == len(events)
    assert {step for step, _ in tracker.logged} == {None}  # wandb counts by itself
    names = {name for _, values in tracker.logged for name in values}
    assert {"reward/loss", "policy/entropy", "eval/dev_score", "policy/step"} <= names
    assert tracker.config["learning_rate"] == 1e-2
    assert all(tracker.tables)
    assert tracker.finished


def test_the_last_reward_model_is_the_one_that_was_used_and_is_saved(world, finished):
    saved = load_file(finished / "reward_model" / "model.safetensors")
    checkpoint = load_file(finished / "checkpoints" / "step-000020" / "state.safetensors")
    kept = {name.removeprefix("reward_model/"): v for name, v in checkpoint.items() if name.startswith("reward_model/")}
    assert saved.keys() <= kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in saved.items())


def test_the_number_of_scored_prompts_is_counted(world, tmp_path, monkeypatch):
    asked: dict[str, set[str]] = {}
    original = PromptScorer.probabilities

    def spied(self, prompts, *args, **kwargs):
        kind = "dev" if self.examples[0].text.endswith(" dev") else "test"
        kind = "train" if not self.examples[0].text.endswith((" dev", " test")) else kind
        asked.setdefault(kind, set()).update(prompts)
        return original(self, prompts, *args, **kwargs)

    monkeypatch.setattr(PromptScorer, "probabilities", spied)
    results = start(world, tmp_path / "run")
    assert results["prompts_scored"] == len(asked["train"]) + len(asked["dev"])
    assert asked["test"] == {"", *(row["prompt"] for row in rows(tmp_path / "run"))}


@pytest.mark.slow
def test_several_runs_are_started_by_multirun(world, tmp_path):
    command("--multirun", *world.words(), "random_seed=0,1", cwd=tmp_path)
    folders = sorted(path.parent.name for path in tmp_path.rglob("results.json"))
    assert folders == ["token-sum-0", "token-sum-1"]
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_every_figure_of_a_run_is_explained(finished):
    names = {name for event in read_metrics(finished / "metrics.jsonl") for name in event if "/" in name}
    assert {"reward/kendall_tau", "reward/saturation_share", "policy/guidance_agreement"} <= names
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert not [name for name in names if f"`{name}`" not in page]


def test_a_disk_that_gets_full_ends_the_run_in_one_line_and_keeps_the_last_good_state(
    world, finished, tmp_path, monkeypatch
):
    saved, save = [], checkpoint_files.save_file

    def full(tensors, path):
        saved.append(path)
        if len(saved) == 3:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path)

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot write .*step-\d+: No space left"):
        patch.setattr(checkpoint_files, "save_file", full)
        start(world, tmp_path / "run", **MIDDLE)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert len(kept) == 2
    assert not any("partial" in name for name in kept)
    start(world, tmp_path / "run", resume="auto", **MIDDLE)
    assert figures(tmp_path / "run") == figures(finished)


def test_a_loss_that_turns_nan_ends_the_run_in_one_line_and_keeps_the_last_good_state(world, tmp_path, monkeypatch):
    loss = policy_trainer.reinforce_loss
    calls = []

    def bad(*args):
        calls.append(args)
        return loss(*args) * (math.nan if len(calls) == 8 else 1.0)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="policy step 8: the loss is nan"):
        patch.setattr(policy_trainer, "reinforce_loss", bad)
        start(world, tmp_path / "run", **MIDDLE)
    newest = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    state = load_checkpoint(newest)
    assert state.get("policy/progress")[1]["steps_done"] == 6
    assert all(bool(tensor.isfinite().all()) for tensor in state.get("policy/weights")[0].values())
