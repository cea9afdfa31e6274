"""Models, data and trainers of the summarization benchmarks: t5-small's size with random weights, real articles.

Weights have no influence on speed and memory but for one thing: when a summary ends. A random policy practically never
ends one, so every sample has the greatest length, 128 tokens.
"""

import argparse
import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from common.language_models.pretrained import load_tokenizer
from common.token_reward_model import TokenRewardConfig, TokenRewardModel
from common.training.engine import start_engine
from common.training.random_keys import Purpose
from common.training.tracking import MetricsLog
from sum_task.batching import TokenizedRows, shuffled_batches
from sum_task.command_line import read_command
from sum_task.data import Row, load_splits
from sum_task.policy import SummaryPolicy
from sum_task.policy_trainer import PolicyTrainer
from sum_task.preferences import Preference, make_preference
from sum_task.reward_model import SummaryRewardModel
from sum_task.reward_trainer import RewardTrainer
from sum_task.settings import SummarizationSettings
from sum_task.text_format import TextFormat
from sum_task.tokenizing import tokenize

# T5Config's own defaults are t5-small's.
PUBLISHED_VOCABULARY = 32128
SAMPLED_AT_ONCE = 4  # the default of rew_sampling_batches: as many reward steps have one sampling between them
TINY: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 2}


@dataclass(frozen=True)
class SumSetting:
    """What a benchmark works on.

    Attributes:
        config: of policy and reward model.
        settings: the published ones but for data, source length and batches a step.
        text_format: tokenizer and lengths.
        train: articles of the lengths that the benchmark is about.
    """

    config: T5Config
    settings: SummarizationSettings
    text_format: TextFormat
    train: TokenizedRows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say what the models and the articles are."""
    parser.add_argument(
        "--train_file",
        default=os.environ.get("SUM_DATA"),
        help="jsonl file of articles and summaries such as XSum's; the environment variable SUM_DATA by default",
    )
    parser.add_argument("--tokenizer", default="t5-small", help="hub id or folder of a tokenizer of T5's (t5-small)")
    parser.add_argument("--tiny", action="store_true", help="tiny models: does everything work? Not for measuring")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--seed", type=int, default=0)


def make_sum_setting(
    train_file: str, tokenizer_name: str, length: int, filled: bool, tiny: bool, batch_size: int = 8
) -> SumSetting:
    """Articles cut at `length` tokens; `filled`: joined until each has so many, else as long as they are."""
    words = [f"--train_file={train_file}", f"--validation_file={train_file}", f"--max_source_length={length}"]
    words += [f"--reward_learning_batch_size={batch_size}", f"--per_device_train_batch_size={batch_size}"]
    words += ["--rew_gradient_accumulation_steps=1", "--gradient_accumulation_steps=1", "--device=cpu"]
    words += [f"--rew_sampling_batches={SAMPLED_AT_ONCE}"]
    if tiny:
        words += ["--head_hidden_size=32", "--max_target_length=8", "--head_init_gain=1"]
    settings = read_command([*words, "--quiet=true"])
    splits = load_splits(train_file=train_file, validation_file=train_file)
    tokenizer = load_tokenizer(AutoTokenizer, tokenizer_name)
    special = {"decoder_start_token_id": tokenizer.pad_token_id, "pad_token_id": tokenizer.pad_token_id}
    special["eos_token_id"] = tokenizer.eos_token_id
    vocabulary = len(tokenizer) if tiny else max(len(tokenizer), PUBLISHED_VOCABULARY)
    config = T5Config(vocab_size=vocabulary, **special, **(TINY if tiny else {}))
    text_format = TextFormat(tokenizer, True, settings.text.source_prefix, settings.text.separator, length)
    train = tokenize(splits.train, text_format, settings.text.max_target_length)
    if filled:
        train = _filled(train, text_format, length, settings.text.max_target_length)
    return SumSetting(config, settings, text_format, train)


def _filled(data: TokenizedRows, text_format: TextFormat, length: int, max_target_length: int) -> TokenizedRows:
    """Rows whose articles are joined to at least `length` tokens, then cut there."""
    rows, parts, tokens = [], [], 0
    for row, source in zip(data.rows, data.sources, strict=True):
        parts.append(row.source)
        tokens += len(source)
        if tokens > length * 1.25 + 8:  # a joint and the prefix of each part change the number a little
            rows.append(Row(" ".join(parts), row.reference))
            parts, tokens = [], 0
    return tokenize(rows, text_format, max_target_length)


def make_policy_lm(setting: SumSetting) -> T5ForConditionalGeneration:
    """A policy with random weights, in evaluation mode."""
    return T5ForConditionalGeneration(copy.deepcopy(setting.config)).eval()


def make_reward_model(setting: SumSetting) -> TokenRewardModel:
    """A token reward model with a backbone of the policy's size."""
    options = setting.settings.models
    return TokenRewardModel(
        TokenRewardConfig(
            backbone=setting.config.to_diff_dict(),
            head_hidden_size=options.head_hidden_size,
            head_init_gain=options.head_init_gain,
        )
    ).eval()


class SumProject:
    """The project's own trainers, which can be asked for single steps: what is measured is what a run executes."""

    def __init__(
        self,
        setting: SumSetting,
        lm: T5ForConditionalGeneration,
        reward_model: TokenRewardModel,
        folder: Path,
        device: str = "cpu",
        mixed_precision: str = "no",
    ):
        settings = setting.settings
        engine = start_engine(device, mixed_precision)
        log = MetricsLog(folder / "metrics.jsonl")
        self.setting = setting
        self.policy = SummaryPolicy(lm, setting.text_format)
        self.reward = SummaryRewardModel(reward_model, setting.text_format, setting.text_format)
        self.policy.to(engine.device)
        self.reward.to(engine.device)
        self.preference: Preference = make_preference(settings.reward.preference)
        self.reward_trainer = RewardTrainer(
            self.reward,
            self.policy,
            self.preference,
            setting.train,
            setting.train,
            settings.reward,
            engine,
            log,
        )
        self.policy_trainer = PolicyTrainer(
            self.policy,
            self.reward_trainer,
            setting.train,
            dict,
            lambda: None,
            settings.policy,
            engine,
            log,
        )
        optimizer = torch.optim.Adam(reward_model.parameters(), lr=settings.reward.rew_learning_rate)
        self.reward_trainer.stepper.optimizer = optimizer
        self._steps = 0

    def reward_batches(self) -> list[list[int]]:
        """The batches of the first round."""
        return self._batches(Purpose.REWARD_SHUFFLE, 0, 0)

    def policy_batches(self) -> list[list[int]]:
        """The batches of the first epoch."""
        return self._batches(Purpose.POLICY_SHUFFLE, 0)

    def reward_steps(self, batches: list[list[int]]) -> list[float]:
        """Sample and rank summaries, fit the reward model to the ranking, a step a batch; gives the losses.

        As in a round, the summaries of `rew_sampling_batches` batches are sampled at once.
        """
        losses = []
        for rows, ranked in zip(batches, self.reward_trainer.ranked_from(batches, 0), strict=True):
            self._steps += 1
            figures, _ = self.reward_trainer._step([ranked], len(rows), self._steps)
            losses.append(figures.loss / figures.sets)
        return losses

    def policy_step(self, rows: list[int]) -> float:
        """One optimizer step of the policy on references that are met for the first time; gives the loss."""
        self.policy_trainer.forget_rewards()
        return self._policy_step(rows)

    def later_policy_step(self, rows: list[int]) -> float:
        """The same in a later epoch, their token rewards known since an earlier one."""
        known = self.policy_trainer.loss.reference_rewards
        assert known is not None
        for row in rows:
            known.put(row, torch.rand(len(self.setting.train.targets[row])))
        return self._policy_step(rows)

    def _policy_step(self, rows: list[int]) -> float:
        trainer = self.policy_trainer
        trainer._epoch_batches = (0, [rows])
        return trainer._step(1)["policy/loss"]

    def _batches(self, purpose: Purpose, *words: int) -> list[list[int]]:
        settings = self.setting.settings
        size = settings.reward.reward_learning_batch_size
        return shuffled_batches(self.setting.train, size, purpose, settings.run.seed, *words)
