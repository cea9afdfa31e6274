"""Preferences over replies: pairs and rankings from files or the hub, as ranking sets.

A row is a pair (`prompt`, `chosen`, `rejected`, optional `margin`) or a ranking (`prompt`, `completions`, `scores`),
each of text or messages. A pair may hold its prompt within `chosen` and `rejected`, as TRL takes it.
"""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.builtin.planted_errors import ranked_rows
from common.data_files import FILE_TYPES, Located, read_rows, shown_columns
from common.errors import UserError, nearest
from common.language_models.replies import Messages, Text
from common.training.progress import progress

logger = logging.getLogger(__name__)

BUILTIN_DATA = {"builtin/planted-errors": 1, "builtin/planted-errors-long": 4}  # sentences of a reply
BAD_ROWS = ("error", "skip")
MOST_BAD_ROWS_SHOWN = 20


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold what.

    Attributes:
        prompt, chosen, rejected, completions, scores: a file of pairs has the first three, one of rankings the others.
        ranks: column of ranks, 1 the best, in place of scores.
        margin, weight: of a row, where given; a column called ``margin`` may be missing, as TRL has it.
        spans: for each completion the characters (start, end) that are wrong, to compare rewards with; where given.
        prompt_end: for text pairs without a prompt of their own: the prompt ends behind the last such mark.
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    completions: str = "completions"
    scores: str = "scores"
    ranks: str | None = None
    margin: str | None = "margin"
    weight: str | None = None
    spans: str | None = None
    prompt_end: str | None = None


@dataclass(frozen=True)
class RankingSet:
    """Replies to one prompt and what is preferred.

    Attributes:
        prompt: text or messages; an empty text where there is none.
        replies: K >= 2 of them, not all equal.
        scores: one for each, higher is better; equal ones say nothing.
        margin: by which a better reply's score is to exceed a worse one's.
        weight: of the set in the loss.
        spans: characters of each reply that are known to be wrong, or None where nothing is known.
        where: words that say which row it came from.
    """

    prompt: Text
    replies: tuple[Text, ...]
    scores: tuple[float, ...]
    margin: float = 0.0
    weight: float = 1.0
    spans: tuple[tuple[tuple[int, int], ...], ...] | None = None
    where: str = ""


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
        seed: which prompts are held out, and which sets stay where there are more than may be.

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
    return Preferences(_draw(train, max_train_samples, seed), _draw(validation, max_eval_samples, seed), bad)


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


def ranking_set(row: Mapping[str, Any], columns: Columns, where: str = "row") -> RankingSet:
    """The ranking set of one row.

    Raises:
        UserError: `where` and what is wrong: columns that are missing, no two different replies, an empty reply,
            broken messages, a prompt that cannot be found in a pair, scores that are no numbers.
    """
    try:
        return _ranking_set({name: _parsed(value) for name, value in row.items()}, columns, where)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _ranking_set(row: Mapping[str, Any], columns: Columns, where: str) -> RankingSet:
    prompt = text_or_messages(row[columns.prompt], columns.prompt) if row.get(columns.prompt) is not None else None
    replies: list[Text]
    row = {name: value for name, value in row.items() if value is not None}
    if columns.chosen in row or columns.rejected in row:
        pair = [text_or_messages(_cell(row, name), name) for name in (columns.chosen, columns.rejected)]
        if prompt is None:
            prompt, pair = _split_pair(pair[0], pair[1], columns)
        elif not isinstance(prompt, str) and not any(isinstance(reply, str) for reply in pair):
            pair = [_without_prompt(prompt, reply) for reply in pair]
        replies, scores = pair, [1.0, 0.0]
    elif row.get(columns.completions) is not None:
        found = row[columns.completions]
        if not isinstance(found, list | tuple):
            raise UserError(f"'{columns.completions}' is {type(found).__name__}, not a list of replies")
        replies = [text_or_messages(reply, columns.completions) for reply in found]
        scores = _scores(row, columns, len(replies))
        if prompt is None:
            prompt = ""
    else:
        raise UserError(
            f"neither '{columns.chosen}' and '{columns.rejected}' nor '{columns.completions}' ({shown_columns(row)})"
        )
    for reply in replies:
        content = reply if isinstance(reply, str) else "".join(str(message["content"]) for message in reply)
        if not content.strip():
            raise UserError("an empty reply")
    if len(replies) < 2 or all(reply == replies[0] for reply in replies):
        raise UserError("no two different replies")
    margin = _number(row, columns.margin, 0.0)
    weight = _number(row, columns.weight, 1.0)
    if margin < 0 or weight < 0:
        raise UserError(f"'{columns.margin if margin < 0 else columns.weight}' is below zero")
    spans = None
    if columns.spans is not None:
        try:
            spans = tuple(tuple((int(a), int(b)) for a, b in marked) for marked in _cell(row, columns.spans))
        except (TypeError, ValueError):
            raise UserError(f"'{columns.spans}' is no list of [start, end] lists, one for each reply") from None
        if len(spans) != len(replies):
            raise UserError(f"'{columns.spans}' has {len(spans)} entries for {len(replies)} replies")
    return RankingSet(prompt, tuple(replies), tuple(scores), margin, weight, spans, where)


def _scores(row: Mapping[str, Any], columns: Columns, count: int) -> list[float]:
    name = columns.ranks or columns.scores
    cell = _cell(row, name)
    if not isinstance(cell, list | tuple):
        raise UserError(f"'{name}' is {type(cell).__name__}, not a list of numbers")
    if len(cell) != count:
        raise UserError(f"'{name}' has {len(cell)} numbers for {count} replies")
    scores = []
    for value in cell:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"'{name}' holds {value!r}, which is no number")
        scores.append(float(-value if columns.ranks else value))
    return scores


def _number(row: Mapping[str, Any], name: str | None, default: float) -> float:
    if name is None or (name == Columns.margin and row.get(name) is None):
        return default
    value = _cell(row, name)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise UserError(f"'{name}' holds {value!r}, which is no number")
    return number


def _split_pair(chosen: Text, rejected: Text, columns: Columns) -> tuple[Text, list[Text]]:
    """The common prompt of a pair that holds it within both replies, and what is left of the two."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        if columns.prompt_end is not None:
            at = chosen.rfind(columns.prompt_end)
            if at < 0:
                raise UserError(f"no {columns.prompt_end!r} in '{columns.chosen}', behind which the reply would begin")
            length = at + len(columns.prompt_end)
            if not rejected.startswith(chosen[:length]):
                raise UserError(f"'{columns.rejected}' does not begin with the prompt of '{columns.chosen}'")
        else:
            length = _common_length(chosen, rejected)
            while length and not chosen[length - 1].isspace():
                length -= 1  # a word is not torn
        return chosen[:length], [chosen[length:], rejected[length:]]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise UserError(f"'{columns.chosen}' and '{columns.rejected}' are text and messages")
    length = _common_length(chosen, rejected)
    return chosen[:length], [chosen[length:], rejected[length:]]


def _common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many characters or messages two replies begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _without_prompt(prompt: Messages, reply: Text) -> Text:
    """A reply that repeats the prompt's messages, without them."""
    return reply[len(prompt) :] if list(reply[: len(prompt)]) == list(prompt) else reply


def text_or_messages(value: Any, name: str) -> Text:
    """A cell as text or messages; `name` is the column's.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"'{name}' holds half a character (a lone surrogate)") from None
        return value
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise UserError(f"'{name}' is {type(value).__name__}, neither text nor messages")
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UserError(f"'{name}' has a message without role and content")
        if not isinstance(message["role"], str) or not isinstance(message["content"], str):
            raise UserError(f"'{name}' has a message whose role or content is no text")
    return tuple(dict(message) for message in value)


def _cell(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise UserError(f"no '{name}'{nearest(name, row)} ({shown_columns(row)})")
    return row[name]


def _parsed(value: Any) -> Any:
    """A cell of a csv file that holds a list, as JSON, becomes that list."""
    if isinstance(value, str) and value[:1] == "[" and value.rstrip()[-1:] == "]":
        try:
            found = json.loads(value)
        except ValueError:
            return value
        return found if found and isinstance(found[0], Mapping | str | int | float | list) else value
    return value


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
