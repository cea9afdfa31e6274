"""Preferences of which the true reward of every token is known: replies about a report, ranked by planted errors."""

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.builtin.report_grammar import FACTS, STORIES, join_patterns, write_sentences
from common.errors import UserError

NAMES = ("first", "last", "team", "rival")
PLACES = ("place",)
# What can be left out of a sentence without making it ungrammatical, and so unnoticed by one who did not read.
OMISSIONS = (" on {day}", " in {place}", " of {place}", " {last}", " {prize}", " {number}", " for {demand}")


@dataclass(frozen=True)
class Reply:
    """What is said about a report.

    Attributes:
        text: one sentence or several.
        errors: how many were planted.
        wrong: characters (start, end) of each word that is wrong; of something left out, those of the word behind it,
            which is the first at which it shows.
    """

    text: str
    errors: int
    wrong: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Told:
    """What is true about a report.

    Attributes:
        document: the report.
        patterns: of sentences that tell it, with slots.
        facts: what belongs in the slots.
    """

    document: str
    patterns: tuple[str, ...]
    facts: Mapping[str, str]


def write_told(rng: random.Random) -> Told:
    """A report, and what is true about it."""
    story = rng.choice(STORIES)
    facts = {slot: rng.choice(values) for slot, values in FACTS.items()}
    document = join_patterns(write_sentences(rng, story), facts)
    return Told(document, tuple(f"{pattern} ." for pattern in story.summary[0]), facts)


def write_reply(rng: random.Random, told: Told, sentences: int = 1, most_errors: int = 3) -> Reply:
    """Some sentences about a report, each with 0 to `most_errors` planted errors."""
    text, errors, wrong = "", 0, []
    for _ in range(sentences):
        part = _with_errors(rng, rng.choice(told.patterns), told.facts, rng.randint(0, most_errors))
        shift = len(text) + (1 if text else 0)
        text = f"{text} {part.text}".strip()
        errors += part.errors
        wrong += [(start + shift, end + shift) for start, end in part.wrong]
    return Reply(text, errors, tuple(wrong))


def write_ranked_replies(
    rng: random.Random, count: int = 4, most_errors: int = 3, sentences: int = 1
) -> tuple[str, list[Reply]]:
    """A report, and `count` different replies about it, see `write_reply`."""
    told = write_told(rng)
    replies: dict[str, Reply] = {}
    while len(replies) < count:
        reply = write_reply(rng, told, sentences, most_errors)
        replies.setdefault(reply.text, reply)
    return told.document, list(replies.values())


def _with_errors(rng: random.Random, pattern: str, facts: Mapping[str, str], count: int) -> Reply:
    """The sentence with up to `count` errors: as many as it has room for, each in a slot of its own."""
    told: dict[str, str] = dict(facts)
    wrong_slots, gaps = set(), []
    slots = re.findall(r"{(\w+)}", pattern)
    changes = [slot for slot in slots if slot in NAMES + PLACES] + [part for part in OMISSIONS if part in pattern]
    rng.shuffle(changes)
    touched: set[str] = set()
    for change in changes:
        slot = change.strip(" {}").split("{")[-1]
        if len(touched) == count:
            break
        if slot in touched:
            continue
        touched.add(slot)
        if change in slots:
            told[slot] = rng.choice([value for value in FACTS[slot] if value != facts[slot]])
            wrong_slots.add(slot)
        else:
            gaps.append(change)
    for gap in gaps:
        pattern = pattern.replace(gap, "\0", 1)
    text, wrong, after_gap = "", [], False
    for word in pattern.replace("\0", " \0").split():
        if word.startswith("\0"):
            after_gap = True
            continue
        slot = word.strip("{}")
        shown = word.format_map(told)
        start = len(text) + (1 if text else 0)
        text = f"{text} {shown}" if text else shown
        if after_gap or (word != slot and slot in wrong_slots):
            wrong.append((start, len(text)))
        after_gap = False
    return Reply(text, len(touched), tuple(wrong))


def ranked_rows(count: int = 2400, seed: int = 0, sentences: int = 1) -> Iterator[dict[str, Any]]:
    """Ranking sets as the rows of a file: the score of a reply is minus the number of its errors."""
    for number in range(count):
        document, replies = write_ranked_replies(_row_generator(seed, number), sentences=sentences)
        yield {
            "prompt": document,
            "completions": [reply.text for reply in replies],
            "scores": [-reply.errors for reply in replies],
            "wrong": [[list(span) for span in reply.wrong] for reply in replies],
        }


def known_errors(count: int = 2400, seed: int = 0, sentences: int = 1) -> "KnownErrors":
    """What is wrong in any reply to the prompts of `ranked_rows`."""
    return KnownErrors((write_told(_row_generator(seed, number)) for number in range(count)), sentences)


def _row_generator(seed: int, number: int) -> random.Random:
    return random.Random(f"{seed} planted errors {number}")


class KnownErrors:
    """What is wrong in any reply about built-in reports: the fewest words to change until it is true.

    Each sentence is held against the true ones and its words put in, left out or exchanged count one each, at the word
    where it shows (of what is missing, the word behind it). Sentences that are missing count all their words at the end
    of the reply, those that were not asked for at their own.

    Args:
        reports: of which something is known.
        sentences: how many a reply is to have.
    """

    def __init__(self, reports: Iterable[Told], sentences: int = 1) -> None:
        self._told = {told.document: told for told in reports}
        self._sentences = sentences
        self._asked: dict[str, Told] = {}

    def edits(self, prompt: str, reply: str) -> list[tuple[tuple[int, int], int]]:
        """Characters (start, end) of each word of a reply and how many changes it needs; last those behind the text.

        Raises:
            UserError: the prompt holds no report that is known.
        """
        told = self._find(prompt)
        truths = [pattern.format_map(told.facts).split() for pattern in told.patterns]
        words = [(match[0], match.span()) for match in re.finditer(r"\S+", reply)]
        found: list[tuple[tuple[int, int], int]] = []
        missing, done, start = 0, 0, 0
        while start < len(words):
            stop = next((i + 1 for i in range(start, len(words)) if words[i][0] == "."), len(words))
            sentence = [word for word, _ in words[start:stop]]
            edits = [1] * len(sentence) + [0]
            if done < self._sentences:
                edits = min((_word_edits(sentence, truth) for truth in truths), key=sum)
            missing += edits[-1]
            found += [(span, count) for (_, span), count in zip(words[start:stop], edits[:-1], strict=True)]
            start, done = stop, done + 1
        missing += max(self._sentences - done, 0) * min(map(len, truths))
        return [*found, ((len(reply), len(reply) + 1), missing)]

    def score(self, prompt: str, reply: str) -> float:
        """Minus the changes that a reply needs; 0 where all is true."""
        return -float(sum(count for _, count in self.edits(prompt, reply)))

    def _find(self, prompt: str) -> Told:
        if prompt not in self._asked:
            inside = [told for document, told in self._told.items() if document in prompt]
            if not inside:
                raise UserError(f"no report that is built in: '{prompt[:60]}'")
            self._asked[prompt] = inside[0]
        return self._asked[prompt]


def _word_edits(words: Sequence[str], truth: Sequence[str]) -> list[int]:
    """The fewest changes from `words` to `truth`, at each word; last those behind them all."""
    costs = [[i + j if not i * j else 0 for j in range(len(truth) + 1)] for i in range(len(words) + 1)]
    for i, word in enumerate(words, 1):
        for j, true in enumerate(truth, 1):
            costs[i][j] = min(costs[i - 1][j - 1] + (word != true), costs[i - 1][j] + 1, costs[i][j - 1] + 1)
    edits, i, j = [0] * (len(words) + 1), len(words), len(truth)
    while i or j:
        alike = i > 0 and j > 0 and words[i - 1] == truth[j - 1]
        if j and not alike and costs[i][j] == costs[i][j - 1] + 1:
            j -= 1  # before an exchange, which would be of the word of another slot
            edits[i] += 1
        elif i and j and costs[i][j] == costs[i - 1][j - 1] + (not alike):
            i, j = i - 1, j - 1
            edits[i] += not alike
        elif j and costs[i][j] == costs[i][j - 1] + 1:
            j -= 1
            edits[i] += 1
        else:
            i -= 1
            edits[i] += 1
    return edits
