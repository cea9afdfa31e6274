"""Models, tokenizers and data of the benchmarks: published sizes with random weights, nothing fetched.

Weights have no influence on speed and memory, so models are made on the spot. Tokenizers have: they are trained on the
texts of the data themselves, to the published size of vocabulary, so that a text has about as many tokens as it would
have for the published models.
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from common.token_reward_model import TokenRewardConfig, TokenRewardModel
from prompt_task.command_line import read_command
from prompt_task.few_shot_data import DatasetSpec, FewShotSplits, load_few_shot_splits
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.settings import FewShotSettings

END_OF_TEXT = "<|endoftext|>"
MASKED_SPECIALS = ("<s>", "<pad>", "</s>", "<mask>")


@dataclass(frozen=True)
class Sizes:
    """Configurations of the policy (and reward) backbone and of the masked task LM, without their vocabularies."""

    gpt2: dict[str, Any]
    roberta: dict[str, Any]
    gpt2_vocabulary: int
    roberta_vocabulary: int


PUBLISHED = Sizes(
    gpt2={"n_layer": 6},  # distilgpt2
    roberta={"max_position_embeddings": 514, "type_vocab_size": 1},  # roberta-base
    gpt2_vocabulary=50257,
    roberta_vocabulary=50265,
)
TINY = Sizes(
    gpt2={"n_layer": 2, "n_embd": 32, "n_head": 2},
    roberta={
        "max_position_embeddings": 514, "type_vocab_size": 1, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64,
    },
    gpt2_vocabulary=600,
    roberta_vocabulary=620,
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What a benchmark works on.

    Attributes:
        sizes: of the models.
        settings: options of the prompt task; the published defaults except in a tiny setting.
        spec, splits: the data set.
        policy_tokenizer: GPT-2-like, ends with ``<|endoftext|>``.
        task_tokenizer: the same vocabulary with RoBERTa's special tokens around a text.
    """

    sizes: Sizes
    settings: FewShotSettings
    spec: DatasetSpec
    splits: FewShotSplits
    policy_tokenizer: PreTrainedTokenizerFast
    task_tokenizer: PreTrainedTokenizerFast


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that all benchmarks have."""
    parser.add_argument(
        "--base_path",
        default=os.environ.get("FSC_DATA"),
        help="folder that holds 16-shot/; the environment variable FSC_DATA by default",
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models: does everything work? Not for measuring")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for all figures")


def make_setting(dataset: str, base_path: str | None, tiny: bool) -> Setting:
    """Data, tokenizers and options for one data set of configs/dataset."""
    words = [f"dataset={dataset}", "device=cpu", "quiet=true"]
    if tiny:
        words += ["hidden_size=32", "reward_learning_batch_size=6", "prompt_train_batch_size=6"]
        words += ["num_reinforce_samples=8"]
    command = read_command(words)
    settings = command.settings
    if base_path is not None:
        settings = settings.replaced(base_path=base_path)
    splits = load_few_shot_splits(command.spec, **vars(settings.data))
    sizes = TINY if tiny else PUBLISHED
    trained = train_tokenizer(splits, command.spec, sizes.gpt2_vocabulary - 1)
    return Setting(sizes, settings, command.spec, splits, _policy_tokenizer(trained), _task_tokenizer(trained))


def train_tokenizer(splits: FewShotSplits, spec: DatasetSpec, size: int) -> Tokenizer:
    """A byte-level BPE of `size` tokens from the texts of a data set.

    Merged is what comes at least twice, which gives SST-2 as many tokens as published tokenizers do. The texts are
    few, so the vocabulary is filled up with words that are one token each, as nearly all of GPT-2's tokens are for
    RoBERTa; a prompt of the policy then has its full length for the task LM too.
    """
    texts = [example.text for part in (splits.train, splits.dev, splits.test) for example in part]
    verbalizers = [f"x{word}" if word.startswith(" ") else word for word in spec.verbalizers] * 1000
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*texts, *verbalizers], trainer)
    missing = size - tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(f" filler{number:05}", normalized=False) for number in range(missing)])
    return tokenizer


def _policy_tokenizer(trained: Tokenizer) -> PreTrainedTokenizerFast:
    copy = Tokenizer.from_str(trained.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=copy, eos_token=END_OF_TEXT)


def _task_tokenizer(trained: Tokenizer) -> PreTrainedTokenizerFast:
    """As RoBERTa's: special tokens come first, because positions are numbered from behind the padding token's id."""
    content = json.loads(trained.to_str())
    first = len(MASKED_SPECIALS)
    shifted = {token: index + first for token, index in content["model"]["vocab"].items()}
    content["model"]["vocab"] = {token: index for index, token in enumerate(MASKED_SPECIALS)} | shifted
    content["added_tokens"] = [token | {"id": token["id"] + first} for token in content["added_tokens"]]
    copy = Tokenizer.from_str(json.dumps(content))
    copy.add_special_tokens([AddedToken(token, lstrip=token == "<mask>") for token in MASKED_SPECIALS])
    copy.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[(token, MASKED_SPECIALS.index(token)) for token in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=copy, bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"
    )


def make_masked_lm(setting: Setting) -> RobertaForMaskedLM:
    """A task LM of RoBERTa's kind with random weights, in evaluation mode."""
    tokenizer = setting.task_tokenizer
    config = RobertaConfig(
        vocab_size=setting.sizes.roberta_vocabulary, pad_token_id=tokenizer.pad_token_id, **setting.sizes.roberta
    )
    return RobertaForMaskedLM(config).eval()


def make_causal_lm(setting: Setting) -> GPT2LMHeadModel:
    """A causal LM of GPT-2's kind with random weights, in evaluation mode."""
    return GPT2LMHeadModel(_gpt2_config(setting)).eval()


def make_policy(setting: Setting) -> PromptPolicy:
    """The policy with the options of the setting."""
    options = setting.settings.models
    return PromptPolicy(
        make_causal_lm(setting),
        setting.policy_tokenizer,
        "random",
        source_str=options.source_str,
        prompt_length=options.prompt_length,
        hidden_size=options.hidden_size,
        residual=options.adaptor_residual,
    )


def make_reward_model(setting: Setting) -> TokenRewardModel:
    """A token reward model with a backbone of the policy's size."""
    config = _gpt2_config(setting)
    fields = TokenRewardConfig(backbone=config.to_diff_dict(), head_hidden_size=setting.settings.models.hidden_size)
    return TokenRewardModel(fields, backbone=GPT2Model(config))


def _gpt2_config(setting: Setting) -> GPT2Config:
    last = setting.sizes.gpt2_vocabulary - 1
    return GPT2Config(vocab_size=last + 1, bos_token_id=last, eos_token_id=last, **setting.sizes.gpt2)


def start(threads: int, seed: int) -> None:
    """Threads and seed of a measurement."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
