"""Whole runs of the reward stage on tiny models."""

import json
import math
import os
import pkgutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from chat_task import run_chat, score_tokens
from chat_task.command_line import COMMAND, DEFAULTS, read_command
from chat_task.settings import ChatSettings
from common.errors import Interrupted, UserError
from common.language_models import kept_entropies
from common.language_models.replies import ReplyFormat
from common.reply_rewards import RewardReading
from common.reporting.marked_tokens import NAME
from common.token_reward_model import TokenRewardModel
from common.training.command_line import ROOT
from common.training.tracking import read_metrics
from scripts import compare_policies
from tests.chat_task.tiny import ranking_sets
from tests.sum_task.tiny import save_llama, word_tokenizer


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The words of a command that takes a second."""
    folder = tmp_path_factory.mktemp("chat")
    model = save_llama(folder / "lm", word_tokenizer())
    rows = [
        {"prompt": s.prompt, "completions": s.replies, "scores": s.scores, "wrong": s.spans} for s in ranking_sets(60)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"--train_file={folder / 'rows.jsonl'}", f"--model_name_or_path={model}", "--spans_column=wrong",
        "--validation_share=0.2", "--max_prompt_length=16", "--max_reply_length=16", "--agg_func=sum",
        "--head_hidden_size=16", "--learning_rate=1e-2", "--per_device_train_batch_size=8",
        "--gradient_accumulation_steps=1", "--num_train_epochs=2", "--log_every=2", "--device=cpu", "--quiet",
    ]  # fmt: skip


def results_of(words, folder, *more):
    return run_chat.run(read_command([*words, f"--output_dir={folder}", *more]))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Nothing of a test is kept for later ones."""
    monkeypatch.setattr(kept_entropies, "FOLDER", tmp_path / "entropies")


def test_a_second_run_by_segments_computes_no_entropy_again(words, tmp_path, monkeypatch):
    more = ["--granularity=segment", "--num_train_epochs=0.2"]
    results_of(words, tmp_path / "one", *more, "--segment_cut=2.9")
    monkeypatch.setattr(kept_entropies, "reply_entropies", lambda *_: pytest.fail("computed again"))
    results_of(words, tmp_path / "two", *more, "--segment_cut=2.8", "--agg_func=mean", "--seed=3")


@pytest.mark.charts
@pytest.mark.parametrize("granularity", ["token", "segment", "sequence"])
def test_a_run_leaves_what_it_promises(words, tmp_path, granularity, caplog):
    results = results_of(words, tmp_path / "run", f"--granularity={granularity}", "--segment_cut=2.9", "--eval_steps=6")
    folder = tmp_path / "run"
    assert json.loads((folder / "results.json").read_text()).keys() == results.keys()
    assert results["status"] == "complete" and results["train_sets"] + results["validation_sets"] == 60
    assert results["reward_rank_accuracy"] > 0.6
    assert (results["reward_swap_accuracy"] is not None) == (granularity == "token")
    if granularity == "token":
        assert results["span_auc"] > max(0.8, results["span_auc_before"])
    assert results["span_baselines"].keys() == {"position", NAME, "log-probability", "entropy", "random"}
    names = {name for event in read_metrics(folder / "metrics.jsonl") for name in event}
    assert {"reward/loss", "reward/rank_accuracy", "reward/dev_loss", "reward/dev_rank_accuracy"} <= names
    assert "Held-out sets" in (folder / "report.html").read_text()
    reading = RewardReading.load(folder / "reward_model")
    assert reading.granularity == granularity and reading.normalizer is not None
    # What another process makes of the saved folder is what this one has in memory.
    row = {"prompt": "the", "completions": ["town fire", "city"], "reply": "river"}
    (tmp_path / "replies.jsonl").write_text(json.dumps(row) + "\n")
    command = [sys.executable, str(ROOT / "chat_task" / "score_tokens.py"), f"--model={folder / 'reward_model'}",
               f"--input={tmp_path / 'replies.jsonl'}", "--device=cpu"]  # fmt: skip
    found = [json.loads(line) for line in subprocess.run(command, capture_output=True, check=True).stdout.splitlines()]
    assert [item["column"] for item in found] == ["completions 1", "completions 2", "reply"]
    model = TokenRewardModel.from_pretrained(folder / "reward_model")
    scored = model.score_texts(["town fire", "city", "river"], sources=["the"] * 3)
    for item, here in zip(found, scored, strict=True):
        assert item["tokens"] == here.tokens and item["offsets"] == [list(span) for span in here.offsets]
        rewards = [math.nan if reward is None else reward for reward in item["rewards"]]
        assert rewards == pytest.approx(here.rewards, abs=1e-6, nan_ok=True)
        # an end token belongs to no segment, and to the sequence
        assert [math.isnan(reward) for reward in rewards] == [False] * (len(rewards) - 1) + [granularity != "sequence"]
        assert len(here.rewards) == len(here.tokens) == len(here.offsets)
    assert "cut" not in caplog.text
    [long] = model.score_texts(["town " * 100], sources=["the"])
    assert len(long.tokens) == ReplyFormat.load(str(folder / "reward_model"), False).max_reply_length
    assert "texts that were cut: 1 of 1" in caplog.text


COMPARED = """
import sys
from chat_task import policy_trainer, run_chat
for module in (run_chat, policy_trainer):
    module.check_saved = lambda name, folder, trained, load: print(name, float((trained - load()).abs().max()))
run_chat.main(sys.argv[1:])
"""


def test_in_half_precision_what_is_saved_is_compared_in_its_own(words, tmp_path):
    # In a process of its own: accelerate keeps one precision a process.
    options = [*words, "--mixed_precision=bf16", "--num_train_epochs=0.2", f"--output_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-c", COMPARED, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    lines = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()
    [difference] = [float(line.split()[-1]) for line in lines if line.startswith("reward model ")]
    assert difference < 1e-6


POLICY = ["--stage=all", "--policy_steps=4", "--prompts_per_step=2", "--samples_per_prompt=4", "--policy_batch_size=4",
          "--policy_learning_rate=1e-2", "--policy_eval_prompts=3"]  # fmt: skip


def events(folder):
    return [{k: v for k, v in event.items() if k != "seconds"} for event in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("stage", "more", "stop"), [("reward_stage.RewardStage", [], 6), ("policy_trainer.PolicyTrainer", POLICY, 2)]
)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(words, tmp_path, monkeypatch, capsys, stage, more, stop):
    if more:
        pytest.importorskip("trl")
        words = [*words, "--granularity=segment", "--segment_cut=2.9"]
    results = results_of([*words, *more], tmp_path / "whole")
    stage = pkgutil.resolve_name(f"chat_task.{stage}")
    real = stage.train

    def stopped(stage, checkpointer):
        def after_step(steps):
            calls.append(steps)
            if len(calls) == stop:  # where figures have just been logged; the Trainer keeps none of those since
                os.kill(os.getpid(), signal.SIGTERM)
            return once(steps)

        once, checkpointer.after_step, calls = checkpointer.after_step, after_step, []
        real(stage, checkpointer)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "train", stopped)
        with pytest.raises(Interrupted, match="the same command and --resume"):
            results_of([*words, *more], tmp_path / "cut")
    # What is gone on from holds nothing that could run; the Trainer's own arguments are never read.
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was loaded"))
    again = results_of([*words, *more], tmp_path / "cut", "--resume")
    for name in ("reward_model", "policy") if more else ("reward_model",):
        one, other = (load_file(tmp_path / n / name / "model.safetensors") for n in ("whole", "cut"))
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert events(tmp_path / "whole") == events(tmp_path / "cut")
    changing = {"wall_seconds", "seconds_in_this_process", "peak_memory_mib"}
    assert {k: v for k, v in again.items() if k not in changing} == json.loads(
        json.dumps({k: v for k, v in results.items() if k not in changing})
    )
    if more:
        assert (tmp_path / "cut" / "reward_report.html").is_file()
        page = (tmp_path / "cut" / "report.html").read_text()
        assert page.count(">before<") == 3  # "after" is a head as well
        assert results["rollouts"] == 32 and {"reward_rank_accuracy", "policy_score_after"} <= results.keys()
        assert (tmp_path / "cut" / "predictions.jsonl").read_text() == (
            tmp_path / "whole" / "predictions.jsonl"
        ).read_text()
        # The same rewards pay another run, and judge it.
        folder = tmp_path / "whole" / "reward_model"
        rewards = ["--stage=policy", f"--rew_checkpoint_path={folder}", f"--judge_checkpoint_path={folder}"]
        alone = results_of([*words, *more], tmp_path / "alone", *rewards)
        assert alone["policy_score_before"] == results["policy_score_before"]
        for when in ("before", "after"):
            assert alone[f"policy_judge_{when}"] == pytest.approx(alone[f"policy_score_{when}"], abs=1e-5)
        assert 0 <= alone["policy_win_rate_low"] <= alone["policy_win_rate"] <= alone["policy_win_rate_high"] <= 1
        gain = alone["policy_judge_after"] - alone["policy_judge_before"]
        assert alone["policy_judge_gain"] == pytest.approx(gain, abs=1e-6)
        # What was written is on the disk, and a judge who comes later says the same of it.
        written = (tmp_path / "alone" / "predictions.jsonl").read_text().splitlines()
        assert len(written) == alone["held_out_prompts"] == 3
        row = json.loads(written[0])
        assert {*row} == {n + s for n in ("prediction", "ids", "score", "judge") for s in ("", "_before")} | {
            "prompt", "prompt_read"
        }  # fmt: skip
        tables = []
        capsys.readouterr()
        for judge in ([], ["--judge", str(folder)]):
            assert compare_policies.main([str(tmp_path / "alone"), *judge, "--device=cpu"]) == 0
            tables.append(capsys.readouterr().out)
        with pytest.raises(UserError, match="--judge: "):
            compare_policies.main([str(tmp_path / "alone"), "--judge", str(tmp_path)])
        assert tables[0].splitlines()[:3] == tables[1].splitlines()[:3]
        assert f"{alone['policy_judge_gain']:.3f} (" in tables[0]
        assert "reward_rank_accuracy" not in alone and not (tmp_path / "alone" / "reward_model").exists()


def test_true_rewards_of_built_in_replies(tmp_path):
    pytest.importorskip("trl")
    words = ["--config=configs/chat_builtin.yaml", "--stage=policy", "--paid_by=known", *POLICY[2:], "--quiet",
             "--policy_steps=1", "--max_train_samples=8", "--device=cpu"]  # fmt: skip
    results = results_of(words, tmp_path / "run")
    assert results["policy_score_before"] == results["policy_judge_before"] <= 0


def test_adapters_are_merged_into_what_is_saved(words, tmp_path):
    pytest.importorskip("peft")
    results = results_of(words, tmp_path / "run", "--lora_rank=2", "--swap_test=false")
    assert results["reward_swap_accuracy"] is None
    assert not [n for n in load_file(tmp_path / "run" / "reward_model" / "model.safetensors") if "lora" in n]


def test_only_upper_layers_are_trained(words, tmp_path):
    results_of(words, tmp_path / "run", "--trained_layers=1", "--swap_test=false")
    saved = load_file(tmp_path / "run" / "reward_model" / "model.safetensors")
    model = next(word.split("=")[1] for word in words if word.startswith("--model_name"))
    before = {f"backbone.{n.removeprefix('model.')}": v for n, v in load_file(Path(model, "model.safetensors")).items()}
    changed = {name for name in before.keys() & saved.keys() if not torch.equal(before[name], saved[name])}
    assert changed == {name for name in before if "layers.0" in name or name == "backbone.norm.weight"}


def test_a_gradient_that_is_no_number_ends_reward_learning_in_one_line(words, tmp_path):
    with pytest.raises(UserError, match=r"reward (step|learning).* not finite.* a lower learning rate may help"):
        results_of(words, tmp_path / "run", "--learning_rate=1e3", "--weight_decay=1e9", "--log_every=1")


def test_scores_are_shown_in_colour_and_on_a_page(words, tmp_path, capsys):
    results_of(words, tmp_path / "run", "--num_train_epochs=0.2", "--swap_test=false")
    file = tmp_path / "pairs.csv"
    file.write_text('prompt,chosen,rejected\nthe,town,"fire \x1b[2J"\n')
    common = [f"--model={tmp_path / 'run' / 'reward_model'}", f"--input={file}", "--device=cpu"]
    capsys.readouterr()
    score_tokens.main([*common, "--form=color"])
    shown = capsys.readouterr().out
    assert "row 1, chosen: \033[48;2;" in shown and "town" in shown and "\x1b[2J" not in shown
    score_tokens.main([*common, f"--html={tmp_path / 'page.html'}", "--normalized", "--spread=even"])
    assert "row 1, rejected" in (tmp_path / "page.html").read_text()
    for flags, line in ((["--limit=0"], "at least 1"), (["--reply_columns=answer"], "no reply in answer")):
        with pytest.raises(UserError, match=line):
            score_tokens.main([*common, *flags])


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--granularty=token"], "unknown flag '--granularty'; did you mean '--granularity'?"),
        (["--granularity=word"], "'word' is not one of token, segment, sequence"),
        (["--head_init_gain=1e300"], "head_init_gain: 1e+300 is out of range; it must be at most 1e+06"),
        (["--lora_rank=9223372036854775808"], "lora_rank: 9223372036854775808 is out of range"),
        (["--stage=policy", "--policy_lora_rank=65537"], "policy_lora_rank: 65537 is out of range"),
        (["--stage=both"], "stage: 'both' is not one of reward, policy, all"),
        (["--stage=policy"], "stage=policy needs rewards: set rew_checkpoint_path"),
        (["--stage=policy", "--rew_checkpoint_path=common/builtin/causal-lm"], "has no fitted normaliser"),
        (["--stage=all", "--paid_by=known"], "paid_by=known: the true rewards need no learning"),
        (["--stage=all", "--judge_checkpoint_path=/nowhere"], "/nowhere"),
        (["--stage=all", "--policy_batch_size=7"], "policy_batch_size: 64 samples of a step"),
        (["--stage=all", "--policy_model_name_or_path=builtin/seq2seq"], "is an encoder-decoder, of which TRL trains"),
        (
            ["--stage=all", "--granularity=sequence", "--policy_model_name_or_path=builtin/causal-lm"],
            "has other tokens",
        ),
        (["--dataset_name=x"], "give either dataset_name or train_file"),
        (["--prompt_template=Q:"], "has no {prompt}"),
        (["--completions_column=answers"], "neither 'chosen' and 'rejected' nor 'answers'"),
        (["--chat_template=/nowhere"], "cannot read /nowhere"),
        (["--max_reply_length=4096"], "the backbone reads at most 128 tokens"),
        (
            ["--head_hidden_size=2048"],
            "none of the head's 2048 units reacts to the states of the backbone, which are 16",
        ),
        (["--trained_layers=1", "--lora_rank=2"], "trained_layers and lora_rank: upper layers"),
        (["--trained_layers=2"], "trained_layers: 2, but LlamaModel has 1 of them"),
        (["--trainer_options={fdsp: full_shard}"], "TrainingArguments has no 'fdsp'; did you mean 'fsdp'?"),
        (["--trainer_options={seed: 3}"], "'seed' is decided by an option of the run itself"),
        (
            ["--trainer_options={fsdp: full_shard}"],
            "trainer_options: fsdp: it needs several processes, each with a GPU",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(words, tmp_path, flags, line):
    with pytest.raises(UserError) as error:
        results_of(words, tmp_path / "run", *flags)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_every_option_has_a_default_and_an_explanation():
    names = list(ChatSettings.kinds())
    assert list(yaml.safe_load(Path(DEFAULTS).read_text())) == [option.name for option in COMMAND.explained_options]
    assert sorted(names) == sorted(option.name for option in COMMAND.explained_options)
    assert all(option.group and len(option.help) > 8 for option in COMMAND.explained_options)
    assert (
        read_command([f"--config={ROOT / 'configs' / 'chat_builtin.yaml'}"]).data.dataset_name
        == "builtin/planted-errors"
    )
