"""What no CPU can show: both tasks on CUDA. Run by `bash scripts/benchmarks/gpu.sh`."""

import math

import pytest
import torch

from common.checks import check_values
from prompt_task.run_fsc import run as run_prompts
from sum_task.data import load_splits
from sum_task.run_sum import run as run_summaries
from sum_task.sampling import sample_summaries
from sum_task.tokenizing import tokenize
from tests.sum_task.conftest import stand_in_for_wordnet
from tests.sum_task.tiny import TinyWorld

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyWorld(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("kind", ["masked", "left_to_right"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompts(world, tmp_path, kind, dtype):
    command = world.command(
        task_lm=getattr(world, kind), task_lm_dtype=dtype, device="cuda", output_folder=str(tmp_path / "run")
    )
    results = run_prompts(command)
    assert 0 <= results["test_accuracy"] <= 1
    assert results["peak_memory_mib"]["cuda"] > 0


@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_summaries(tiny, tmp_path, monkeypatch, kind, precision):
    stand_in_for_wordnet(monkeypatch)
    results = run_summaries(
        tiny.settings(
            model_name_or_path=getattr(tiny, kind), device="cuda", mixed_precision=precision, reinforce_coeff=0.5,
            output_dir=tmp_path / "run",
        )
    )  # fmt: skip
    assert math.isfinite(results["test_rougeL"])


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_samples_are_those_of_a_cpu_and_are_not_waited_for_at_each_token(tiny, kind):
    rows = load_splits(train_file=tiny.train, validation_file=tiny.train).train

    def sampled(device: str) -> list[list[int]]:
        policy = tiny.policy(model_name_or_path=getattr(tiny, kind))
        policy.to(torch.device(device))
        batch = policy.collator()(tokenize(rows, policy.format, 7), [0, 1, 2]).to(policy.device)
        noise = torch.rand(9, 7, generator=torch.Generator().manual_seed(1))
        return sample_summaries(policy, policy.encode(batch.sources), 3, noise, None, 1.0).lists()

    assert sampled("cuda") == sampled("cpu")


def test_values_are_checked_without_waiting():
    check_values(torch.ones(3, device="cuda") > 0, "fine")
    torch.cuda.set_sync_debug_mode("error")
    try:
        check_values(torch.ones(3, device="cuda") > 0, "fine")
    finally:
        torch.cuda.set_sync_debug_mode("default")
