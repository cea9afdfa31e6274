"""Reward learning in two processes: the figures of one, and going on to the bit after a kill."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.training.command_line import ROOT
from common.training.tracking import read_metrics
from tests.chat_task.tiny import ranking_sets
from tests.sum_task.tiny import save_llama, word_tokenizer

# A run, of which every process is killed before the step that KILL_AT names. FSDP divides a model among processes on
# CPUs as well, where accelerate would do without it.
RUN = """
    import os, signal, sys
    from accelerate import DistributedType
    from accelerate.state import AcceleratorState
    from chat_task import run_chat
    from chat_task.command_line import read_command
    from chat_task.trainer_in_run import RunCallback

    begin = RunCallback.on_step_begin
    def on_step_begin(self, args, state, control, **more):
        begin(self, args, state, control, **more)
        if state.global_step == int(os.environ["KILL_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
    RunCallback.on_step_begin = on_step_begin

    start = AcceleratorState.__init__
    def wrap_on_cpus_too(self, *given, fsdp_plugin=None, **more):
        start(self, *given, fsdp_plugin=fsdp_plugin, **more)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
    AcceleratorState.__init__ = wrap_on_cpus_too
    run_chat.run(read_command(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Starts a run in a folder's `name` with so many processes, and gives the folder."""
    folder = tmp_path_factory.mktemp("processes")
    model = save_llama(folder / "lm", word_tokenizer())
    rows = [{"prompt": s.prompt, "completions": s.replies, "scores": s.scores} for s in ranking_sets(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.py").write_text(textwrap.dedent(RUN))

    def start(name: str, processes: int, kill_at: int = -1, *more: str, fsdp: bool = False) -> Path:
        words = [
            f"--train_file={folder / 'rows.jsonl'}", f"--model_name_or_path={model}", "--validation_share=0.2",
            "--max_train_samples=40", "--max_eval_samples=8", "--max_prompt_length=16", "--max_reply_length=16",
            "--agg_func=sum", "--head_hidden_size=16", "--learning_rate=1e-2", "--num_train_epochs=2", "--log_every=1",
            f"--per_device_train_batch_size={8 // processes}", f"--per_device_eval_batch_size={8 // processes}",
            "--gradient_accumulation_steps=1", "--eval_steps=4", "--quiet", f"--output_dir={folder / name}", *more,
        ]  # fmt: skip
        command = [sys.executable, str(folder / "run.py"), *words]
        if processes > 1:
            command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "KILL_AT": str(kill_at)}
        if fsdp:
            environment |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
            environment |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
        done = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True)
        assert (done.returncode == 0) == (kill_at < 0), done.stderr[-3000:]
        return folder / name

    return start


def figures(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in event.items() if k != "seconds"} for event in read_metrics(folder / "metrics.jsonl")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "reward_model" / "model.safetensors")


@pytest.mark.slow
def test_two_processes_find_what_one_does(run):
    one, two = run("one", 1), run("two", 2)
    for alone, shared in zip(figures(one), figures(two), strict=True):
        assert shared.pop("phase") == alone.pop("phase")
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-5)
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, rtol=1e-3, atol=1e-5)
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    assert results[1]["processes"] == 2
    numbers = {name for name, value in results[0].items() if name.startswith("reward_") and isinstance(value, float)}
    assert "reward_rank_accuracy" in numbers
    for name in numbers:
        assert results[1][name] == pytest.approx(results[0][name], rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on_to_the_bit(run):
    whole = run("whole", 2)
    killed = run("killed", 2, 6, "--checkpoint_steps=2", "--checkpoint_minutes=0")
    assert not (killed / "results.json").exists()
    run("killed", 2, -1, "--resume", "--checkpoint_steps=2", "--checkpoint_minutes=0")
    assert figures(killed) == figures(whole)
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(killed).items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "rounding"),
    [
        ((), 1e-5),
        (("--rew_head=likelihood",), 1e-5),  # embeddings and LM head are one
        (("--lora_rank=4", "--lora_alpha=8"), 1e-5),
        (("--mixed_precision=bf16",), 0.05),
    ],
)
def test_a_model_in_parts_learns_what_a_whole_one_does(run, options, rounding):
    name = "-".join(("", "whole", *options))
    one, parts = run(f"one{name}", 1, -1, *options), run(f"parts{name}", 2, -1, *options, fsdp=True)
    assert weights(parts).keys() == weights(one).keys()
    for weight, value in weights(one).items():
        torch.testing.assert_close(weights(parts)[weight], value, rtol=rounding, atol=rounding)
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, parts)]
    for figure in ("reward_loss", "reward_rank_accuracy", "reward_swap_accuracy", "reward_token_std"):
        assert results[1][figure] == pytest.approx(results[0][figure], rel=rounding, abs=rounding), figure


@pytest.mark.slow
def test_a_model_in_parts_goes_on_to_the_bit(run):
    whole = run("whole-parts", 2, fsdp=True)
    killed = run("killed-parts", 2, 6, "--checkpoint_steps=2", "--checkpoint_minutes=0", fsdp=True)
    run("killed-parts", 2, -1, "--resume", "--checkpoint_steps=2", "--checkpoint_minutes=0", fsdp=True)
    assert figures(killed) == figures(whole)
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(killed).items())
