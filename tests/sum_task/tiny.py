"""Tiny models, tokenizers and data from which tests make runs that take a second."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from sum_task.batching import Batch, pad
from sum_task.command_line import read_command
from sum_task.data import Row
from sum_task.loading import load_policy, load_reward_model
from sum_task.policy import Sources, SummaryPolicy
from sum_task.reward_model import SummaryRewardModel
from sum_task.settings import SummarizationSettings

SENTENCE = "the a storm flood fire hit town city river north south on in monday friday killed two ten summarize : ."
WORDS = SENTENCE.split()
SPECIAL = ["<pad>", "</s>", "<unk>"]
ARTICLES = ["the storm hit the city on monday .", "a flood .", "two killed in town fire on friday"]
SIZE: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}


def word_tokenizer() -> Any:
    """One token a word; the end token is added."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _wrapped(tokenizer)


def byte_tokenizer() -> Any:
    """One token a byte; the end token is added."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Any) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def save_t5(folder: Path, tokenizer: Any, seed: int = 0, dropout: float = 0.0) -> str:
    """An encoder-decoder of random weights."""
    torch.manual_seed(seed)
    options = SIZE | {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    config = T5Config(vocab_size=len(tokenizer) + 4, dropout_rate=dropout, **options)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_llama(folder: Path, tokenizer: Any, seed: int = 0) -> str:
    """A decoder-only model of random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_rows(path: Path, count: int, seed: int) -> str:
    """Articles of random words whose summary is how they begin."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.choices(WORDS[:-3], k=draw.randint(6, 14))
        rows.append({"document": " ".join(words), "summary": " ".join(words[: draw.randint(2, 5)])})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def spied(function: Callable[..., Any], note: Callable[..., Any]) -> Callable[..., Any]:
    """`function`; `note` is called with the same arguments first."""

    def call(*args: Any, **named: Any) -> Any:
        note(*args, **named)
        return function(*args, **named)

    return call


def brevity(predictions: list[str], references: list[str], sources: list[str]) -> list[float]:
    """A preference for few words."""
    return [-float(len(prediction.split())) for prediction in predictions]


def encode(policy: SummaryPolicy, articles: Sequence[str], extra_padding: int = 0) -> Sources:
    """Articles as the policy has read them."""
    lists = policy.format.sources(articles)
    width = max(map(len, lists)) + extra_padding
    return policy.encode(pad(lists, policy.pad_id, width, left=not policy.is_encoder_decoder))


def batch_of(policy: SummaryPolicy, articles: Sequence[str]) -> Batch:
    """A batch of articles; what stands for their references is not read."""
    sources = pad(policy.format.sources(articles), policy.pad_id, left=not policy.is_encoder_decoder)
    return Batch([Row(article, "") for article in articles], sources, sources, list(range(len(articles))))


def noise(rows: int, length: int = 6, seed: int = 0) -> torch.Tensor:
    """Numbers that decide samples."""
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(seed))


class TinyWorld:
    """A folder with data and models.

    Attributes:
        t5, byte_t5, llama: model folders: encoder-decoder with a token a word, with a token a byte, decoder-only.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.t5 = save_t5(folder / "t5", word_tokenizer())
        self.byte_t5 = save_t5(folder / "byte_t5", byte_tokenizer(), seed=1)
        self.llama = save_llama(folder / "llama", word_tokenizer())
        self.train = write_rows(folder / "train.jsonl", 12, 0)
        self.validation = write_rows(folder / "validation.jsonl", 5, 1)
        self.test = write_rows(folder / "test.jsonl", 4, 2)

    def words(self, **changes: Any) -> list[str]:
        """A command line for a run of a few steps."""
        options: dict[str, Any] = {
            "train_file": self.train, "validation_file": self.validation, "test_file": self.test,
            "model_name_or_path": self.t5, "preference": "rouge1", "max_source_length": 24, "max_target_length": 6,
            "head_hidden_size": 8, "head_init_gain": 1.0, "rew_num_train_epochs": 1.0, "rew_eval_period": 0.5,
            "rew_learning_rate": 1e-2, "learning_rate": 1e-3, "reward_learning_batch_size": 4,
            "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "gradient_accumulation_steps": 2,
            "rew_gradient_accumulation_steps": 2, "num_train_epochs": 1, "log_every": 1, "device": "cpu",
            "quiet": "true", "sampling_top_k": "null",
            "rew_model_name_or_path": "null",
        }  # fmt: skip
        return [f"--{name}={value}" for name, value in (options | changes).items()]

    def settings(self, **changes: Any) -> SummarizationSettings:
        """The settings of such a run."""
        return read_command(self.words(**changes))

    def policy(self, **changes: Any) -> SummaryPolicy:
        """The policy of such a run before it has learnt."""
        settings = self.settings(**changes)
        return load_policy(settings.models, settings.text, settings.evaluation)

    def reward_model(self, policy: SummaryPolicy, **changes: Any) -> SummaryRewardModel:
        """Its token reward model."""
        settings = self.settings(**changes)
        return load_reward_model(settings.models, settings.text, policy)
