"""Tiny random models and small tokenizers, made in memory: fast, and different enough from each other to find bugs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from prompt_task.few_shot_data import DatasetSpec, Example

SENTENCES = (
    "a great film , warm and funny from start to end",
    "terrible , the plot is dull and the end is worse",
    "the acting is great but the film is long",
    "what a dull and terrible way to spend the night",
    "funny and warm , the best film of the year",
    "the worst film of the year , long and dull",
    "great fun for all",
    "terrible acting",
    "World Sports Business Tech news of the day",
    "Grade Rated Movie CinemaScore absolutely filmmaker",
)
SPEC = DatasetSpec(
    name="toy",
    verbalizers=(" terrible", " great"),
    masked_template="{sentence} {prompt} <mask> .",
    left_to_right_template="{sentence} {prompt}",
)
TRAIN_TEXTS = (
    ("a warm film and a great night", 1),
    ("dull acting , the plot is long and the end is worse than the start", 0),
    ("funny", 1),
    ("the worst night of the year", 0),
    ("the best acting of the day is in the film", 1),
    ("long , long and dull", 0),
)
EXAMPLES = [Example(text, label) for text, label in TRAIN_TEXTS]


def _trained(model: Any, trainer: Any, pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    # Repetition makes every word one token.
    tokenizer.train_from_iterator([f"a {sentence}" for sentence in SENTENCES for _ in range(20)], trainer)
    return tokenizer


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind: bytes, a blank belongs to the word after it, nothing is put around a text."""
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = _trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", model_max_length=128
    )


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """RoBERTa's kind: bytes, start and end token, a mask token that swallows the blank before it."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = _trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=64,
    )


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's kind: lower case, blanks do not count, unknown words become one token."""
    words = sorted({word.lower() for sentence in SENTENCES for word in sentence.split()})
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,<>{}"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(pieces[:5])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )


def sentencepiece_like_tokenizer() -> PreTrainedTokenizerFast:
    """Llama's kind: a start token, and a blank of its own before every text."""
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer = _trained(models.BPE(unk_token="<unk>"), trainer, pre_tokenizers.Metaspace(prepend_scheme="always"))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )


# Weights far larger than usual, so that outputs differ clearly between inputs.
WIDE = {"initializer_range": 0.4}


def gpt2(vocab_size: int, **options: Any) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size, n_embd=16, n_layer=2, n_head=2, n_positions=128, bos_token_id=0, eos_token_id=0,
            **WIDE | options,
        )
    )  # fmt: skip


def llama(vocab_size: int, **options: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, **WIDE | options,
        )
    )  # fmt: skip


def roberta(vocab_size: int, **options: Any) -> RobertaForMaskedLM:
    return RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=66, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1,
            **WIDE | options,
        )
    )  # fmt: skip


def bert(vocab_size: int, **options: Any) -> BertForMaskedLM:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64, pad_token_id=0, **WIDE | options,
        )
    )  # fmt: skip


KINDS: dict[str, tuple[Callable[..., PreTrainedModel], Callable[[], PreTrainedTokenizerFast]]] = {
    "gpt2": (gpt2, byte_level_tokenizer),
    "llama": (llama, sentencepiece_like_tokenizer),
    "roberta": (roberta, roberta_tokenizer),
    "bert": (bert, wordpiece_tokenizer),
}
MASKED = ("roberta", "bert")
LEFT_TO_RIGHT = ("gpt2", "llama")


def make(kind: str, seed: int = 0, **options: Any) -> tuple[Any, PreTrainedTokenizerFast]:
    """A model of random weights, in evaluation mode, and its tokenizer."""
    make_model, make_tokenizer = KINDS[kind]
    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make_model(len(tokenizer), **options).eval(), tokenizer


def save(kind: str, folder: Path, seed: int = 0, **options: Any) -> str:
    """Write such a model with its tokenizer to a folder and return its path."""
    model, tokenizer = make(kind, seed, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_splits(base: Path, name: str, texts: Sequence[tuple[str, int]], num_shots: int, split: int = 100) -> str:
    """Write train, dev and test of a data set in the published layout and return the base path."""
    folder = base / f"{num_shots}-shot" / name / f"{num_shots}-{split}"
    folder.mkdir(parents=True)
    for part in ("train", "dev", "test"):
        rows = [f"{text}{'' if part == 'train' else ' ' + part}\t{label}" for text, label in texts]
        (folder / f"{part}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    return str(base)
