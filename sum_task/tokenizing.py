"""Splits as token ids, which of large ones are kept on the disk."""

import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from common.errors import UserError
from common.training.files import write_folder_atomic
from sum_task.batching import TokenizedRows
from sum_task.data import Row
from sum_task.text_format import TextFormat

logger = logging.getLogger(__name__)

CACHED_ROWS = 20_000  # splits of at least so many rows are kept on the disk once they are tokenized

Sequences = list[list[int]]


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
        workers: processes that share the work, as many as there are CPUs at most; None: this one alone.
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


def _tokenized(
    rows: Sequence[Row], text_format: TextFormat, max_target_length: int, workers: int | None
) -> tuple[Sequences, Sequences]:
    work = partial(_tokenize_part, text_format, max_target_length)
    workers = min(workers or 1, os.cpu_count() or 1)
    if workers == 1 or len(rows) < 2:
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
