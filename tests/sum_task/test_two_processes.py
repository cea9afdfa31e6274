"""Two processes with half the batch do what one does; nothing is counted twice."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from common.training.tracking import read_metrics
from sum_task.command_line import ROOT
from sum_task.run_sum import run
from tests.engines import pretended

# A stand-in for the command's own file: METEOR needs WordNet, which a test machine may lack.
LAUNCHED = """
import sys
from sum_task import evaluation_metrics
from sum_task.run_sum import main

evaluation_metrics.Meteor = lambda: lambda predictions, references: [0.5] * len(predictions)
evaluation_metrics.require_wordnet = lambda: None
sys.exit(main())
"""


def test_rows_are_shared_without_rest_or_overlap():
    shares = [pretended(rank, 3).share(range(7)) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(7))


@pytest.mark.parametrize(
    ("guidance", "device"),
    [
        ("token", "cpu"),
        pytest.param("credit", "cpu", marks=pytest.mark.slow),
        pytest.param("none", "auto", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("without_wordnet")
def test_two_processes_equal_one(tiny, tmp_path, guidance, device):
    if device == "auto" and torch.cuda.device_count() == 1:
        pytest.skip("two processes and one GPU")
    # 12 training rows in batches of 8: the last holds 4; 5 validation rows in batches of 4: the last holds one, and a
    # process none.
    # Three epochs, so that rewards of references are met again that the other process has computed.
    credit = {"guidance": "token", "credit": "product", "rew_head": "likelihood", "weight_shares": "batch"}
    options = credit if guidance == "credit" else {"guidance": guidance}
    options = options | {"sampling_top_k": 5, "max_eval_samples": 5, "rew_num_train_epochs": 2}
    options |= {"num_train_epochs": 3, "reward_retrain_epochs": 1, "device": device}
    if guidance == "token":
        options |= {"reinforce_coeff": 0.3, "max_entropy_coeff": 0.1}
    one, two = tmp_path / "one", tmp_path / "two"
    sizes = ("per_device_train_batch_size", "reward_learning_batch_size", "per_device_eval_batch_size")
    expected = run(tiny.settings(output_dir=one, **options, **dict.fromkeys(sizes, 8)))
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    words = tiny.words(output_dir=two, **options, **dict.fromkeys(sizes, 4))
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no"
    launch += " --dynamo_backend=no --main_process_port=0"
    done = subprocess.run(
        [sys.executable, *launch.split(), str(script), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    results = json.loads((two / "results.json").read_text())
    assert results["processes"] == 2
    for name, value in expected.items():
        if name.startswith(("test_", "reward_")) and isinstance(value, float):
            assert results[name] == pytest.approx(value, abs=1e-5, nan_ok=True) or value != value, name
    assert (one / "predictions.jsonl").read_text() == (two / "predictions.jsonl").read_text()
    for part in ["policy"] + (["reward_model"] if guidance != "none" else []):
        a, b = (load_file(folder / part / "model.safetensors") for folder in (one, two))
        assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a), part
    events = [read_metrics(folder / "metrics.jsonl") for folder in (one, two)]
    assert len(events[0]) == len(events[1])  # the main process alone writes
    for a, b in zip(*events, strict=True):
        for name, value in a.items():
            if name != "seconds" and not name.startswith("perf/") and value is not None:
                assert b[name] == pytest.approx(value, abs=1e-5), name
    assert done.stdout.count("policy steps in") == 1
