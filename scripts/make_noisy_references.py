"""References with wrong facts and with copied sentences, from any file of articles and summaries, seeded.

    python scripts/make_noisy_references.py --input common/builtin/data/reports/train.jsonl --output noisy.jsonl
    python scripts/make_noisy_references.py --input train.csv --output noisy.jsonl --facts 0.6 --lead 0 --seed 1
    python scripts/make_noisy_references.py --input test.csv --output noisy.jsonl --lead 0 --marked errors.jsonl
    python scripts/make_noisy_references.py --input train.csv --output noisy.jsonl --put swapped --rankings ranked.jsonl

Two kinds of noise, one that a language model can tell and one that a preference can tell:

* facts (probability --facts, of each fact word): it becomes the one word of its kind that a lazy writer always puts. In
  the built-in reports kinds are the slots of the grammar and that word is the first of the slot. In other texts they
  are numbers, names of days and months, and words with a capital inside a sentence, each with the commonest of its
  kind in the summaries of the file. With --put swapped it becomes another word of its kind, from its article if that
  has one, else from the summaries of the file: errors that read well.
* lead (probability --lead, of each summary): it becomes one or two sentences of its article.

The output holds document, summary (noisy) and clean_summary: train on it with --preference_column=clean_summary, and
sampled summaries are still judged by the clean ones. With the defaults, both at 0.5, it is the data set
builtin/noisy-data. --marked writes the noisy summaries once more, with the characters of each wrong word and the right
one, for scripts/credit_accuracy.py. --rankings writes for chat_task the clean summary of each article above --versions
others with wrong facts, ranked by how many, and those words in the column wrong.
"""

from common.training.program import run_command

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.builtin.report_grammar import FACTS, STORIES
from common.errors import UserError
from common.training.console import Parser
from common.training.files import check_output, write_jsonl_atomic
from common.training.ranges import COUNT, INDEX, SHARE
from sum_task.data import Row, load_rows
from sum_task.sentences import split_sentences

_WORD = re.compile(r"\w+(?:[-'.,]\w+)*")
_CALENDAR = re.compile(
    r"(mon|tues|wednes|thurs|fri|satur|sun)day"
    r"|january|february|march|april|june|july|august|september|october|november|december",
    re.IGNORECASE,
)
_SUMMARIES = " ".join(form for story in STORIES for forms in story.summary for form in forms)
_SLOT_OF = {word: slot for slot, words in FACTS.items() if f"{{{slot}}}" in _SUMMARIES for word in words}

Lazy = Callable[[str, bool], str | None]
"""(word, whether a sentence begins with it) -> what a lazy writer puts, or None for a word that is no fact."""

LazyOf = Callable[[Row], Lazy]
"""The same for the summary of each row."""


def report_facts(word: str, begins: bool) -> str | None:
    """The first word of its slot in the grammar of the built-in reports."""
    slot = _SLOT_OF.get(word)
    return None if slot is None else FACTS[slot][0]


def kind_of(word: str, begins: bool) -> str | None:
    """number, calendar or name; None for other words."""
    if any(letter.isdigit() for letter in word):
        return "number"
    if _CALENDAR.fullmatch(word):
        return "calendar"
    return "name" if word[0].isupper() and not begins and len(word) > 1 else None


def text_facts(summaries: Sequence[str]) -> Lazy:
    """The commonest word of its kind in some summaries."""
    commonest = {kind: max(sorted(words), key=words.__getitem__) for kind, words in _words_of_kinds(summaries).items()}
    return lambda word, begins: commonest.get(kind_of(word, begins) or "")


def swapped_facts(summaries: Sequence[str], rng: random.Random) -> LazyOf:
    """Another word of its kind from the article, or where that has none from all `summaries`."""
    everywhere = _words_of_kinds(summaries)

    def of_row(row: Row) -> Lazy:
        here = _words_of_kinds([row.source])

        def put(word: str, begins: bool) -> str | None:
            kind = kind_of(word, begins)
            if kind is None:
                return None
            for words in (here, everywhere):
                others = sorted(set(words.get(kind, ())) - {word})
                if others:
                    return rng.choice(others)
            return word

        return put

    return of_row


def _words_of_kinds(texts: Sequence[str]) -> dict[str, Counter[str]]:
    """How often each fact word of each kind comes in some texts."""
    counts: dict[str, Counter[str]] = {}
    for text in texts:
        for word, begins in _words(text):
            kind = kind_of(word, begins)
            if kind is not None:
                counts.setdefault(kind, Counter())[word] += 1
    return counts


class Noisy(NamedTuple):
    """A summary with noise: its text, the characters (start, end) of each wrong word, and what should stand there."""

    text: str
    spans: list[tuple[int, int]]
    right: list[str]


def noisy(row: Row, lazy: Lazy, facts: float, lead: float, rng: random.Random) -> Noisy:
    """The summary of a row with noise.

    The same numbers are drawn whatever the probabilities are. A copied summary has no wrong word.
    """
    text, end, spans, right = "", 0, [], []
    for match, (word, begins) in zip(_WORD.finditer(row.reference), _words(row.reference), strict=True):
        put = lazy(word, begins)
        wrong = put is not None and rng.random() < facts
        text += row.reference[end : match.start()]
        if wrong and put is not None and put != word:
            spans.append((len(text), len(text) + len(put)))
            right.append(word)
            word = put
        text += word
        end = match.end()
    sentences = _sentences(row.source)
    start, count = rng.randrange(len(sentences)), rng.randint(1, 2)
    if rng.random() < lead:
        return Noisy(" ".join(sentences[start : start + count]), [], [])
    return Noisy(text + row.reference[end:], spans, right)


def _words(text: str) -> list[tuple[str, bool]]:
    """The words of a text, and whether each begins a sentence."""
    found, begins, end = [], True, 0
    for match in _WORD.finditer(text):
        begins = begins or any(mark in text[end : match.start()] for mark in ".!?\n")
        found.append((match.group(), begins))
        begins, end = False, match.end()
    return found


def _sentences(text: str) -> list[str]:
    """Those of the reports end in a full stop with blanks around it, which other texts do not."""
    if " . " in text:
        return [f"{part.strip()} ." for part in re.split(r" \.(?: |$)", text) if part.strip()]
    return split_sentences(text) or [text]


def main(words: Sequence[str] | None = None) -> int:
    """Read, make the noise and write."""
    parser = Parser("scripts/make_noisy_references.py", __doc__)
    parser.add_argument("--input", required=True, metavar="FILE", help="csv, json or jsonl file")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="jsonl file")
    parser.add_argument("--text_column", metavar="NAME", help="column of the articles")
    parser.add_argument("--summary_column", metavar="NAME", help="column of the summaries")
    parser.add_argument("--facts", type=SHARE, default=0.5, help="probability that a fact word is wrong (0.5)")
    parser.add_argument("--lead", type=SHARE, default=0.5, help="probability that a summary is copied (0.5)")
    parser.add_argument("--kinds", choices=("auto", "reports", "text"), default="auto", help="what a fact word is")
    parser.add_argument(
        "--put", choices=("commonest", "swapped"), default="commonest", help="what a wrong fact becomes (commonest)"
    )
    parser.add_argument("--marked", type=Path, metavar="FILE", help="jsonl file of texts with spans")
    parser.add_argument("--rankings", type=Path, metavar="FILE", help="jsonl file of ranked summaries for chat_task")
    parser.add_argument(
        "--versions", type=COUNT, default=1, metavar="N", help="noisy summaries of an article in it (1)"
    )
    parser.add_argument("--max_words", type=COUNT, metavar="N", help="cut articles behind so many words")
    parser.add_argument("--seed", type=INDEX, default=0)
    options = parser.parse_args(words)
    for name in ("output", "marked", "rankings"):
        if getattr(options, name) is not None:
            check_output(f"--{name}", getattr(options, name), options.input)
    rows = load_rows(options.input, options.text_column, options.summary_column)
    if options.max_words:
        start = re.compile(rf"\s*(\S+\s+){{0,{options.max_words - 1}}}\S+")
        rows = [row._replace(source=found[0]) for row in rows if (found := start.match(row.source))]
    kinds = _kinds(rows) if options.kinds == "auto" else options.kinds
    if options.put == "swapped" and kinds == "reports":
        raise UserError("--put: the facts of the built-in reports are not swapped; give --kinds text, or leave it out")
    lazy_of = _lazy_of(rows, kinds, options.put, options.seed)
    rng = random.Random(f"{options.seed} noise")
    made: list[Mapping[str, str]] = []
    marked: list[Mapping[str, Any]] = []
    for row in rows:
        changed_row = noisy(row, lazy_of(row), options.facts, options.lead, rng)
        made.append({"document": row.source, "summary": changed_row.text, "clean_summary": row.reference})
        marked.append({"prompt": row.source, **changed_row._asdict()})
    write_jsonl_atomic(options.output, made)
    if options.marked is not None:
        write_jsonl_atomic(options.marked, marked)
    changed = sum(row["summary"] != row["clean_summary"] for row in made)
    print(f"{options.output}: {changed} of {len(made)} summaries changed")
    if options.rankings is not None:
        rng = random.Random(f"{options.seed} rankings")
        ranked = [rank(row, lazy_of(row), options.facts, options.versions, rng) for row in rows]
        kept = [row for row in ranked if row is not None]
        write_jsonl_atomic(options.rankings, kept)
        print(f"{options.rankings}: {len(kept)} rankings; {len(rows) - len(kept)} summaries have no fact to change")
    return 0


def rank(row: Row, lazy: Lazy, facts: float, versions: int, rng: random.Random) -> dict[str, Any] | None:
    """The clean summary of a row above up to `versions` different ones with wrong facts; None if there are none."""
    found: dict[str, list[tuple[int, int]]] = {row.reference: []}
    for _ in range(8 * versions):
        text, spans, _ = noisy(row, lazy, facts, 0.0, rng)
        if spans and len(found) <= versions:
            found.setdefault(text, spans)
    if len(found) == 1:
        return None
    scores = [-len(spans) for spans in found.values()]
    return {"prompt": row.source, "completions": list(found), "scores": scores, "wrong": list(found.values())}


def _kinds(rows: Sequence[Row]) -> str:
    """The built-in reports are all lower case and full of the grammar's words."""
    is_reports = all(row.reference == row.reference.lower() and " ." in row.reference for row in rows)
    return "reports" if is_reports else "text"


def _lazy_of(rows: Sequence[Row], kinds: str, put: str, seed: int) -> LazyOf:
    summaries = [row.reference for row in rows]
    if put == "swapped":
        return swapped_facts(summaries, random.Random(f"{seed} words"))
    lazy = report_facts if kinds == "reports" else text_facts(summaries)
    return lambda row: lazy


if __name__ == "__main__":
    run_command(main)
