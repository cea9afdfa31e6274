"""Peak memory of one way of doing things, measured in a process of its own. Started by prompt_task_speed.py."""

from common.training.program import run_command

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from common.training.console import Parser
from prompt_task.task_lm import make_task_lm
from scripts.benchmarks import models
from scripts.benchmarks.measuring import peak_mib, reset_peak, resident_mib
from scripts.benchmarks.project import Project
from scripts.benchmarks.straightforward import Straightforward

WAYS = ("straightforward", "project")


def in_own_process(way: str, arguments: argparse.Namespace) -> dict[str, float]:
    """What `measure` finds, from a fresh process."""
    words = [sys.executable, "-m", "scripts.benchmarks.memory", "--way", way]
    words += ["--threads", str(arguments.threads), "--seed", str(arguments.seed)]
    words += ["--base_path", arguments.base_path] if arguments.base_path else []
    words += ["--tiny"] if arguments.tiny else []
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(words, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return {name: float(value) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}


def measure(way: str, setting: models.Setting, seed: int, folder: Path) -> dict[str, float]:
    """MiB of this process at three stages of one way.

    ``states``: held once all weights and optimizer states are there. ``scoring``: what scoring the prompts of a log
    line adds to that at its peak. ``peak``: the most held over scoring, a step of reward learning and a policy step.
    """
    policy, reward_model = models.make_policy(setting), models.make_reward_model(setting)
    task_model = models.make_masked_lm(setting)
    count = setting.settings.reward.prompt_train_batch_size
    if way == "straightforward":
        plain = Straightforward(
            task_model, setting.task_tokenizer, setting.spec, setting.splits.train, policy, reward_model,
            setting.settings,
        )  # fmt: skip
        make_states(plain.reward_optimizer, plain.policy_optimizer)
        prompts = setting.policy_tokenizer.batch_decode(plain.sample(count))
        states, scoring = _added(lambda: plain.score(prompts, plain.examples))
        plain.reward_update(plain.sample(count), torch.rand(count))
        plain.policy_update(plain.sample(setting.settings.policy.num_reinforce_samples))
    else:
        task_lm = make_task_lm(task_model, setting.task_tokenizer, setting.spec, torch.device("cpu"), True)
        project = Project(setting, task_lm, policy, reward_model, seed, folder)
        stand_in = torch.optim.Adam(reward_model.parameters())  # the round's own has no states before its first step
        make_states(stand_in, project.policy_trainer.optimizer)
        states, scoring = _added(project.begin_round)
        del stand_in
        project.set_pool(project.known_prompts(count))
        project.reward_step()
        project.validate_reward()
        project.policy_step(logged=True)
    return {"states": states, "scoring": scoring, "peak": max(peak_mib(), states + scoring)}


def make_states(*optimizers: torch.optim.Optimizer) -> None:
    """Let Adam make its states, as after a first step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.zeros_like(weight)
        optimizer.step()
        optimizer.zero_grad()


def _added(work: Callable[[], object]) -> tuple[float, float]:
    reset_peak()
    states = resident_mib()
    work()
    return states, peak_mib() - states


def main(words: Sequence[str] | None = None) -> None:
    """Measure one way and print it as JSON."""
    parser = Parser("scripts/benchmarks/memory.py", __doc__)
    models.add_arguments(parser)
    parser.add_argument("--way", choices=WAYS, required=True)
    arguments = parser.parse_args(words)
    models.start(arguments.threads, arguments.seed)
    setting = models.make_setting("sst-2", arguments.base_path, arguments.tiny)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments.way, setting, arguments.seed, Path(folder))))


if __name__ == "__main__":
    run_command(main)
