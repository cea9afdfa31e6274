"""The policy stage of chat: arms, figures, page, and going on to the bit."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraModel
from safetensors.torch import load_file

from chat_task import policy_trainer
from chat_task.models import load_rewards
from chat_task.policy_trainer import PolicyTrainer
from chat_task.settings import PolicySettings
from common.errors import Interrupted, UserError
from common.reply_rewards import ReplyRewards, RewardReading
from common.segments import GRANULARITIES, LocationNormalizer
from common.token_reward_model import TokenRewardModel
from common.training.run import open_run
from common.training.run_options import RunOptions
from common.training.tracking import MetricsLog, read_metrics
from tests import tiny_models

UNIT = LocationNormalizer(0, 0, 0, 1, 1)
PROMPTS = ["a great film", "the plot is", "long", "terrible"] * 3
SETTINGS = PolicySettings(
    policy_model_name_or_path=None, paid_by="learned", payment="reward", judge_checkpoint_path=None, discount=1.0,
    policy_eval_prompts=3,
    policy_steps=4, prompts_per_step=2, samples_per_prompt=4, policy_batch_size=4, max_reply_length=6,
    policy_learning_rate=1e-2, policy_warmup_share=0.25, baseline="leave-one-out", advantage_scale="group",
    policy_loss="grpo", kl_coeff=0.0, temperature=1.0, policy_lora_rank=0, policy_lora_alpha=16,
    gradient_checkpointing=False,
)  # fmt: skip


class EvenIds:
    """A planted reward: 1 for every token of an even id. Asks the run to stop in its call number `stop_at`."""

    def __init__(self, stop_at: int = 0):
        self.calls, self.stop_at = 0, stop_at

    def score_tokens(self, prompt_ids, completion_ids, masks):
        self.calls += 1
        if self.calls == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return (completion_ids % 2 == 0).float()


def options(folder: Path, resume: str = "none") -> RunOptions:
    return RunOptions(
        task="chat", folder=folder, all={"seed": 5}, neutral=set(), inputs={}, seed=5, device="cpu",
        num_threads=1, matmul_precision=None, mixed_precision="no", overwrite=False, resume=resume,
        extend=False, length="policy_steps",
        how_to_resume="--resume", checkpoint_path=None, checkpoint_minutes=0, checkpoint_steps=0, keep_checkpoints=1,
        trackers=(), quiet=True, verbose=False,
    )  # fmt: skip


def judge(prompts, replies, ids):
    return [len(reply) for reply in replies]


def train(
    folder: Path, settings: PolicySettings = SETTINGS, granularity: str = "token", resume: str = "none", **more: Any
):
    """A run of the stage as a runner has it; returns results.json."""
    model, tokenizer = tiny_models.make("llama")
    cut = 3.5 if granularity == "segment" else None
    surprised = tiny_models.make("llama")[0] if granularity == "segment" else None
    rewards = ReplyRewards(more.get("scorer") or EvenIds(), RewardReading(granularity, cut, normalizer=UNIT), surprised)
    with open_run(options(folder, resume)) as run:
        run.begin()
        tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message.content }} {% endfor %}"
        prompts = more.get("prompts", PROMPTS)
        trainer = PolicyTrainer(run, settings, model, tokenizer, rewards, prompts, prompts[:3], more.get("judge"))
        run.restore(trainer.load_state)
        with run.checkpoints(trainer.save_state) as checkpointer:
            trainer.train(checkpointer)
        run.finish(trainer.results(), lambda: trainer.save(run.folder.policy))
    return json.loads((folder / "results.json").read_text())


def events(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in event.items() if k != "seconds"} for event in read_metrics(folder / "metrics.jsonl")]


def test_arms_share_their_first_samples_and_differ_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(policy_trainer, "LAST_STEPS", 2)
    logs = []
    for granularity in GRANULARITIES:
        results = train(tmp_path / granularity, granularity=granularity, judge=judge)
        assert results["rollouts"] == 32
        assert {"policy_score_before", "policy_reply_length_after", "policy_judge_after"} <= results.keys()
        logs.append(events(tmp_path / granularity))
        assert [event["phase"] for event in logs[-1]] == ["eval", *["policy"] * 4, "eval"]
        judged = [event["policy/judge"] for event in logs[-1] if event["phase"] == "policy"]
        assert results["policy_samples_judge"] == pytest.approx(sum(judged[-2:]) / 2)
        assert {"policy/score", "policy/judge", "policy/reply_length", "policy/entropy"} <= logs[-1][1].keys()
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    names = {name for log in logs for event in log for name in event} - {"phase", "round", "step"}
    assert [name for name in sorted(names) if f"`{name}`" not in documented] == []
    firsts = [(log[1]["policy/judge"], log[1]["policy/entropy"]) for log in logs]
    assert firsts[0] == firsts[1] == firsts[2]
    assert len({log[4]["policy/entropy"] for log in logs}) == 3


def test_trackers_get_a_few_replies_before_and_after(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(MetricsLog, "texts", lambda log, step, rows: shown.append((step, rows)))
    train(tmp_path / "run", replace(SETTINGS, policy_steps=2))
    assert [(step, len(rows)) for step, rows in shown] == [(0, 3), (2, 3)]
    assert [row["prompt"] for row in shown[0][1]] == PROMPTS[:3]
    assert {*shown[0][1][0]} == {"prompt", "reply", "score"}


def test_the_planted_reward_is_learnt_with_adapters(tmp_path):
    settings = replace(SETTINGS, policy_steps=30, prompts_per_step=4, policy_batch_size=16, policy_lora_rank=4)
    results = train(tmp_path / "run", replace(settings, policy_learning_rate=5e-2))
    assert results["policy_score_after"] > results["policy_score_before"] + 0.2
    saved = load_file(tmp_path / "run" / "policy" / "model.safetensors")
    assert saved.keys() == tiny_models.make("llama")[0].state_dict().keys()  # merged


def test_a_policy_that_is_saved_without_what_it_learnt_is_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)
    with pytest.raises(UserError, match="is not what was trained"):
        train(tmp_path / "run", replace(SETTINGS, policy_steps=2, policy_lora_rank=4, policy_learning_rate=0.1))
    assert not (tmp_path / "run" / "results.json").exists()


def test_it_goes_on_to_the_bit_after_a_signal(tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", scorer=EvenIds(stop_at=3))  # one call for the replies before, one for each step
    assert len(events(tmp_path / "cut")) == 3
    again = train(tmp_path / "cut", resume="auto")
    assert again == whole
    assert events(tmp_path / "cut") == events(tmp_path / "whole")
    saved = [load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_prompts_may_be_messages(tmp_path):
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    results = train(tmp_path / "run", replace(SETTINGS, policy_steps=1), prompts=messages, judge=judge)
    as_text = train(
        tmp_path / "text", replace(SETTINGS, policy_steps=1), prompts=[f"{p} " for p in PROMPTS], judge=judge
    )
    assert results == as_text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy_batch_size": 3}, "policy_batch_size: 8 samples of a step"),
        ({"prompts_per_step": 13, "policy_batch_size": 4}, "prompts_per_step: 13, but there are 12 prompts"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        train(tmp_path / "run", replace(SETTINGS, **changes))


def test_a_reward_model_has_to_be_fitted_for_the_granularity(tmp_path):
    name = tiny_models.save("llama", tmp_path / "lm")
    tokenizer = tiny_models.make("llama")[1]
    TokenRewardModel.from_backbone(name).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    with pytest.raises(UserError, match="has no fitted normaliser"):
        load_rewards(tmp_path / "reward", "token", tokenizer)
    RewardReading("segment", 2.0, name, UNIT).save(tmp_path / "reward")
    with pytest.raises(UserError, match="is read by segment, not token"):
        load_rewards(tmp_path / "reward", "token", tokenizer)
    rewards = load_rewards(tmp_path / "reward", "segment", tokenizer)
    assert rewards.entropy_model is not None
    assert rewards.reading.cut == 2.0


TWO_PROCESSES = """
    import sys
    from contextlib import suppress
    from pathlib import Path
    from common.errors import Interrupted
    from tests.chat_task.test_policy_trainer import EvenIds, train

    with suppress(Interrupted):
        train(Path(sys.argv[1]), scorer=EvenIds(stop_at=int(sys.argv[2])), resume="auto")
"""


@pytest.mark.slow
def test_two_processes_go_on_to_the_bit(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    for name, stop_at in (("whole", 0), ("cut", 3), ("cut", 0)):
        subprocess.run([*command, str(tmp_path / name), str(stop_at)], check=True, env=environment, timeout=300)
        assert (tmp_path / name / "results.json").is_file() == (stop_at == 0)
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["rollouts"] == 32
    assert len(events(tmp_path / "whole")) == 6
    assert events(tmp_path / "cut") == events(tmp_path / "whole")
    saved = [load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_what_overflows_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"policy learning: weights are not finite after 1 steps; a lower"):
        train(tmp_path / "last", replace(SETTINGS, policy_steps=1, policy_warmup_share=0, policy_learning_rate=1e39))
    with pytest.raises(UserError, match=r"policy learning: weights are not finite after 1 steps; a lower"):
        train(tmp_path / "run", replace(SETTINGS, policy_warmup_share=0, policy_learning_rate=1e39))
