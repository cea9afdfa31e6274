"""Texts as token ids, and batches of similar lengths, padded to the longest row of each."""

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from common.errors import UserError
from common.language_models.line_breaks import LineBreak, decode_lines, line_break
from common.language_models.replies import PLACE, ReplyFormat
from common.training.files import write_folder_atomic
from common.training.random_keys import Purpose, keyed_generator
from common.transfers import upload
from sum_task.data import Row

logger = logging.getLogger(__name__)

CACHED_ROWS = 20_000  # splits of at least so many rows are kept on the disk once they are tokenized
BATCHES_SORTED_TOGETHER = 50


@dataclass(frozen=True)
class TextFormat:
    """How articles and summaries become the token ids of one model.

    Attributes:
        tokenizer: a tokenizer of transformers.
        is_encoder_decoder: encoder-decoder: source = prefix + article, cut at the end. Decoder-only: prefix + article
            + separator, of which only the article is cut.
        source_prefix, separator: see above.
        max_source_length: tokens of a source.
        source_language, target_language: codes of a multilingual tokenizer; None where it knows none.
    """

    tokenizer: Any
    is_encoder_decoder: bool
    source_prefix: str
    separator: str
    max_source_length: int
    source_language: str | None = None
    target_language: str | None = None

    def sources(self, articles: Sequence[str]) -> list[list[int]]:
        """Token ids of each article as the model reads it.

        Raises:
            UserError: prefix and separator leave no room for an article.
        """
        if not articles:
            return []
        if self.is_encoder_decoder:
            texts = self._marked([self.source_prefix + article for article in articles])
            return self.tokenizer(texts, truncation=True, max_length=self.max_source_length)["input_ids"]
        before, after = self._plain([self.source_prefix, self.separator])
        if self.tokenizer.bos_token_id is not None and self._adds_start():
            before = [self.tokenizer.bos_token_id, *before]
        room = self.max_source_length - len(before) - len(after)
        if room < 1:
            raise UserError(
                f"max_source_length: source_prefix and separator alone take {len(before) + len(after)} tokens "
                f"of {self.max_source_length}"
            )
        return [before + ids[:room] + after for ids in self._plain(articles)]

    def targets(self, summaries: Sequence[str], max_length: int) -> list[list[int]]:
        """Token ids of each summary, at most `max_length`, the last of which is the end token."""
        if not summaries:
            return []
        end = self.tokenizer.eos_token_id
        if self.is_encoder_decoder:  # what stands before a target is not written but given: see `decoder_start`
            options = {"text_target": self._marked(summaries), "add_special_tokens": False, "verbose": False}
            return [[*ids[: max_length - 1], end] for ids in self.tokenizer(**options)["input_ids"]]
        return [[*ids[: max_length - 1], end] for ids in self._plain(summaries)]

    def text(self, ids: Sequence[int], **options: Any) -> str:
        """The text of a summary's tokens, special ones left out; `options` are those of the tokenizer's ``decode``."""
        return decode_lines(self.tokenizer, ids, self.line_break, skip_special_tokens=True, **options)

    @cached_property
    def line_break(self) -> LineBreak | None:
        """How the vocabulary writes a line break, where it has only a mark for it."""
        return line_break(self.tokenizer)

    def reply_format(self) -> ReplyFormat:
        """The same for `TokenRewardModel.score_texts`, which knows nothing of languages and marks of line breaks."""
        is_plain = self.source_language is None and self.target_language is None and self.line_break is None
        return ReplyFormat(
            self.tokenizer,
            self.is_encoder_decoder,
            f"{self.source_prefix}{PLACE}{'' if self.is_encoder_decoder else self.separator}",
            self.max_source_length,
            keeps_start=True,
            refused=None if is_plain else "its languages or marks of line breaks need SummaryRewardModel",
        )

    def describe(self) -> dict[str, Any]:
        """The plain settings, as they are saved beside a model."""
        return {
            "source_prefix": self.source_prefix,
            "separator": self.separator,
            "max_source_length": self.max_source_length,
            "source_language": self.source_language,
            "target_language": self.target_language,
        }

    def _marked(self, texts: Sequence[str]) -> list[str]:
        return list(texts) if self.line_break is None else [self.line_break.mark(text) for text in texts]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(self._marked(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def _adds_start(self) -> bool:
        return self.tokenizer("a")["input_ids"][0] == self.tokenizer.bos_token_id


@dataclass(frozen=True)
class TokenizedRows:
    """Rows of a split with their token ids.

    Attributes:
        rows: the texts.
        sources, targets: token ids of each row.
    """

    rows: Sequence[Row]
    sources: Sequence[Sequence[int]]
    targets: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, count: int) -> "TokenizedRows":
        """The first so many rows, or all."""
        return TokenizedRows(self.rows[:count], self.sources[:count], self.targets[:count])


@dataclass
class Batch:
    """Some rows of a split as tensors.

    Attributes:
        rows: the texts.
        source_ids, source_mask: (B, S); True at real tokens.
        target_ids, target_mask: (B, T).
        indices: number of each row within its split.
    """

    rows: list[Row]
    source_ids: Tensor
    source_mask: Tensor
    target_ids: Tensor
    target_mask: Tensor
    indices: list[int]

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on `device`."""
        tensors = (self.source_ids, self.source_mask, self.target_ids, self.target_mask)
        source_ids, source_mask, target_ids, target_mask = (upload(t, device) for t in tensors)
        return Batch(self.rows, source_ids, source_mask, target_ids, target_mask, self.indices)

    def only(self, places: Sequence[int]) -> "Batch":
        """Some of its rows, without the columns that are padding in all of them."""

        def kept(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            ids, mask = ids[list(places)], mask[list(places)]
            columns = mask.any(0)
            return ids[:, columns], mask[:, columns]

        sources, targets = kept(self.source_ids, self.source_mask), kept(self.target_ids, self.target_mask)
        rows = [self.rows[place] for place in places]
        return Batch(rows, *sources, *targets, [self.indices[place] for place in places])


@dataclass(frozen=True)
class Collator:
    """Makes batches of rows.

    Attributes:
        pad_id: token id at padded positions; masks say which those are.
        sources_left: pad sources on the left, where a summary follows them in one sequence.
        pad_lengths: pad to (source, target) lengths, or None for the longest row of the batch.
        learn_padding: padding after a target counts as real.
    """

    pad_id: int
    sources_left: bool
    pad_lengths: tuple[int, int] | None = None
    learn_padding: bool = False

    def __call__(self, data: TokenizedRows, indices: Sequence[int]) -> Batch:
        source_length, target_length = self.pad_lengths or (None, None)
        sources = pad([data.sources[i] for i in indices], self.pad_id, source_length, self.sources_left)
        target_ids, target_mask = pad([data.targets[i] for i in indices], self.pad_id, target_length)
        if self.learn_padding:
            target_mask = torch.ones_like(target_mask)
        return Batch([data.rows[i] for i in indices], *sources, target_ids, target_mask, list(indices))


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, length: int | None = None, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Sequences as token ids (N, T) and their mask (N, T), padded to `length` or the longest."""
    width = max(max(len(ids) for ids in sequences), length or 0)
    tokens = torch.full((len(sequences), width), pad_id)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, ids in enumerate(sequences):
        part = slice(width - len(ids), None) if left else slice(len(ids))
        tokens[row, part] = torch.tensor(ids, dtype=torch.long)
        mask[row, part] = True
    return tokens, mask


def shuffled_batches(data: TokenizedRows, batch_size: int, purpose: Purpose, *words: int) -> list[list[int]]:
    """All rows in batches of similar lengths, in random order: the same for the same key.

    Rows are shuffled, then sorted within stretches of 50 batches: batches stay random samples of the data to a
    good part, and the padding in them nearly vanishes. The last batch may be smaller.
    """
    generator = keyed_generator(purpose, *words)
    order = torch.randperm(len(data), generator=generator).tolist()
    stretch = BATCHES_SORTED_TOGETHER * batch_size
    batches = []
    for start in range(0, len(order), stretch):
        part = sorted(order[start : start + stretch], key=lambda i: _length(data, i))
        # The short batch, if any, is made of the shortest rows, so that none is left over between two stretches.
        first = len(part) % batch_size
        batches += [part[:first]] if first else []
        batches += [part[i : i + batch_size] for i in range(first, len(part), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def sorted_batches(data: TokenizedRows, batch_size: int) -> list[list[int]]:
    """All rows in batches by length, longest first: what does not fit into memory fails at once."""
    order = sorted(range(len(data)), key=lambda i: _length(data, i), reverse=True)
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _length(data: TokenizedRows, index: int) -> tuple[int, int]:
    return len(data.sources[index]), len(data.targets[index])


def tokenize(
    rows: Sequence[Row],
    text_format: TextFormat,
    max_target_length: int,
    workers: int | None = None,
    overwrite_cache: bool = False,
    cache: Path = Path(HF_HOME, "token-guidance", "tokens"),
) -> TokenizedRows:
    """Token ids of all rows.

    Args:
        rows: the texts.
        text_format: of the policy.
        max_target_length: tokens of a summary.
        workers: processes that share the work; None: this one alone.
        overwrite_cache: make the tokens of a large split anew, even if they are there.
        cache: where those of splits of at least `CACHED_ROWS` rows are kept.
    """
    place = None
    if len(rows) >= CACHED_ROWS:
        fingerprint = _fingerprint(rows, text_format, max_target_length)
        if fingerprint is None:
            logger.info("the tokens of %d rows are not kept on the disk: the tokenizer is no fast one", len(rows))
        else:
            place = cache / fingerprint
    if place is not None and not overwrite_cache:
        try:
            arrays = load_file(place / "tokens.safetensors")
            parts = [_unpacked(arrays[f"{name}.ids"], arrays[f"{name}.ends"]) for name in ("sources", "targets")]
            return TokenizedRows(rows, *parts)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, SafetensorError, KeyError) as error:
            logger.warning("tokens that were kept in %s cannot be read and are made anew: %s", place, error)
    sources, targets = _tokenized(rows, text_format, max_target_length, workers)
    if place is not None:
        arrays = {}
        for name, sequences in (("sources", sources), ("targets", targets)):
            arrays[f"{name}.ids"] = np.array([i for ids in sequences for i in ids], dtype=np.int32)
            arrays[f"{name}.ends"] = np.cumsum([len(ids) for ids in sequences])
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with write_folder_atomic(place) as temporary:
                save_file(arrays, temporary / "tokens.safetensors")
        except (OSError, UserError) as error:
            logger.warning("the tokens of %d rows are not kept on the disk: %s", len(rows), error)
    return TokenizedRows(rows, sources, targets)


Sequences = list[list[int]]


def _tokenized(
    rows: Sequence[Row], text_format: TextFormat, max_target_length: int, workers: int | None
) -> tuple[Sequences, Sequences]:
    work = partial(_tokenize_part, text_format, max_target_length)
    if workers is None or workers == 1 or len(rows) < 2:
        return work(rows)
    size = -(-len(rows) // workers)
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    with ProcessPoolExecutor(workers, context) as pool:
        done = list(pool.map(work, parts))
    return [ids for sources, _ in done for ids in sources], [ids for _, targets in done for ids in targets]


def _tokenize_part(text_format: TextFormat, max_target_length: int, rows: Sequence[Row]) -> tuple[Sequences, Sequences]:
    sources = text_format.sources([row.source for row in rows])
    return sources, text_format.targets([row.reference for row in rows], max_target_length)


def _unpacked(ids: Any, ends: Any) -> list[Any]:
    return [part.tolist() for part in np.split(ids, ends[:-1])]


def _fingerprint(rows: Sequence[Row], text_format: TextFormat, max_target_length: int) -> str | None:
    """A name for what `tokenize` returns; None where the tokenizer, no fast one, cannot say what it is."""
    backend = getattr(text_format.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    digest = hashlib.sha256()
    mark = None if text_format.line_break is None else text_format.line_break.text
    settings = [text_format.describe(), text_format.is_encoder_decoder, max_target_length, mark]
    tokenizer = json.loads(backend.to_str())
    tokenizer |= {"truncation": None, "padding": None}  # as the last call left them
    for part in (settings, tokenizer):
        digest.update(json.dumps(part).encode())
    for row in rows:
        digest.update(json.dumps([row.source, row.reference]).encode())
    return digest.hexdigest()[:32]
