"""Runs on the built-in models that are killed (SIGKILL) again and again end as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TIMED = {"wall_seconds", "seconds_in_this_process", "peak_memory_mib"}

# Checkpoints at every other step, so that many kills meet one being written.
PROMPT = [
    str(ROOT / "prompt_task" / "run_fsc.py"), "--config-name=builtin", "max_train_steps=60", "reward_retrain_period=25",
    "rew_max_train_steps=24", "rew_num_train_epochs=6", "rew_validation_batches=2", "early_stop_eval_period=20",
    "num_validation_prompts=16", "candidate_steps=30", "num_candidates=4", "checkpoint_steps=2", "quiet=true",
]  # fmt: skip
SUMMARY = [
    str(ROOT / "sum_task" / "run_sum.py"), f"--config={ROOT / 'configs' / 'sum_builtin.yaml'}",
    "--max_train_samples=96", "--max_eval_samples=16", "--max_predict_samples=16", "--num_train_epochs=3",
    "--rew_num_train_epochs=2", "--preference=rouge1", "--checkpoint_steps=2", "--quiet",
]  # fmt: skip
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
LAUNCH += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]

KINDS = {
    "prompt": (PROMPT, "output_folder={}", "resume=auto", ("prompts.csv", "policy/adaptor.safetensors")),
    "summary": (SUMMARY, "--output_dir={}", "--resume", ("predictions.jsonl", "policy/model.safetensors")),
    "two processes": (
        [*LAUNCH, *SUMMARY], "--output_dir={}", "--resume", ("predictions.jsonl", "policy/model.safetensors")
    ),
}  # fmt: skip


def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, *words], env=ENVIRONMENT, stdout=file, stderr=file, start_new_session=True
        )


def outcome(folder: Path, files: tuple[str, ...]) -> dict[str, object]:
    """Everything that must be equal to the last bit; only clock and memory may differ."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    found: dict[str, object] = {"results": {k: v for k, v in results.items() if k not in TIMED}}
    return found | {name: (folder / name).read_bytes() for name in (*files, "reward_model/model.safetensors")}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("kind", "kills"), [("prompt", 20), ("summary", 20), ("two processes", 5)])
def test_a_run_killed_at_random_instants_ends_as_one_that_was_not(kind, kills, tmp_path):
    command, output, resume, files = KINDS[kind]
    log = tmp_path / "log"
    began = time.monotonic()
    whole = start([*command, output.format(tmp_path / "whole")], log)
    while not list(tmp_path.glob("whole/checkpoints/step-*")):
        assert whole.poll() is None, log.read_text()[-3000:]
        time.sleep(0.1)
    startup = time.monotonic() - began
    assert whole.wait() == 0, log.read_text()[-3000:]
    seconds = time.monotonic() - began
    expected = outcome(tmp_path / "whole", files)

    # At least four instants in each run; a run that ends before it was killed is compared, and the next one begins.
    instants = random.Random(0)
    killed, number = 0, 0
    while killed < kills:
        folder = tmp_path / f"run-{number}"
        process = start([*command, output.format(folder), resume], log)
        try:
            code = process.wait(instants.uniform(0, startup + (seconds - startup) / 4))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            continue
        assert code == 0, log.read_text()[-3000:]
        assert outcome(folder, files) == expected
        number += 1
    folder = tmp_path / f"run-{number}"
    assert start([*command, output.format(folder), resume], log).wait() == 0, log.read_text()[-3000:]
    assert outcome(folder, files) == expected
    assert "Traceback" not in log.read_text()
