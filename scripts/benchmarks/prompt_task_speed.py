"""Speed and memory of the prompt task against the straightforward way, both measured in one run.

    python -m scripts.benchmarks.prompt_task_speed --base_path DATA --output speed.json

Models have random weights and published sizes (policy and reward model: distilgpt2; task LM: roberta-base); texts are
those of SST-2, batch sizes and periods those of configs/fsc_config.yaml. The straightforward way is
scripts/benchmarks/straightforward.py. Both ways take turns in one process, with one thread by default, and must give
the same numbers. Memory is that of one process for each way. DATA holds 16-shot/sst-2.
"""

from common.training.program import run_command

import argparse
import copy
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.training.console import Parser
from prompt_task.few_shot_data import fill_template
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.ranked_prompts import RankedPrompts, draw_sets
from prompt_task.settings import FewShotSettings
from prompt_task.task_lm import make_task_lm
from scripts.benchmarks import memory, models
from scripts.benchmarks.measuring import Clock, described, environment, finish, number, table
from scripts.benchmarks.project import Project
from scripts.benchmarks.straightforward import Straightforward
from scripts.benchmarks.whole_run import Prices, count_rounds, whole_run

TOLERANCE = 1e-5
SHORT_ROUND = 20  # epochs after which early stopping ends a round, in the second composition of a run


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print a report in Markdown, write the figures."""
    parser = Parser("scripts/benchmarks/prompt_task_speed.py", __doc__)
    models.add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=2, help="turns of each way (2); the median counts")
    parser.add_argument("--no_memory", action="store_true", help="leave out the measurement of memory")
    arguments = parser.parse_args(words)
    models.start(arguments.threads, arguments.seed)
    before = environment()
    # Memory first: while this process is small, so is what the children inherit from it.
    figures: dict[str, Any] = {"environment": before, "tiny": arguments.tiny}
    if not arguments.no_memory:
        figures["memory"] = {way: _say(way, memory.in_own_process, way, arguments) for way in memory.WAYS}
    with tempfile.TemporaryDirectory() as folder:
        figures |= measure(arguments, Path(folder))
    print(report(figures, described(before)))
    finish(arguments.output, figures)
    return 0


def _say(what: str, work: Any, *arguments: Any) -> Any:
    print(f"... {what}", file=sys.stderr, flush=True)
    return work(*arguments)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Check that both ways agree, then time them in turns."""
    setting = models.make_setting("sst-2", arguments.base_path, arguments.tiny)
    policy, reward_model = models.make_policy(setting), models.make_reward_model(setting)
    whole = models.make_masked_lm(setting)
    narrowed = make_task_lm(copy.deepcopy(whole), setting.task_tokenizer, setting.spec, torch.device("cpu"), True)
    plain = Straightforward(
        whole, setting.task_tokenizer, setting.spec, setting.splits.train, policy, reward_model, setting.settings
    )
    project = Project(setting, narrowed, policy, reward_model, arguments.seed, folder)
    count, train = setting.settings.reward.prompt_train_batch_size, len(setting.splits.train)
    tokens = plain.sample(count)
    differences = _say("both ways on the same input", compare, plain, project, tokens)

    clocks = {way: {part: Clock() for part in PARTS} for way in memory.WAYS}
    kept = round(setting.settings.reward.reward_example_share * train)
    scored = project.dev_scorer.pairs_scored
    clocks["project"]["scoring"].time(project.begin_round)
    _expect(project.dev_scorer.pairs_scored - scored, 2 * count * len(setting.splits.dev))  # and a swap of each
    for turn in range(arguments.repeats):
        ours, theirs = clocks["project"], clocks["straightforward"]
        print(f"... turn {turn + 1}", file=sys.stderr, flush=True)
        theirs["reward step"].time(plain.reward_step)
        _expect(ours["reward step"].time(project.reward_step), count * kept)
        theirs["policy step"].time(plain.policy_step)
        for _ in range(3):
            _expect(ours["policy update"].time(lambda: project.policy_step(logged=False)), 0)
        _expect(ours["policy step"].time(lambda: project.policy_step(logged=True)), count * train)
        theirs["policy update"].time(
            lambda: plain.policy_update(plain.sample(setting.settings.policy.num_reinforce_samples))
        )
        project.set_pool(project.known_prompts(count))
        for _ in range(3):
            _expect(ours["reward update"].time(project.reward_step), 0)
            ours["reward validation"].time(project.validate_reward)
        project.set_pool(None)
        theirs["reward update"].time(lambda: plain.reward_update(tokens, torch.rand(count)))
        theirs["reward validation"].time(lambda: _plain_validation(plain, tokens))
    return {
        "seconds": {way: {part: asdict(clock) for part, clock in own.items()} for way, own in clocks.items()},
        "text": _text_lengths(setting, project.policy.texts(tokens)),
        "differences": differences,
        **compose(setting, clocks),
    }


PARTS = ("reward step", "reward update", "reward validation", "policy step", "policy update", "scoring")


def _expect(pairs: int, expected: int) -> None:
    """A step that found its prompts remembered, or asked for more than it should, would measure something else."""
    if pairs != expected:
        raise AssertionError(f"{pairs} pairs were scored where {expected} should have been")


@torch.no_grad()
def _plain_validation(plain: Straightforward, tokens: torch.Tensor) -> None:
    plain.reward_model.eval()
    plain.reward_loss(tokens, torch.rand(len(tokens)), _sets(plain.settings, len(tokens)))


def _sets(settings: FewShotSettings, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return draw_sets(
        count, settings.reward.reward_learning_batch_size, settings.reward.reward_learning_samples, generator
    )


def _text_lengths(setting: models.Setting, prompts: Sequence[str]) -> dict[str, float]:
    mask = str(setting.task_tokenizer.mask_token)
    template = setting.spec.masked_template
    texts = [fill_template(template, e.text, prompt, mask) for e in setting.splits.train for prompt in prompts]
    lengths = [len(row) for row in setting.task_tokenizer(texts)["input_ids"]]
    return {"mean": statistics.fmean(lengths), "longest": max(lengths)}


def compare(plain: Straightforward, project: Project, tokens: torch.Tensor) -> dict[str, float]:
    """Largest differences between the two ways on the same input; dropout is off.

    Raises:
        UserError: they do not give the same numbers.
    """
    few, examples = project.policy.texts(tokens[:4]), project.train_scorer.examples[:8]
    expected = plain.class_probabilities(few, examples)
    found = PromptScorer(project.train_scorer.task_lm, examples).probabilities(few)
    ranked = RankedPrompts(tokens, torch.rand(len(tokens)), _sets(plain.settings, len(tokens)))
    trainer, reward_model = project.reward_trainer, plain.reward_model.eval()
    ways: list[Callable[[], torch.Tensor]] = [
        lambda: plain.reward_loss(tokens, ranked.preferences, ranked.sets),
        lambda: trainer._loss(ranked)[0],
    ]
    losses, gradients = [], []
    for loss_of in ways:
        loss = loss_of()
        loss.backward()
        losses.append(loss.item())
        gradients.append(reward_model.head[0].weight.grad.clone())
        reward_model.zero_grad()
    rollout = project.policy.sample(8, torch.Generator().manual_seed(0), plain.settings.policy.top_k, with_logits=True)
    assert rollout.logits is not None
    with torch.no_grad():
        logits = plain.policy_logits(rollout.tokens)
    differences = {
        "class probability": (found - expected).abs().max().item(),
        "reward loss": abs(losses[1] - losses[0]),
        "reward gradient, relative": _relative(gradients[1], gradients[0]),
        "policy logits, relative": _relative(rollout.logits.detach(), logits),
    }
    for what, difference in differences.items():
        if not difference <= TOLERANCE:
            raise UserError(f"the two ways do not give the same numbers: {what} differs by {difference:.2g}")
    return differences | {"spread of class probabilities": expected.std(0).mean().item()}


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def compose(setting: models.Setting, clocks: dict[str, dict[str, Clock]]) -> dict[str, Any]:
    """Prices of both ways and what they make of a whole run."""
    settings, splits = setting.settings, setting.splits
    sizes = (len(splits.train), len(splits.dev), len(splits.test))
    prices = {}
    for way, own in clocks.items():
        logged = own["policy step"].seconds - own["policy update"].seconds
        prices[way] = Prices(
            reward_step=own["reward step"].seconds,
            reward_update=own["reward update"].seconds,
            reward_validation=own["reward validation"].seconds,
            policy_update=own["policy update"].seconds,
            pair=logged / (settings.reward.prompt_train_batch_size * len(splits.train)),
        )
    runs = {
        name: {way: whole_run(settings, prices[way], sizes, way == "straightforward", epochs=epochs) for way in prices}
        for name, epochs in (
            ("full rounds", None),
            ("short rounds", min(SHORT_ROUND, settings.reward.rew_num_train_epochs)),
        )
    }
    counts = {"num_examples": sizes, "rounds": count_rounds(settings), "log_every": settings.policy.log_every}
    return counts | {"prices": {way: asdict(own) for way, own in prices.items()}, "runs": runs}


def _row(what: str, old: tuple[float, float], new: tuple[float, float], wanted: str) -> list[str]:
    """A line of the table from (CPU or wall, wall) figures of both ways."""
    ratios = [f"{theirs / ours:.1f} x" for theirs, ours in zip(old, new, strict=True)]
    return [what, number(old[0]), number(new[0]), *ratios, wanted]


def report(figures: dict[str, Any], environment_line: str) -> str:
    """The figures as Markdown."""
    old, new = ({part: Clock(**own) for part, own in figures["seconds"][way].items()} for way in memory.WAYS)
    log_every = figures["log_every"]
    reward = [(own["reward step"].seconds, own["reward step"].wall_seconds) for own in (old, new)]
    policy = (old["policy step"].seconds, old["policy step"].wall_seconds)
    amortised = (
        new["policy update"].seconds + (new["policy step"].seconds - new["policy update"].seconds) / log_every,
        new["policy update"].wall_seconds
        + (new["policy step"].wall_seconds - new["policy update"].wall_seconds) / log_every,
    )
    rows = [
        _row("reward-learning step, s", reward[0], reward[1], ">= 2.5 x"),
        _row(f"policy step, a log line every {log_every} in the project, s", policy, amortised, ">= 40 x"),
    ]
    for name, run in figures["runs"].items():
        hours = [run[way]["total"] / 3600 for way in memory.WAYS]
        ratio = f"{hours[0] / hours[1]:.1f} x"
        rows.append([f"whole run, {name}, h", *map(number, hours), ratio, "", ">= 4 x"])
    for stage, what, wanted in (("peak", "peak memory, MiB", "<= 0.4"), ("scoring", "scoring adds, MiB", "<= 0.1")):
        if "memory" in figures:
            sizes = [figures["memory"][way][stage] for way in memory.WAYS]
            rows.append([what, *map(number, sizes), f"{sizes[1] / sizes[0]:.3f}", "", wanted])
    parts = [
        [part, *(number(run[way][part] / 3600) for run in figures["runs"].values() for way in memory.WAYS)]
        for part in figures["runs"]["full rounds"]["project"]
    ]
    heads = [f"{name}, {way}" for name in figures["runs"] for way in memory.WAYS]
    agreement = ", ".join(f"{what} {difference:.1e}" for what, difference in figures["differences"].items())
    text = figures["text"]
    return "\n\n".join(
        [
            "# Prompt task against the straightforward way" + (" (TINY MODELS)" if figures["tiny"] else ""),
            environment_line,
            f"Texts have {text['mean']:.1f} tokens on average, {text['longest']:.0f} at most. "
            f"Differences between the two ways on the same input: {agreement}.",
            table(["", "straightforward", "project", "ratio", "ratio of wall times", "wanted"], rows),
            f"Hours of a whole run by part: {figures['rounds']} rounds of reward learning, all to their last step "
            f"(full) or stopped after {SHORT_ROUND} epochs (short), and every policy step. See whole_run.py for the "
            "formula.",
            table(["", *heads], parts),
        ]
    )


if __name__ == "__main__":
    run_command(main)
