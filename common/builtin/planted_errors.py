"""Preferences of which the true reward of every token is known: replies about a report, ranked by planted errors."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from common.builtin.report_grammar import FACTS, STORIES, join_patterns, write_sentences

NAMES = ("first", "last", "team", "rival")
PLACES = ("place",)
# What can be left out of a sentence without making it ungrammatical, and so unnoticed by one who did not read.
OMISSIONS = (" on {day}", " in {place}", " of {place}", " {last}", " {prize}", " {number}", " for {demand}")


@dataclass(frozen=True)
class Reply:
    """A sentence about a report.

    Attributes:
        text: the sentence.
        errors: how many were planted.
        wrong: characters (start, end) of each word that is wrong; of something left out, those of the word behind it,
            which is the first at which it shows.
    """

    text: str
    errors: int
    wrong: tuple[tuple[int, int], ...]


def write_ranked_replies(rng: random.Random, count: int = 4, most_errors: int = 3) -> tuple[str, list[Reply]]:
    """A report, and `count` different sentences about it with 0 to `most_errors` planted errors each."""
    story = rng.choice(STORIES)
    facts = {slot: rng.choice(values) for slot, values in FACTS.items()}
    document = join_patterns(write_sentences(rng, story), facts)
    replies: dict[str, Reply] = {}
    while len(replies) < count:
        pattern = rng.choice(story.summary[0]) + " ."
        reply = _with_errors(rng, pattern, facts, rng.randint(0, most_errors))
        replies.setdefault(reply.text, reply)
    return document, list(replies.values())


def _with_errors(rng: random.Random, pattern: str, facts: dict[str, str], count: int) -> Reply:
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


def ranked_rows(count: int = 2400, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Ranking sets as the rows of a file: the score of a reply is minus the number of its errors."""
    for number in range(count):
        document, replies = write_ranked_replies(random.Random(f"{seed} planted errors {number}"))
        yield {
            "prompt": document,
            "completions": [reply.text for reply in replies],
            "scores": [-reply.errors for reply in replies],
            "wrong": [[list(span) for span in reply.wrong] for reply in replies],
        }
