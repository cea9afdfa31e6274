"""What TRL's RewardTrainer learns from the same preferences: the reference from outside for rewards of replies.

    python -m scripts.benchmarks.trl_reference --seeds 0 1 2 --train_file=prefs.jsonl --pairs_per_set=5

Everything but the two flags below is an option of run_chat.py and means what it means there: the same rows, held-out
prompts, tokens, trained layers, batches and rates. A sequence head scores the last token behind prompt and reply, and
learns by the loss of pairs, so that rankings are taken apart (``pairs_per_set``; every pair without it). What is
counted is the pairs of the held-out rankings, as in a run's ``results.json``.
"""

from common.training.program import run_command

import dataclasses
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from chat_task.command_line import read_command
from chat_task.data import load_preferences, pairs_of_sets
from chat_task.evaluation import FIELDS, MISSING, answers_by_set, pairs_of, ranking_figures
from chat_task.ranked_sets import EncodedSet, encode_sets
from chat_task.reward_stage import learning_options
from chat_task.settings import ChatSettings
from common.errors import UserError
from common.language_models.evaluation_mode import evaluation_mode
from common.language_models.pretrained import load_pretrained, load_tokenizer
from common.language_models.replies import ReplyFormat
from common.language_models.upper_layers import train_upper_layers
from common.reply_rewards import RewardReading, padded
from common.training.console import Parser
from common.training.runtime import start_runtime
from scripts.benchmarks.measuring import described, environment, finish, table

ALL_PAIRS = 10**6


def main(words: Sequence[str] | None = None) -> int:
    """Learn and judge with each seed, print a report in Markdown, write figures."""
    parser = Parser("scripts/benchmarks/trl_reference.py", __doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each (0)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments, options = parser.parse_known_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    transformers_logging.disable_progress_bar()
    settings = read_command(options)
    before = environment()
    figures = []
    for seed in arguments.seeds:
        print(f"... seed {seed}", file=sys.stderr, flush=True)
        figures.append({"seed": seed} | learn(_seeded(settings, seed)))
        print(f"    {figures[-1]}", file=sys.stderr, flush=True)
    print(described(before))
    rows = []
    for found in figures:
        shares = [f"{found[name]:.3f}" for name in ("rank_accuracy", "rank_low", "rank_high")]
        counts = [str(found[name]) for name in ("pairs", "train_pairs")]
        rows.append([str(found["seed"]), *shares, *counts, f"{found['seconds']:.0f}"])
    print(table(["seed", "rank accuracy", "from", "to", "held-out pairs", "pairs learnt from", "seconds"], rows))
    if len(figures) > 1:
        values = [found["rank_accuracy"] for found in figures]
        print(f"\nmean {statistics.mean(values):.3f} (std {statistics.stdev(values):.3f}), n = {len(values)}")
    finish(arguments.output, {"environment": before, "options": list(options), "seeds": figures})
    return 0


def _seeded(settings: ChatSettings, seed: int) -> ChatSettings:
    groups: dict[str, Any] = {
        name: dataclasses.replace(getattr(settings, name), seed=seed) for name in ("data", "reward", "run")
    }
    return dataclasses.replace(settings, **groups)


def learn(settings: ChatSettings) -> dict[str, Any]:
    """One seed's rank accuracy on the held-out pairs with its interval, and what it took.

    Raises:
        UserError: TRL is missing; data or model cannot be used.
    """
    try:
        from trl import RewardConfig, RewardTrainer
    except ImportError:
        raise UserError("this needs TRL: pip install 'token-guidance[trl]'") from None
    preferences = load_preferences(columns=settings.columns.names, **vars(settings.data))
    name, text = settings.models.model_name_or_path, settings.text
    tokenizer = load_tokenizer(AutoTokenizer, name)
    reply_format = ReplyFormat(tokenizer, False, text.prompt_template, text.max_prompt_length, text.max_reply_length)
    reading = RewardReading("sequence")
    train, validation = (
        encode_sets(sets, reply_format, reading, long_rows=text.long_rows)
        for sets in (pairs_of_sets(preferences.train, ALL_PAIRS, settings.run.seed), preferences.validation)
    )
    run = settings.run
    runtime = start_runtime(run.seed, run.device, run.num_threads, run.matmul_precision)
    model = load_pretrained(AutoModelForSequenceClassification, name, dtype=torch.float32, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    train_upper_layers(model, settings.models.trained_layers)
    rows = [
        dict(zip(("chosen_ids", "rejected_ids"), (item.prompt_ids + ids for ids in item.reply_ids), strict=True))
        for item in train
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            output_dir=folder, save_strategy="no", use_cpu=runtime.device.type == "cpu", max_length=None,
            gradient_checkpointing=False, **learning_options(settings.reward),
        )  # fmt: skip
        trainer = RewardTrainer(
            model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    found = scores(trainer.accelerator.unwrap_model(trainer.model), validation, tokenizer.pad_token_id)
    low, high = answers_by_set(found).interval
    accuracy = ranking_figures(found)["rank_accuracy"]
    return {
        "rank_accuracy": accuracy, "rank_low": low, "rank_high": high, "pairs": len(pairs_of(found).margins),
        "train_pairs": len(rows), "seconds": seconds,
    }  # fmt: skip


@torch.no_grad()
def scores(model: Any, sets: Sequence[EncodedSet], pad: int) -> np.ndarray:
    """The table of :mod:`chat_task.evaluation`, with nothing but scores, preferences and lengths in it."""
    found = np.full((len(sets), max(len(item.reply_ids) for item in sets), len(FIELDS)), float(MISSING))
    with evaluation_mode(model):
        for number, item in enumerate(sets):
            ids, mask = padded([item.prompt_ids + reply for reply in item.reply_ids], model.device)
            ids = ids.masked_fill(~mask.bool(), pad)
            row = found[number, : len(item.reply_ids)]
            row[:] = 0
            row[:, FIELDS.index("score")] = model(input_ids=ids, attention_mask=mask).logits[:, 0].float().cpu()
            row[:, FIELDS.index("preference")] = item.source.scores
            row[:, FIELDS.index("tokens")] = [len(reply) for reply in item.reply_ids]
    return found


if __name__ == "__main__":
    run_command(main)
