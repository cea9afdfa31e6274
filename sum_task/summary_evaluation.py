"""Writing summaries of a whole split, shared among the processes, and measuring them."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.training.engine import Engine
from common.training.progress import progress
from sum_task.batching import TokenizedRows, sorted_batches
from sum_task.data import Row
from sum_task.evaluate_library import LibraryMetric
from sum_task.evaluation_metrics import mean_scores, per_example
from sum_task.policy import SummaryPolicy
from sum_task.preferences import Preference
from sum_task.search import write_texts
from sum_task.sentences import lead
from sum_task.settings import EvaluationSettings

# What is said of the policy before training takes no longer than this, however many rows there are.
COMPARED_ROWS = 200
COMPARED_FIGURES = ("rouge1", "rouge2", "rougeL", "rougeLsum", "meteor", "preference", "length")


@dataclass(frozen=True)
class Evaluation:
    """What a policy makes of a split.

    Attributes:
        predictions: the summary of each row.
        scores: figures of each row, see `evaluation_metrics.per_example`, and ``preference``, by that of the run.
        means: their means over the rows, and ``score``, see `validation_score`.
    """

    predictions: list[str]
    scores: list[dict[str, float | None]]
    means: dict[str, float]


def validation_score(rouge1: float, rouge2: float, rouge_lsum: float) -> float:
    """ROUGE-1 + 2 ROUGE-2 + ROUGE-Lsum, by which policies are compared in validation (the paper's reference code)."""
    return rouge1 + 2 * rouge2 + rouge_lsum


def first_means(evaluation: Evaluation, rows: int) -> dict[str, float]:
    """The means over the first `rows` rows."""
    means = mean_scores(evaluation.scores[:rows])
    return {name: means[name] for name in COMPARED_FIGURES}


def without_training(
    policy: SummaryPolicy,
    data: TokenizedRows,
    settings: EvaluationSettings,
    engine: Engine,
    preference: Preference,
) -> dict[str, float]:
    """What a run starts from, on the first `COMPARED_ROWS` rows: the policy as it is, and the first three sentences.

    Returns:
        Means as ``untrained_rougeL``, ``lead3_rougeL`` and so on.
    """
    some = data.first(COMPARED_ROWS)
    untrained = first_means(evaluate(policy, some, settings, engine, "untrained policy", preference), COMPARED_ROWS)

    def measure() -> dict[str, float]:
        means = mean_scores(_scores([lead(row.source, 3) for row in some.rows], some.rows, settings, preference))
        return {name: means[name] for name in COMPARED_FIGURES}

    of_lead = engine.on_main(measure)
    found = {f"untrained_{name}": value for name, value in untrained.items()}
    return found | {f"lead3_{name}": value for name, value in of_lead.items()}


def write_summaries(
    policy: SummaryPolicy,
    data: TokenizedRows,
    settings: EvaluationSettings,
    engine: Engine,
    title: str,
) -> list[str]:
    """The summary of each row, by greedy or beam search; each row is written by one process, all get them all."""
    collate = policy.collator(settings.pad_lengths)
    batches = sorted_batches(data, settings.per_device_eval_batch_size * engine.count)
    written: list[tuple[int, str]] = []
    for rows in progress(batches, title, "batch"):
        mine = engine.share(rows)
        if mine:
            sources = collate(data, mine).sources.to(policy.device)
            with engine.autocast():
                texts = write_texts(policy, sources, settings.eval_target_length, settings.num_beams or 1)
            written += zip(mine, texts, strict=True)
    by_row = dict(pair for part in engine.gather(written) for pair in part)
    return [by_row[i] for i in range(len(data))]


def evaluate(
    policy: SummaryPolicy,
    data: TokenizedRows,
    settings: EvaluationSettings,
    engine: Engine,
    title: str,
    preference: Preference,
    bertscore: bool = False,
    metrics: Sequence[LibraryMetric] = (),
) -> Evaluation:
    """Write the summaries of a split and measure them (in the main process; all get the result)."""
    predictions = write_summaries(policy, data, settings, engine, title)

    def measure() -> tuple[list[dict[str, float | None]], dict[str, float]]:
        scores = _scores(predictions, data.rows, settings, preference, bertscore=bertscore, metrics=metrics)
        means = mean_scores(scores)
        means["score"] = validation_score(means["rouge1"], means["rouge2"], means["rougeLsum"])
        return scores, means

    return Evaluation(predictions, *engine.on_main(measure))


def _scores(
    predictions: Sequence[str],
    rows: Sequence[Row],
    settings: EvaluationSettings,
    preference: Preference,
    bertscore: bool = False,
    metrics: Sequence[LibraryMetric] = (),
) -> list[dict[str, float | None]]:
    """Figures of each summary, and what the preference says of it against what reward learning ranks by."""
    references, articles = [row.reference for row in rows], [row.source for row in rows]
    scores = per_example(
        predictions, references, articles, bertscore=bertscore, metrics=metrics, rouge_words=settings.rouge_words
    )
    preferred = preference.of_rows(predictions, rows).tolist()
    return [row | {"preference": value} for row, value in zip(scores, preferred, strict=True)]
