"""ROUGE with stemming, as the rouge-score package computes it; what it looks up again and again is remembered."""

import logging
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from sum_task.sentences import split_sentences

logger = logging.getLogger(__name__)

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

# What a word is: as rouge-score has it (every other letter ends one), or letters, marks and digits of any script.
WORDS = {
    "ascii": re.compile(r"[a-z0-9]+"),
    "unicode": re.compile(r"(?:[^\W_]|[\u0300-\u036f\u0900-\u0dff\u0e00-\u0eff])+"),
}
_OTHER_LETTER = re.compile(r"[^\W\d_a-zA-Z]")
_STEMMED_LENGTH = 4  # rouge-score leaves words of up to three letters as they are


def rouge_f1(
    prediction: str, reference: str, names: Sequence[str] = ROUGE_NAMES, words: str = "ascii"
) -> dict[str, float]:
    """F1 of each ROUGE in `names` for one summary, in [0, 1]; 0 where one of the texts has no words.

    For ``rougeLsum`` both texts are split into sentences, as the published evaluation does.

    Args:
        prediction, reference: the texts.
        names: of :data:`ROUGE_NAMES`.
        words: of :data:`WORDS`. ``ascii``, as published: only a-z and 0-9 make words, so that *élève* is *l* and *ve*.

    Raises:
        ValueError: a name that is not in `ROUGE_NAMES`, or words that are not in `WORDS`.
    """
    if words not in WORDS:
        raise ValueError(f"words: '{words}' is not one of {', '.join(WORDS)}")
    for name in names:
        if name not in ROUGE_NAMES:
            raise ValueError(f"names: '{name}' is not one of {', '.join(ROUGE_NAMES)}")
    scores = _scorer(tuple(names), words).score(_one_sentence_a_line(reference), _one_sentence_a_line(prediction))
    return {name: float(score.fmeasure) for name, score in scores.items()}


def note_other_letters(references: Sequence[str], words: str) -> None:
    """Say so where ROUGE takes words of these references apart; to be called once a run."""
    if words == "ascii":
        others = [found[0] for text in references if (found := _OTHER_LETTER.search(text))]
        if others:
            logger.warning(
                "%d of %d references have letters other than a-z, such as '%s': ROUGE as published ends words there; "
                "rouge_words=unicode takes words of any script whole",
                len(others), len(references), others[0],
            )  # fmt: skip


class _RememberingTokenizer(Tokenizer):
    """The tokens of rouge-score's own tokenizer with stemming, or words of any script."""

    def __init__(self, words: str) -> None:
        self._pattern = WORDS[words]

    def tokenize(self, text: str) -> list[str]:
        text = unicodedata.normalize("NFC", text.lower())
        return [_stem(word) for word in self._pattern.findall(text)]


@lru_cache(maxsize=16)
def _scorer(names: tuple[str, ...], words: str) -> RougeScorer:
    return RougeScorer(list(names), tokenizer=_RememberingTokenizer(words))


_stemmer = PorterStemmer()


@lru_cache(maxsize=2**17)
def _stem(word: str) -> str:
    return _stemmer.stem(word) if len(word) >= _STEMMED_LENGTH else word


@lru_cache(maxsize=2**13)
def _one_sentence_a_line(text: str) -> str:
    return "\n".join(split_sentences(text))
