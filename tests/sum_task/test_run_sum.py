"""Whole runs on tiny random models: what they write, going on after a kill, and the folders they leave."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from common.errors import Interrupted, UserError
from common.token_reward_model import TokenRewardModel
from common.training import checkpoint as checkpoint_files
from common.training import random_keys
from common.training.files import json_text
from common.training.inputs import fingerprints
from common.training.random_keys import Purpose
from common.training.tracking import read_metrics
from sum_task import policy_trainer, run_sum, summary_evaluation
from sum_task.command_line import ROOT
from sum_task.policy import SummaryPolicy
from sum_task.reward_trainer import RewardTrainer
from sum_task.run_sum import run
from tests.sum_task.conftest import stand_in_for_wordnet
from tests.sum_task.tiny import spied, write_rows

pytestmark = pytest.mark.usefixtures("without_wordnet")


def test_no_two_draws_of_a_run_share_their_random_numbers(tiny, tmp_path, monkeypatch):
    keys = []
    monkeypatch.setattr(random_keys, "seed_of", spied(random_keys.seed_of, lambda *key: keys.append(key)))
    run(tiny.settings(output_dir=tmp_path / "run", max_entropy_coeff=0.1, num_train_epochs=2, policy_eval_period=0.5))
    # The articles by which every round validates are the same ones; nothing else is drawn twice.
    once = [key for key in keys if key[0] != Purpose.VALIDATION_BATCHES]
    assert len(set(once)) == len(once)
    others = {purpose for purpose in Purpose if purpose.name.startswith(("PROMPT", "REPLY"))}
    assert {key[0] for key in keys} == set(Purpose) - others


def test_guidance_that_can_have_no_effect_is_refused_before_anything_is_written(tiny, tmp_path, monkeypatch):
    out = tmp_path / "run"
    options = {"output_dir": out, "guidance": "sequence", "gradient_accumulation_steps": 1}
    with pytest.raises(UserError, match="a step has one row; take more"):
        run(tiny.settings(per_device_train_batch_size=1, **options))
    with pytest.raises(UserError, match="a step has one row; take more"):
        run(tiny.settings(max_train_samples=1, **options))
    monkeypatch.setattr(TokenRewardModel, "tells_alternatives", False)
    with pytest.raises(UserError, match="rew_head: a credit that is an advantage needs the rewards of other tokens"):
        run(tiny.settings(output_dir=out, credit="advantage"))
    assert not (out / "metrics.jsonl").exists()
    tiny.settings(reinforce_coeff=0.1, guidance="sequence").policy.check_rows(1)


def test_run_leaves_everything_that_a_reader_needs(tiny, tmp_path, capsys):
    out = tmp_path / "run"
    results = run(tiny.settings(output_dir=out, max_entropy_coeff=0.1, reinforce_coeff=0.1, checkpoint_steps=1, seed=1))

    assert json.loads((out / "results.json").read_text()) == json.loads(json_text(results))
    assert (results["status"], results["tested_on"], results["test_rows"]) == ("complete", "test", 4)
    assert 0 <= results["reward_rank_accuracy"] <= 1
    assert results["reward_rounds"] == 2  # one before the first step, one after half of the epoch
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 4
    assert any(row["prediction"] for row in predictions)
    assert {"source", "reference", "prediction", "rouge1"} <= predictions[0].keys()
    assert sum(row["rouge1"] for row in predictions) / 4 == pytest.approx(results["test_rouge1"])
    events = read_metrics(out / "metrics.jsonl")
    assert {event["phase"] for event in events} == {"reward", "policy", "eval"}
    names = {name for event in events for name in event}
    assert {"reward/loss", "reward/rank_accuracy", "reward/dev_rank_accuracy", "policy/entropy", "eval/rougeL"} <= names
    page = (out / "report.html").read_text()
    assert "worst" in page and 'class="chip' in page
    assert "rouge1" in capsys.readouterr().out
    AutoModelForSeq2SeqLM.from_pretrained(out / "policy")
    AutoTokenizer.from_pretrained(out / "policy")
    AutoModelForSeq2SeqLM.from_pretrained(out / "best_policy")
    TokenRewardModel.from_pretrained(out / "reward_model")


def test_a_run_says_what_there_was_before_it(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(summary_evaluation, "COMPARED_ROWS", 3)
    monkeypatch.setattr(run_sum, "COMPARED_ROWS", 3)
    (tmp_path / "own_taste.py").write_text(
        "def letters(texts, references, sources):\n    return [len(t) for t in texts]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "run"
    options = {"guidance": "none", "preference": "own_taste:letters"}
    found = run(tiny.settings(output_dir=out, num_train_epochs=0, **options))
    # Nothing was trained, and three of the four test rows are compared.
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [row["preference"] for row in rows] == [len(row["prediction"]) for row in rows]
    assert found["test_preference"] == pytest.approx(sum(row["preference"] for row in rows) / 4)
    assert found["lead3_preference"] == pytest.approx(sum(len(row["source"]) for row in rows[:3]) / 3)
    for name in ("rouge1", "rougeL", "meteor", "length", "preference"):
        own = sum(row[name] for row in rows[:3]) / 3
        assert found[f"untrained_{name}"] == found[f"compared_{name}"] == pytest.approx(own)
    # An article of these is one sentence, its summary the beginning of it.
    assert found["lead3_length"] == pytest.approx(sum(len(row["source"].split()) for row in rows[:3]) / 3)
    assert found["lead3_rouge1"] > found["untrained_rouge1"] and found["compared_rows"] == 3
    printed = capsys.readouterr().out
    assert f"before training: rouge1 {found['untrained_rouge1']:.2f}" in printed and "the first 3 of them" in printed
    assert (
        f"preference {found['lead3_preference']:.3f}" in printed
        and "What there was" in (out / "report.html").read_text()
    )
    trained = run(tiny.settings(output_dir=tmp_path / "trained", **options))
    assert trained["untrained_rougeL"] == found["untrained_rougeL"]
    assert trained["validation"]["eval/preference"] > 0


def test_saved_policy_writes_the_predictions_of_the_run(tiny, tmp_path):
    run(tiny.settings(output_dir=tmp_path / "run"))
    policy = SummaryPolicy.from_pretrained(str(tmp_path / "run" / "policy"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]

    from sum_task.generate import summarize

    assert summarize(policy, [row["source"] for row in rows], max_length=6) == [row["prediction"] for row in rows]


def weights(folder):
    return load_file(folder / "model.safetensors")


class Killed(BaseException):
    """Nothing in the program may catch it, as nothing can catch a kill."""


RESUMED: dict[str, Any] = {
    "num_train_epochs": 3, "rew_num_train_epochs": 2, "reward_retrain_epochs": 2, "rew_eval_period": 0.5,
    "reinforce_coeff": 0.2, "log_every": 2, "checkpoint_steps": 1,
}  # fmt: skip


def outcome(folder):
    """All that a run must give again, to the last bit, wherever it was cut off."""
    results = json.loads((folder / "results.json").read_text())
    timed = {"wall_seconds", "seconds_in_this_process", "peak_memory_mib"}
    return {
        "results": {name: value for name, value in results.items() if name not in timed},
        "predictions": (folder / "predictions.jsonl").read_bytes(),
        "weights": [
            (folder / part / "model.safetensors").read_bytes() for part in ("policy", "reward_model", "best_policy")
        ],
        "events": [
            {k: v for k, v in event.items() if k != "seconds" and not k.startswith("perf/")}
            for event in read_metrics(folder / "metrics.jsonl")
        ],
    }


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Outcome of a run that nothing cut off."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stand_in_for_wordnet(patch)
        run(tiny.settings(output_dir=folder, **RESUMED))
    return outcome(folder)


def cut(monkeypatch, owner, name, count, action):
    """Take the action when the function is called for the `count`th time."""
    calls, original = [], getattr(owner, name)

    def called(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            action()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, called)


def kill():
    raise Killed


@pytest.mark.parametrize(
    ("owner", "name", "count"),
    [
        pytest.param(RewardTrainer, "_step", 1, marks=pytest.mark.slow),
        (RewardTrainer, "_step", 2),
        pytest.param(RewardTrainer, "_step", 4, marks=pytest.mark.slow),
        (RewardTrainer, "_step", 7),
        pytest.param(policy_trainer.PolicyTrainer, "_step", 1, marks=pytest.mark.slow),
        (policy_trainer.PolicyTrainer, "_step", 3),
        pytest.param(policy_trainer.PolicyTrainer, "_step", 6, marks=pytest.mark.slow),
        (policy_trainer.PolicyTrainer, "_validate", 1),
        (run_sum, "write_run_report", 1),
    ],
)
def test_a_killed_run_goes_on_to_the_same_end(owner, name, count, tiny, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        cut(patch, owner, name, count, kill)
        run(tiny.settings(output_dir=tmp_path / "cut", **RESUMED))
    assert not (tmp_path / "cut" / "results.json").exists()
    run(tiny.settings(output_dir=tmp_path / "cut", resume="auto", **RESUMED))
    assert outcome(tmp_path / "cut") == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_the_step_and_it_goes_on_to_the_same_end(number, tiny, whole, tmp_path, monkeypatch):
    for owner, resume in ((RewardTrainer, "none"), (policy_trainer.PolicyTrainer, "auto")):
        with monkeypatch.context() as patch:
            cut(patch, owner, "_step", 2, lambda: os.kill(os.getpid(), number))
            with pytest.raises(
                Interrupted, match=r"go on from '.*step-0000\d+' with the same command and --resume"
            ) as e:
                run(tiny.settings(output_dir=tmp_path / "cut", resume=resume, **RESUMED | {"checkpoint_steps": 0}))
        assert e.value.exit_code == 128 + number
        assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == (1 if resume == "none" else 2)
    run(tiny.settings(output_dir=tmp_path / "cut", resume="auto", **RESUMED))
    assert outcome(tmp_path / "cut") == whole


def test_options_that_change_results_are_refused_by_name_unless_told_otherwise(tiny, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        cut(patch, policy_trainer.PolicyTrainer, "_step", 3, kill)
        run(tiny.settings(output_dir=tmp_path / "cut", **RESUMED))
    changed = RESUMED | {"learning_rate": 0.5}
    with pytest.raises(UserError, match=r"learning_rate was .*, is 0.5 \(allowed with resume=changed\)"):
        run(tiny.settings(output_dir=tmp_path / "cut", resume="auto", **changed))
    run(tiny.settings(output_dir=tmp_path / "cut", resume="changed", **changed))
    assert "with other options: learning_rate was" in caplog.text


def test_a_run_goes_on_from_the_very_data_it_was_made_from(tiny, tmp_path, monkeypatch):
    rows = Path(tiny.train).read_text().splitlines(keepends=True)
    data = tmp_path / "own.jsonl"
    data.write_text("".join(rows))
    options = RESUMED | {"output_dir": tmp_path / "cut", "train_file": data}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        cut(patch, policy_trainer.PolicyTrainer, "_step", 1, kill)
        run(tiny.settings(**options))
    before = read_metrics(tmp_path / "cut" / "metrics.jsonl")
    data.write_text("".join(rows[3:]))  # as many options, other rows
    monkeypatch.setattr(run_sum, "load_policy", None)  # refused before any work
    with pytest.raises(UserError, match=r"with another content of train_file \(its own.jsonl\) \(allowed with resume"):
        run(tiny.settings(resume="auto", **options))
    assert read_metrics(tmp_path / "cut" / "metrics.jsonl") == before
    with pytest.raises(TypeError, match="NoneType"):  # it goes on to load the policy
        run(tiny.settings(resume="changed", **options))
    found = fingerprints(
        run_sum.run_options(tiny.settings(**options | {"preference": "tests.sum_task.tiny:brevity"})).inputs
    )
    assert {name: list(files) for name, files in found.items() if name not in ("model_name_or_path", "wordnet")} == {
        "train_file": ["own.jsonl"], "validation_file": ["validation.jsonl"], "test_file": ["test.jsonl"],
        "preference": ["tiny.py"],
    }  # fmt: skip
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= found["model_name_or_path"].keys()


@pytest.mark.parametrize(("resume", "remembers"), [("auto", True), ("changed", False)])
def test_with_other_options_no_remembered_reward_holds(tiny, tmp_path, monkeypatch, resume, remembers):
    options = RESUMED | {"reward_retrain_period": 3, "checkpoint_steps": 1}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        cut(patch, policy_trainer.PolicyTrainer, "_step", 3, kill)
        run(tiny.settings(output_dir=tmp_path / "cut", **options))
    known = []

    def train(trainer, checkpointer):
        known.append(not trainer.loss.reference_rewards.values.isnan().all())
        raise Killed

    monkeypatch.setattr(policy_trainer.PolicyTrainer, "train", train)
    if resume == "changed":
        options["train_file"] = write_rows(tmp_path / "other.jsonl", 12, 7)
    with pytest.raises(Killed):
        run(tiny.settings(output_dir=tmp_path / "cut", resume=resume, **options))
    assert known == [remembers]


def test_a_complete_run_shows_its_result_again_and_does_nothing(tiny, tmp_path, monkeypatch, capsys):
    results = run(tiny.settings(output_dir=tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    monkeypatch.setattr(run_sum, "load_policy", None)
    again = run(tiny.settings(output_dir=tmp_path / "run", resume="auto"))
    assert again == json.loads(json_text(results))
    assert "rouge1" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_equal_seeds_give_equal_runs_and_others_do_not(tiny, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(tiny.settings(output_dir=tmp_path / name, seed=seed))
    a, b, c = (weights(tmp_path / name / "policy") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_reported_policy_is_the_last_and_the_best_is_kept_beside_it(tiny, tmp_path, monkeypatch):
    scores = iter([3.0, 2.0, 1.0])
    plain = run_sum.evaluate

    def evaluate(policy, data, settings, engine, title, preference, bertscore=False, metrics=()):
        found = plain(policy, data, settings, engine, title, preference, bertscore, metrics)
        if title == "validation":
            found.means["score"] = next(scores)
        return found

    monkeypatch.setattr(run_sum, "evaluate", evaluate)
    results = run(tiny.settings(output_dir=tmp_path / "run", num_train_epochs=3))
    assert results["best_policy_step"] == 2  # the end of the first epoch
    last, best = weights(tmp_path / "run" / "policy"), weights(tmp_path / "run" / "best_policy")
    assert any(not torch.equal(last[name], best[name]) for name in last)


@pytest.mark.parametrize(("guidance", "rounds"), [("none", 0), ("token", 1)])
def test_no_epochs_test_the_policy_as_it_is(tiny, tmp_path, guidance, rounds):
    results = run(tiny.settings(output_dir=tmp_path / "run", num_train_epochs=0, guidance=guidance))
    assert (results["policy_steps"], results["reward_rounds"]) == (0, rounds)
    before = AutoModelForSeq2SeqLM.from_pretrained(tiny.t5).state_dict()
    after = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "policy").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_decoder_only_policy(tiny, tmp_path):
    results = run(
        tiny.settings(output_dir=tmp_path / "run", model_name_or_path=tiny.llama, separator=" : ", reinforce_coeff=0.1)
    )
    assert results["policy_steps"] == 2
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy")


def test_reward_model_with_another_tokenizer(tiny, tmp_path):
    results = run(tiny.settings(output_dir=tmp_path / "run", rew_model_name_or_path=tiny.byte_t5, reinforce_coeff=0.1))
    assert results["reward_model"] == tiny.byte_t5
    assert results["policy_steps"] == 2


def test_run_without_test_data_says_what_it_was_tested_on(tiny, tmp_path):
    results = run(tiny.settings(output_dir=tmp_path / "run", test_file="null", guidance="none"))
    assert (results["tested_on"], results["test_rows"]) == ("validation", 5)


def test_complete_run_is_not_overwritten_unasked(tiny, tmp_path):
    run(tiny.settings(output_dir=tmp_path / "run", guidance="none"))
    with pytest.raises(UserError, match="already holds a complete run"):
        run(tiny.settings(output_dir=tmp_path / "run", guidance="none"))


def test_every_figure_of_a_run_is_explained(tiny, tmp_path):
    run(tiny.settings(output_dir=tmp_path / "run", max_entropy_coeff=0.1, reinforce_coeff=0.1))
    names = {name for event in read_metrics(tmp_path / "run" / "metrics.jsonl") for name in event if "/" in name}
    assert {"reward/kendall_tau", "reward/saturation_share", "eval/guidance_agreement"} <= names
    assert "reward/length_correlation" in names
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert not [name for name in names if f"`{name}`" not in page]


def test_a_disk_that_gets_full_ends_the_run_in_one_line_and_keeps_the_last_good_state(
    tiny, whole, tmp_path, monkeypatch
):
    saved, save = [], checkpoint_files.save_file

    def full(tensors, path):
        saved.append(path)
        if len(saved) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path)

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot write .*step-\d+: No space left"):
        patch.setattr(checkpoint_files, "save_file", full)
        run(tiny.settings(output_dir=tmp_path / "cut", **RESUMED))
    assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == 2
    run(tiny.settings(output_dir=tmp_path / "cut", resume="auto", **RESUMED))
    assert outcome(tmp_path / "cut") == whole


def test_a_checkpoint_that_is_not_whole_is_an_error_that_says_what_to_do(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        cut(patch, policy_trainer.PolicyTrainer, "_step", 2, kill)
        run(tiny.settings(output_dir=tmp_path / "cut", **RESUMED))
    newest = sorted((tmp_path / "cut" / "checkpoints").iterdir())[-1]
    (newest / "state.safetensors").write_bytes((newest / "state.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"{newest.name}' cannot be read: .* resuming takes the one before it"):
        run(tiny.settings(output_dir=tmp_path / "cut", resume="auto", **RESUMED))


def test_a_saved_model_that_lost_something_leaves_the_run_incomplete(tiny, tmp_path, monkeypatch):
    """Saved weights other than the trained ones: the run ends in one line, without results."""
    save = SummaryPolicy.save_pretrained

    def lossy(self, folder):
        with torch.no_grad():
            before = self.lm.shared.weight.clone()
            self.lm.shared.weight.zero_()
            save(self, folder)
            self.lm.shared.weight.copy_(before)

    monkeypatch.setattr(SummaryPolicy, "save_pretrained", lossy)
    with pytest.raises(UserError, match=r"the policy in .* is not what was trained, so the run is not complete"):
        run(tiny.settings(output_dir=tmp_path / "run", guidance="none"))
    assert not (tmp_path / "run" / "results.json").exists()
