"""What a GPU does with both tasks: tests, speed, memory, a published run. Called by scripts/benchmarks/gpu.sh.

    python -m scripts.benchmarks.gpu --base_path DATA --output outputs/gpu

Models have random weights and published sizes (policy and reward model of prompts: distilgpt2; their task LM:
roberta-large's; summaries: t5-small); texts are those that ship with the project, batch sizes the published ones. A
step is done once before it is timed. fp32 and TF32 are `matmul_precision=highest` and `high`; bf16 is
`task_lm_dtype=bfloat16` for scoring and `mixed_precision=bf16` for summaries. All of it works on a CPU too, where no
peak of memory is measured.
"""

from common.training.program import run_command

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from common.builtin import resolve
from common.training.console import Parser
from common.training.files import write_json_atomic, write_text_atomic
from common.training.runtime import DTYPES, choose_device, hardware
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.task_lm import make_task_lm
from scripts.benchmarks import models, sum_models
from scripts.benchmarks.measuring import environment, number, table
from scripts.benchmarks.project import Project

ROOT = Path(__file__).resolve().parents[2]
ARITHMETIC = {"fp32": "highest", "TF32": "high", "bf16": "high"}
LARGE = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
PUBLISHED_STEPS = 300


def main(words: Sequence[str] | None = None) -> int:
    """Test, measure, run, write the report."""
    parser = Parser("scripts/benchmarks/gpu.py", __doc__)
    parser.add_argument("--base_path", help="folder that holds 16-shot/sst-2, for the published run")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs", "gpu"), help="folder of the report (outputs/gpu)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="steps that are timed (5)")
    parser.add_argument("--tiny", action="store_true", help="tiny models: does everything work? Not for measuring")
    parser.add_argument("--no_tests", action="store_true", help="leave out the tests that need a GPU")
    arguments = parser.parse_args(words)
    device = choose_device(arguments.device)
    parts = [f"# {hardware(device)}" + (" (TINY MODELS)" if arguments.tiny else ""), _versions()]
    if not arguments.no_tests:
        parts += ["## Tests that need a GPU", f"```\n{run_tests()}\n```"]
    figures = measure(device, arguments.tiny, arguments.repeats)
    parts += ["## Steps", report(figures)]
    parts += ["## Published prompt run", published_run(arguments.base_path, arguments.output, str(device))]
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json_atomic(arguments.output / "figures.json", {"environment": environment(), "steps": figures})
    write_text_atomic(arguments.output / "report.md", "\n\n".join(parts) + "\n")
    print("\n\n".join(parts))
    print(f"\n{arguments.output / 'report.md'}", file=sys.stderr)
    return 0


def _versions() -> str:
    found = environment()
    return (
        f"torch {found['torch']}, transformers {found['transformers']}, CUDA {torch.version.cuda}, {found['machine']}."
    )


def run_tests() -> str:
    """The last line of the tests with the mark `gpu`."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return "\n".join([*failed, done.stdout.strip().splitlines()[-1]])


@contextmanager
def _arithmetic(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(ARITHMETIC[name])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _timed(work: Callable[[], Any], device: torch.device, repeats: int) -> dict[str, float]:
    """Mean seconds of a piece of work that was done once before, and the peak of the GPU's memory in MiB."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    wait()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    seconds = (time.perf_counter() - began) / repeats
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
    return {"seconds": seconds, "peak_mib": peak}


def measure(device: torch.device, tiny: bool, repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Each step in each arithmetic that it has."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in ARITHMETIC:
        with _arithmetic(name), tempfile.TemporaryDirectory() as folder:
            print(f"... {name}", file=sys.stderr, flush=True)
            for steps in (prompt_steps, summary_steps):  # one after the other, so that the models of one alone are held
                for step, work in steps(name, device, tiny, Path(folder)).items():
                    found.setdefault(step, {})[name] = _timed(work, device, repeats)
    return found


def prompt_steps(name: str, device: torch.device, tiny: bool, folder: Path) -> dict[str, Callable[[], Any]]:
    """Scoring in the arithmetic; in fp32 and TF32 the steps of both models too, which compute in float32."""
    setting = models.make_setting("reviews", "builtin/data", tiny)
    if not tiny:
        setting = replace(setting, sizes=replace(setting.sizes, roberta=setting.sizes.roberta | LARGE))
    dtype = DTYPES["bfloat16" if name == "bf16" else "float32"]
    model = models.make_masked_lm(setting)
    torch.nn.Module.to(model, device, dtype)
    task_lm = make_task_lm(model, setting.task_tokenizer, setting.spec, device, is_mask_lm=True)
    policy, reward_model = models.make_policy(setting).to(device), models.make_reward_model(setting)
    torch.nn.Module.to(reward_model, device)
    project = Project(setting, task_lm, policy, reward_model, 0, folder, str(device))
    generator = torch.Generator().manual_seed(0)
    count = setting.settings.reward.prompt_train_batch_size

    def score() -> None:
        prompts = policy.texts(policy.sample(count, generator, setting.settings.policy.top_k).tokens)
        PromptScorer(task_lm, setting.splits.train).score(prompts)

    steps: dict[str, Callable[[], Any]] = {f"prompts: scoring {count} x {len(setting.splits.train)}": score}
    if name == "bf16":
        return steps
    project.begin_round()
    project.set_pool(project.known_prompts(count))
    return steps | {
        "prompts: reward step, prompts scored before": project.reward_step,
        "prompts: policy step": lambda: project.policy_step(logged=False),
    }


def summary_steps(name: str, device: torch.device, tiny: bool, folder: Path) -> dict[str, Callable[[], Any]]:
    """A step of reward learning and one of the policy."""
    data = str(Path(resolve("builtin/data")) / "reports" / "train.jsonl")
    length = 24 if tiny else 512
    setting = sum_models.make_sum_setting(data, str(resolve("builtin/seq2seq")), length, True, tiny)
    precision = "bf16" if name == "bf16" else "no"
    project = sum_models.SumProject(
        setting,
        sum_models.make_policy_lm(setting),
        sum_models.make_reward_model(setting),
        folder,
        str(device),
        precision,
    )
    reward, policy = project.reward_batches(), project.policy_batches()
    return {
        f"summaries: reward step, sources of {length} tokens": lambda: project.reward_steps(reward[:1]),
        f"summaries: policy step, sources of {length} tokens": lambda: project.policy_step(policy[0]),
    }


def report(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    """The steps as a table: milliseconds and MiB in each arithmetic."""
    rows = []
    for step, found in figures.items():
        cells = [found.get(name) for name in ARITHMETIC]
        times = ["" if cell is None else number(1000 * cell["seconds"]) for cell in cells]
        peaks = ["" if cell is None or not cell["peak_mib"] else number(cell["peak_mib"]) for cell in cells]
        rows.append([step, *times, *peaks])
    return table(["", *(f"{name}, ms" for name in ARITHMETIC), *(f"{name}, peak MiB" for name in ARITHMETIC)], rows)


def published_run(base_path: str | None, output: Path, device: str) -> str:
    """The first steps of `run_fsc.py` with published settings, or why there are none."""
    if base_path is None:
        return "Not run: no --base_path."
    for name in ("roberta-large", "distilgpt2"):
        try:
            AutoConfig.from_pretrained(name)
        except OSError:
            return f"Not run: {name} cannot be loaded."
    words = ["dataset=sst-2", f"base_path={base_path}", f"max_train_steps={PUBLISHED_STEPS}", "rew_max_train_steps=500"]
    words += ["rew_num_train_epochs=5", "early_stop_eval_period=100", f"device={device}", "overwrite=true"]
    began = time.perf_counter()
    command = [sys.executable, "prompt_task/run_fsc.py", *words, f"output_folder={(output / 'run').resolve()}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    last = (done.stdout if done.returncode == 0 else done.stderr).strip()[-2000:]
    return f"`python prompt_task/run_fsc.py {' '.join(words)}`: {seconds:.0f} s\n\n```\n{last}\n```"


if __name__ == "__main__":
    run_command(main)
