"""ROUGE with stemming, as the rouge-score package computes it; what it looks up again and again is remembered."""

import re
from collections.abc import Sequence
from functools import lru_cache

from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from sum_task.sentences import split_sentences

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_LETTERS_AND_DIGITS = re.compile(r"[a-z0-9]+")
_STEMMED_LENGTH = 4  # rouge-score leaves words of up to three letters as they are


def rouge_f1(prediction: str, reference: str, names: Sequence[str] = ROUGE_NAMES) -> dict[str, float]:
    """F1 of each ROUGE in `names` for one summary, in [0, 1]; 0 where one of the texts has no words.

    For ``rougeLsum`` both texts are split into sentences, as the published evaluation does.

    Raises:
        ValueError: a name that is not in `ROUGE_NAMES`.
    """
    for name in names:
        if name not in ROUGE_NAMES:
            raise ValueError(f"names: '{name}' is not one of {', '.join(ROUGE_NAMES)}")
    scores = _scorer(tuple(names)).score(_one_sentence_a_line(reference), _one_sentence_a_line(prediction))
    return {name: float(score.fmeasure) for name, score in scores.items()}


class _RememberingTokenizer(Tokenizer):
    """The tokens of rouge-score's own tokenizer with stemming."""

    def tokenize(self, text: str) -> list[str]:
        return [_stem(word) for word in _LETTERS_AND_DIGITS.findall(text.lower())]


@lru_cache(maxsize=16)
def _scorer(names: tuple[str, ...]) -> RougeScorer:
    return RougeScorer(list(names), tokenizer=_RememberingTokenizer())


_stemmer = PorterStemmer()


@lru_cache(maxsize=2**17)
def _stem(word: str) -> str:
    return _stemmer.stem(word) if len(word) >= _STEMMED_LENGTH else word


@lru_cache(maxsize=2**13)
def _one_sentence_a_line(text: str) -> str:
    return "\n".join(split_sentences(text))
