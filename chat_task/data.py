"""Preferences over replies from files or the hub, as ranking sets; some prompts are held out."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from chat_task.ranking_rows import Columns, RankingSet, ranking_set
from common.builtin.planted_errors import ranked_rows
from common.errors import UserError, nearest
from common.training.data_files import FILE_TYPES, Located, read_rows
from common.training.progress import progress

logger = logging.getLogger(__name__)

BUILTIN_DATA = {"builtin/planted-errors": 1, "builtin/planted-errors-long": 4}  # sentences of a reply
BAD_ROWS = ("error", "skip")
MOST_BAD_ROWS_SHOWN = 20


@dataclass
class Preferences:
    """Ranking sets to learn from and to judge by.

    Attributes:
        train, validation: no prompt is in both.
        bad_rows: one line for each row that was left out.
    """

    train: list[RankingSet]
    validation: list[RankingSet]
    bad_rows: list[str] = field(default_factory=list)


def load_preferences(
    *,
    columns: Columns,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    dataset_split: str = "train",
    train_file: str | None = None,
    validation_file: str | None = None,
    validation_share: float = 0.1,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    bad_rows: str = "error",
    pairs_per_set: int | None = None,
    seed: int = 0,
) -> Preferences:
    """Load preferences and hold some prompts out.

    Args:
        columns: see there.
        dataset_name: data set of the hub, folder that `datasets` reads, or one of `BUILTIN_DATA`.
        dataset_config, dataset_split: of that data set.
        train_file: a jsonl, json, csv or parquet file instead.
        validation_file: the same for validation; where it is not given, `validation_share` of the prompts of the
            training rows are held out, drawn with `seed`.
        max_train_samples, max_eval_samples: at most so many sets of each, the first after the draw.
        bad_rows: ``error``: the first one ends it; ``skip``: the rest goes on.
        pairs_per_set: see `pairs_of_sets`; of the training sets that are kept.
        seed: which prompts are held out, and which sets and pairs stay where there are more than may be.

    Raises:
        UserError: something cannot be read, a row is bad and `bad_rows` is ``error``, or a side has no row.
    """
    if (dataset_name is None) == (train_file is None):
        raise UserError("give either dataset_name or train_file")
    bad: list[str] = []
    name = dataset_name or str(train_file)
    sets = _sets(name, _rows(dataset_name, dataset_config, dataset_split, train_file), columns, bad_rows, bad)
    if validation_file is not None:
        train = sets
        validation = _sets(validation_file, _file_rows(validation_file), columns, bad_rows, bad)
        held = {prompt_key(item) for item in validation}
        both = sum(prompt_key(item) in held for item in train)
        if both:
            logger.warning("%d sets of %s have a prompt that %s has too", both, name, validation_file)
    else:
        train, validation = split_by_prompt(sets, validation_share, seed)
    for line in bad[:MOST_BAD_ROWS_SHOWN]:
        logger.warning("left out: %s", line)
    if len(bad) > MOST_BAD_ROWS_SHOWN:
        logger.warning("left out: %d rows more", len(bad) - MOST_BAD_ROWS_SHOWN)
    for side, items in (("train", train), ("validation", validation)):
        if not items:
            raise UserError(f"{name}: no ranking set for {side} ({len(sets)} usable rows, {len(bad)} left out)")
    train = _draw(train, max_train_samples, seed)
    if pairs_per_set is not None:
        train = pairs_of_sets(train, pairs_per_set, seed)
        if not train:
            raise UserError(f"pairs_per_set: no two replies of a training set of {name} have different scores")
    return Preferences(train, _draw(validation, max_eval_samples, seed), bad)


def prompt_key(item: RankingSet) -> str:
    """A text that is the same for sets of the same prompt."""
    return item.prompt if isinstance(item.prompt, str) else json.dumps(item.prompt, sort_keys=True, default=str)


def split_by_prompt(sets: Sequence[RankingSet], share: float, seed: int) -> tuple[list[RankingSet], list[RankingSet]]:
    """The sets whose prompts stay, and those whose prompts are held out: `share` of the prompts, at least one.

    A prompt is held out or not by a hash of itself and the seed, whatever else is in the data.
    """
    keys = sorted({prompt_key(item) for item in sets}, key=lambda key: _hash(key, seed))
    held = set(keys[: max(1, round(share * len(keys)))]) if len(keys) > 1 else set()
    return [s for s in sets if prompt_key(s) not in held], [s for s in sets if prompt_key(s) in held]


def pairs_of_sets(sets: Sequence[RankingSet], count: int, seed: int) -> list[RankingSet]:
    """Rankings taken apart as pairwise trainers take them: of each at most `count` pairs of different score, drawn."""
    found = []
    for item in sets:
        places = range(len(item.replies))
        pairs = [(i, j) for i in places for j in places if item.scores[i] > item.scores[j]]
        pairs.sort(key=lambda pair: _hash(f"{prompt_key(item)} {pair}", seed))
        for pair in pairs[:count]:
            replies, scores = tuple(item.replies[k] for k in pair), tuple(item.scores[k] for k in pair)
            spans = item.spans and tuple(item.spans[k] for k in pair)
            found.append(replace(item, replies=replies, scores=scores, spans=spans))
    return found


def _sets(name: str, rows: Iterator[Located], columns: Columns, bad_rows: str, bad: list[str]) -> list[RankingSet]:
    sets = []
    for where, row in progress(rows, f"reading {name}", "row"):
        try:
            sets.append(ranking_set(row, columns, where))
        except UserError as error:
            if bad_rows == "error":
                raise UserError(f"{error}; bad_rows=skip leaves such rows out") from None
            bad.append(str(error))
    return sets


def _rows(dataset_name: str | None, config: str | None, split: str, file: str | None) -> Iterator[Located]:
    if dataset_name is None:
        return _file_rows(str(file))
    if dataset_name in BUILTIN_DATA:
        rows = ranked_rows(sentences=BUILTIN_DATA[dataset_name])
        return ((f"{dataset_name}, row {n}", row) for n, row in enumerate(rows, start=1))
    if dataset_name.startswith("builtin/"):
        raise UserError(f"dataset_name: '{dataset_name}' is not built in{nearest(dataset_name, BUILTIN_DATA)}")
    return _hub_rows(dataset_name, config, split)


def _hub_rows(name: str, config: str | None, split: str) -> Iterator[Located]:
    from datasets import load_dataset  # slow to import, and not needed for local files
    from datasets.exceptions import DatasetsError

    try:
        dataset = load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(f"dataset_name: cannot load {name}: {reason}; train_file reads local files") from None
    return ((f"{name} ({split}), row {n}", row) for n, row in enumerate(dataset, start=1))


def _file_rows(file: str) -> Iterator[Located]:
    path = Path(file).expanduser()
    if path.suffix.lower() in FILE_TYPES and not path.is_file():
        raise UserError(f"no file {path.absolute()}")
    return read_rows(path)


def _draw(sets: list[RankingSet], limit: int | None, seed: int) -> list[RankingSet]:
    """At most `limit` sets, in their order."""
    if limit is None or limit >= len(sets):
        return sets
    kept = sorted(range(len(sets)), key=lambda i: _hash(f"{i} {prompt_key(sets[i])}", seed))[:limit]
    return [sets[i] for i in sorted(kept)]


def _hash(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {text}".encode()).hexdigest()
