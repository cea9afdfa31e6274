"""Ranking sets from the rows of a file of preferences.

A row is a pair (`prompt`, `chosen`, `rejected`, optional `margin`) or a ranking (`prompt`, `completions`, `scores`),
each of text or messages. A pair may hold its prompt within `chosen` and `rejected`, as TRL takes it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import UserError, nearest
from common.language_models.replies import Messages, Text
from common.training.data_files import shown_columns

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold what.

    Attributes:
        prompt, chosen, rejected, completions, scores: a file of pairs has the first three, one of rankings the others.
        ranks: column of ranks, 1 the best, in place of scores.
        margin, weight: of a row, where given; a column called ``margin`` may be missing, as TRL has it.
        spans: the characters that are wrong, to compare rewards with; where given. A list of spans for each
            completion, null for one of which nothing is known, or a list of spans alone, which are the first one's. A
            span is [start, end], or a mapping that has both.
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
        spans: characters of each reply that are known to be wrong, None for one of which nothing is known; None where
            that is so of all.
        where: words that say which row it came from.
    """

    prompt: Text
    replies: tuple[Text, ...]
    scores: tuple[float, ...]
    margin: float = 0.0
    weight: float = 1.0
    spans: tuple[Spans | None, ...] | None = None
    where: str = ""


def ranking_set(row: Mapping[str, Any], columns: Columns, where: str = "row") -> RankingSet:
    """The ranking set of one row.

    Raises:
        UserError: `where` and what is wrong: columns that are missing, no two different replies, an empty reply,
            broken messages, a prompt that cannot be found in a pair, scores that are no numbers.
    """
    try:
        return _ranking_set({name: parsed(value) for name, value in row.items()}, columns, where)
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
    spans = None if columns.spans is None else _spans(_cell(row, columns.spans), columns.spans, len(replies))
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


def _spans(cell: Any, name: str, count: int) -> tuple[Spans | None, ...]:
    """The spans of each reply; see `Columns`."""
    try:
        if all(_is_span(entry) for entry in cell):
            cell = [cell, *[None] * (count - 1)]
        found = tuple(None if spans is None else tuple(map(_span, spans)) for spans in cell)
    except (TypeError, ValueError, KeyError):
        raise UserError(f"'{name}' is no list of [start, end] lists, one for each reply") from None
    if len(found) != count:
        raise UserError(f"'{name}' has {len(found)} entries for {count} replies")
    return found


def _is_span(entry: Any) -> bool:
    return isinstance(entry, Mapping) or (isinstance(entry, list | tuple) and bool(entry) and isinstance(entry[0], int))


def _span(entry: Any) -> tuple[int, int]:
    start, end = (entry["start"], entry["end"]) if isinstance(entry, Mapping) else entry
    return int(start), int(end)


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


def parsed(value: Any) -> Any:
    """A cell of a csv file that holds a list, as JSON, becomes that list."""
    if isinstance(value, str) and value[:1] == "[" and value.rstrip()[-1:] == "]":
        try:
            found = json.loads(value)
        except ValueError:
            return value
        return found if found and isinstance(found[0], Mapping | str | int | float | list) else value
    return value
