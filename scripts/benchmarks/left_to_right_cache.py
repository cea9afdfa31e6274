"""Left-to-right task LMs: with and without the keys and values of each sentence kept between prompts.

    python -m scripts.benchmarks.left_to_right_cache --base_path DATA --output cache.json
    python -m scripts.benchmarks.left_to_right_cache --base_path DATA --model FOLDER

A model of distilgpt2's size with random weights (or the one in FOLDER) scores prompts as a step of reward learning
does: 16 on 80 % of the train texts of SST-2 and of AG News. Without reuse it reads whole texts, batched by length and
with the LM head narrowed all the same: the cache is the only difference. Both give the same probabilities. With reuse,
the first call reads the sentences too; the others, as all of a run but the first, read prompts alone. DATA holds
16-shot/sst-2 and 16-shot/agnews.
"""

from common.training.program import run_command

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import UserError
from common.language_models.pretrained import load_pretrained, load_tokenizer
from common.training.console import Parser
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.task_lm import LeftToRightTaskLM, make_task_lm
from scripts.benchmarks import models
from scripts.benchmarks.measuring import Clock, described, environment, finish, number, table

WANTED = {"sst-2": 3, "agnews": 6}
TOLERANCE = 1e-5


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print a report in Markdown, write the figures."""
    parser = Parser("scripts/benchmarks/left_to_right_cache.py", __doc__)
    models.add_arguments(parser)
    parser.add_argument("--model", help="folder or hub id of a causal LM; random weights by default")
    parser.add_argument("--datasets", nargs="+", choices=list(WANTED), default=list(WANTED))
    parser.add_argument("--repeats", type=int, default=2, help="turns of each way (2); the median counts")
    arguments = parser.parse_args(words)
    models.start(arguments.threads, arguments.seed)
    before = environment()
    found = {}
    for dataset in arguments.datasets:
        print(f"... {dataset}", file=sys.stderr, flush=True)
        found[dataset] = measure(dataset, arguments)
    figures = {"environment": before, "model": arguments.model, "tiny": arguments.tiny, "datasets": found}
    print(report(figures, described(before)))
    finish(arguments.output, figures)
    return 0


def measure(dataset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time both ways in turns on one data set and compare what they give.

    Raises:
        UserError: the model's keys and values cannot be reused, or the probabilities differ.
    """
    setting = models.make_setting(dataset, arguments.base_path, arguments.tiny)
    task_lm, policy = _load(setting, arguments.model)
    if not task_lm.reuses_sentences:
        raise UserError("--model: the keys and values of this model cannot be reused; there is nothing to compare")
    settings, train = setting.settings, setting.splits.train
    generator = torch.Generator().manual_seed(arguments.seed)
    prompts = policy.texts(
        policy.sample(settings.reward.prompt_train_batch_size, generator, settings.policy.top_k).tokens
    )
    kept = max(1, round(settings.reward.reward_example_share * len(train)))
    # A few of each class, also where the file is sorted by class.
    chosen = sorted(torch.randperm(len(train), generator=generator)[:kept].tolist())
    pairs = [(train[i].text, prompt) for i in chosen for prompt in prompts]

    clocks = {way: Clock() for way in ("without", "first", "with")}
    cached = clocks["first"].time(lambda: task_lm.class_probabilities(pairs))
    for _ in range(arguments.repeats):
        task_lm.reuses_sentences = False
        whole = clocks["without"].time(lambda: task_lm.class_probabilities(pairs))
        task_lm.reuses_sentences = True
        for _ in range(2):
            again = clocks["with"].time(lambda: task_lm.class_probabilities(pairs))
    difference = max((whole - cached).abs().max().item(), (whole - again).abs().max().item())
    if not difference <= TOLERANCE:
        raise UserError(f"{dataset}: probabilities with and without the cache differ by {difference:.2g}")
    texts = [task_lm.fill(*pair) for pair in pairs]
    lengths = [len(row) for row in task_lm.tokenizer(texts)["input_ids"]]
    return {
        "pairs": len(pairs),
        "prompts": len(prompts),
        "examples": kept,
        "tokens": sum(lengths) / len(lengths),
        "seconds": {way: asdict(clock) for way, clock in clocks.items()},
        "difference": difference,
        "spread": whole.std(0).mean().item(),
    }


def _load(setting: models.Setting, name: str | None) -> tuple[LeftToRightTaskLM, PromptPolicy]:
    """The task LM and, for its prompts, a policy that is the same model with nothing learnt."""
    if name is None:
        model, tokenizer = models.make_causal_lm(setting), setting.policy_tokenizer
        policy = models.make_policy(setting)
    else:
        model = load_pretrained(AutoModelForCausalLM, name, dtype=torch.float32, complete=True)
        tokenizer = load_tokenizer(AutoTokenizer, name)
        settings = setting.settings
        policy = PromptPolicy.from_lm(
            name, source_str=settings.models.source_str, prompt_length=settings.models.prompt_length
        )
    task_lm = make_task_lm(model, tokenizer, setting.spec, torch.device("cpu"), is_mask_lm=False)
    assert isinstance(task_lm, LeftToRightTaskLM)
    return task_lm, policy


def report(figures: dict[str, Any], environment_line: str) -> str:
    """The figures as Markdown."""
    rows = []
    for dataset, found in figures["datasets"].items():
        clocks = {way: Clock(**own) for way, own in found["seconds"].items()}
        without, first, cached = (clocks[way] for way in ("without", "first", "with"))
        rows.append(
            [
                f"{dataset}, {found['prompts']} x {found['examples']}",
                f"{found['tokens']:.1f}",
                number(without.seconds),
                number(first.seconds),
                number(cached.seconds),
                f"{without.seconds / cached.seconds:.1f} x",
                f"{without.wall_seconds / cached.wall_seconds:.1f} x",
                f">= {WANTED[dataset]} x",
                f"{found['difference']:.1e} ({found['spread']:.1e})",
            ]
        )
    header = ["prompts x texts", "tokens a text", "without, s", "first call, s", "with, s", "ratio"]
    header += ["ratio of wall times", "wanted", "largest difference of probabilities (their spread)"]
    title = "# Left-to-right task LM: sentences kept against whole texts" + (" (TINY MODEL)" if figures["tiny"] else "")
    model = f"Model: {figures['model'] or 'random weights, the size of distilgpt2'}."
    return "\n\n".join([title, environment_line, model, table(header, rows)])


if __name__ == "__main__":
    run_command(main)
