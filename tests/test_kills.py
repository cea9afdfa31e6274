"""Runs on the built-in models that are killed (SIGKILL) again and again end as if nothing had happened."""

import dataclasses
import random
import subprocess
import time

import pytest

from scripts.benchmarks.soak import kill, prompt_command, summary_command

# Checkpoints at every other step, so that many kills meet one being written.
PROMPT = (
    "max_train_steps=60", "reward_retrain_period=25", "rew_max_train_steps=24", "rew_num_train_epochs=6",
    "rew_validation_batches=2", "early_stop_eval_period=20", "num_validation_prompts=1", "candidate_steps=30",
    "num_candidates=4", "checkpoint_steps=2",
)  # fmt: skip
SUMMARY = (
    "--max_train_samples=96", "--max_eval_samples=16", "--max_predict_samples=16", "--num_train_epochs=3",
    "--rew_num_train_epochs=2", "--preference=rouge1", "--checkpoint_steps=2",
)  # fmt: skip
LAUNCH = (
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
    "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0",
)  # fmt: skip

COMMANDS = {
    "prompt": prompt_command(*PROMPT),
    "summary": summary_command(*SUMMARY),
    "prompt, two processes": dataclasses.replace(
        prompt_command(*PROMPT), words=(*LAUNCH, *prompt_command(*PROMPT).words)
    ),
    "two processes": summary_command(*SUMMARY, launcher=LAUNCH),
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "kills"), [("prompt", 20), ("summary", 20), ("two processes", 5), ("prompt, two processes", 5)]
)
def test_a_run_killed_at_random_instants_ends_as_one_that_was_not(kind, kills, tmp_path):
    command = COMMANDS[kind]
    log = tmp_path / "log"
    began = time.monotonic()
    whole = command.start(tmp_path / "whole", log)
    while not list(tmp_path.glob("whole/checkpoints/step-*")):
        assert whole.poll() is None, log.read_text()[-3000:]
        time.sleep(0.1)
    startup = time.monotonic() - began
    assert whole.wait() == 0, log.read_text()[-3000:]
    seconds = time.monotonic() - began
    expected = command.outcome(tmp_path / "whole")

    # At least four instants in each run; a run that ends before it was killed is compared, and the next one begins.
    instants = random.Random(0)
    killed, number = 0, 0
    while killed < kills:
        folder = tmp_path / f"run-{number}"
        process = command.start(folder, log, resume=True)
        try:
            code = process.wait(instants.uniform(0, startup + (seconds - startup) / 4))
        except subprocess.TimeoutExpired:
            kill(process)
            killed += 1
            continue
        assert code == 0, log.read_text()[-3000:]
        assert command.outcome(folder) == expected
        number += 1
    folder = tmp_path / f"run-{number}"
    assert command.start(folder, log, resume=True).wait() == 0, log.read_text()[-3000:]
    assert command.outcome(folder) == expected
    assert "Traceback" not in log.read_text()
