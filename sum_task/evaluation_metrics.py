"""Figures of a set of summaries: ROUGE, METEOR, length, novelty, BERTScore and metrics of `evaluate` if asked for.

Each is computed for every summary and then averaged, so that the mean is the plain mean of what a table of single
summaries shows; nothing is resampled.
"""

import importlib.util
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from sum_task.evaluate_library import PREFIX, LibraryMetric, MetricSpec
from sum_task.meteor import Meteor, require_wordnet, wordnet_path
from sum_task.rouge import ROUGE_NAMES, rouge_f1

NOVELTY_LENGTHS = (1, 2, 3)

_WORD = re.compile(r"\w+")


def check_available(*, meteor: bool = True, bertscore: bool = False) -> None:
    """Check, before anything is trained, that what the evaluation needs is installed.

    Raises:
        UserError: WordNet or the bert-score package is missing; the message says how to install it.
    """
    if meteor:
        require_wordnet()
    if bertscore and importlib.util.find_spec("bert_score") is None:
        raise UserError("BERTScore needs the package bert-score; install it with: python -m pip install bert-score")


def per_example(
    predictions: Sequence[str],
    references: Sequence[str],
    sources: Sequence[str],
    meteor: bool = True,
    bertscore: bool = False,
    metrics: Sequence[LibraryMetric] = (),
    rouge_words: str = "ascii",
) -> list[dict[str, float | None]]:
    """Figures of each summary.

    ``rouge1``, ``rouge2``, ``rougeL``, ``rougeLsum``: F1 in percent, words (see `rouge_f1`) stemmed, sentences split
    for the last.
    ``meteor``: in percent. ``length``: words between blanks. ``novelty1``, ``novelty2``, ``novelty3``: share, in
    [0, 1], of the summary's n-grams (of words in lower case, repeated ones counted as often as they come) that the
    source does not hold; None for a summary of fewer than n words. ``bertscore``: F1 in percent, of the bert-score
    package's default model for English. Each of `metrics` by its name, as it gives it.

    Raises:
        ValueError: no summaries, or the three arguments differ in length.
        UserError: see `check_available`.
    """
    if not predictions:
        raise ValueError("predictions: there are none")
    check_available(meteor=meteor, bertscore=bertscore)
    rows: list[dict[str, float | None]] = []
    for prediction, reference, source in zip(predictions, references, sources, strict=True):
        rouge = rouge_f1(prediction, reference, ROUGE_NAMES, rouge_words)
        row: dict[str, float | None] = {name: 100 * value for name, value in rouge.items()}
        row["length"] = float(len(prediction.split()))
        rows.append(row | _novelty(prediction, source))
    if meteor:
        for row, value in zip(rows, Meteor()(predictions, references), strict=True):
            row["meteor"] = 100 * value
    if bertscore:
        for row, value in zip(rows, _bert_f1(predictions, references), strict=True):
            row["bertscore"] = 100 * value
    for metric in metrics:
        for row, value in zip(rows, metric(predictions, references, sources), strict=True):
            row[metric.name] = value
    return rows


def mean_scores(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """The mean of each figure over the summaries that have it; NaN where none has."""
    means = {}
    for name in rows[0]:
        values = [value for row in rows if (value := row[name]) is not None]
        means[name] = math.fsum(values) / len(values) if values else math.nan
    return means


def _novelty(prediction: str, source: str) -> dict[str, float | None]:
    own, given = (_WORD.findall(text.lower()) for text in (prediction, source))
    shares: dict[str, float | None] = {}
    for n in NOVELTY_LENGTHS:
        known = set(_n_grams(given, n))
        are_new = [n_gram not in known for n_gram in _n_grams(own, n)]
        shares[f"novelty{n}"] = sum(are_new) / len(are_new) if are_new else None
    return shares


def _n_grams(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def _bert_f1(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    from bert_score import score  # an optional package, and slow to import

    *_, f1 = score(list(predictions), list(references), lang="en")
    return [float(value) for value in f1]


def metric_files(*texts: str) -> dict[str, str | None]:
    """What is read by METEOR, and by those of the metrics asked for that are local ones of the evaluate library.

    Raises:
        UserError: a text that asks for such a metric has not the right form.
    """
    asked = {MetricSpec.from_text(text).path for text in texts if text.startswith(PREFIX)}
    return {"wordnet": wordnet_path()} | {f"metric {path}": path for path in sorted(asked) if Path(path).exists()}
