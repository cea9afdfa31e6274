"""Line breaks of texts for vocabularies that have none and write a mark instead, such as the ``<n>`` of Pegasus."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

_MARK = re.compile(r"▁?[<\[](n|nl|lf|br|newline|line_?break)/?[>\]]", re.IGNORECASE)


@dataclass(frozen=True)
class LineBreak:
    """The mark of a vocabulary.

    Attributes:
        token_id: of the mark.
        text: what stands for a line break in a text that is tokenized.
    """

    token_id: int
    text: str

    def mark(self, text: str) -> str:
        """The text with the mark in place of each line break."""
        return text.replace("\n", self.text)

    def unmarked(self, text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Spans of characters of `mark(text)` as spans of `text`."""
        places: list[int] = []
        for place, character in enumerate(text):
            places += [place] * (len(self.text) if character == "\n" else 1)
        return [(places[start], places[end - 1] + 1) if end > start else (0, 0) for start, end in spans]


def line_break(tokenizer: Any) -> LineBreak | None:
    """How a vocabulary writes a line break; None where it can hold one itself, or has no mark for it."""

    def read(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    if "\n" in tokenizer.decode(read("a\nb"), clean_up_tokenization_spaces=False):
        return None
    vocabulary = tokenizer.get_vocab()
    for mark in sorted(token for token in vocabulary if _MARK.fullmatch(token)):
        for text in (mark.lstrip("▁"), f" {mark.lstrip('▁')} "):  # a tokenizer that splits at blanks needs them
            if vocabulary[mark] in read(f"a{text}b"):
                return LineBreak(vocabulary[mark], text)
    return None


def decode_lines(tokenizer: Any, ids: Sequence[int], mark: LineBreak | None, **options: Any) -> str:
    """The text of some tokens, with a line break for each mark; `options` are those of the tokenizer's ``decode``."""
    if mark is None:
        return str(tokenizer.decode(ids, **options))
    pieces = []
    for is_mark, group in groupby(ids, lambda token: token == mark.token_id):
        run = list(group)
        pieces.append("\n" * len(run) if is_mark else str(tokenizer.decode(run, **options)))
    return "".join(pieces)
