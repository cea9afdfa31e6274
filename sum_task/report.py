"""The page of one summarization run: figures, curves, and summaries coloured by their learned token rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from common.reporting.report import Fact, Report, TokenRewards, curves_from_metrics
from common.reporting.trust import reward_accuracies
from common.token_reward_model import reward_range
from common.training.run_folder import RunFolder
from common.training.tracking import read_metrics
from sum_task.data import Row
from sum_task.policy import SummaryPolicy
from sum_task.reward_model import SummaryRewardModel
from sum_task.score_tokens import batches_of, text_rewards, token_texts
from sum_task.summary_evaluation import COMPARED_FIGURES, Evaluation, validation_score

SHOWN_OF_EACH = 2

Compared = tuple[list[float] | None, list[str | None] | None]

CURVES = (
    ("eval/rouge1", "eval/rouge2", "eval/rougeL", "eval/rougeLsum", "eval/meteor"),
    "eval/preference",
    "eval/length",
    "policy/loss",
    ("policy/token_reward", "policy/sample_reward"),
    "policy/entropy",
    ("reward/loss", "reward/dev_loss"),
    ("reward/rank_accuracy", "reward/dev_rank_accuracy", "reward/dev_swap_accuracy"),
    "eval/guidance_agreement",
    ("reward/token_std", "reward/saturation_share", "reward/length_correlation"),
    "reward/preference",
    ("perf/policy_steps_per_second", "perf/reward_steps_per_second"),
)
TITLES = {
    "eval/rouge1": "Summaries of the validation set (percent)",
    "eval/preference": "Preference of the summaries of the validation set",
    "eval/length": "Words of a summary",
    "policy/loss": "Policy loss",
    "policy/token_reward": "Learned reward of a token",
    "policy/entropy": "Policy entropy (nats a token)",
    "reward/loss": "ListMLE loss of the reward model",
    "reward/rank_accuracy": "Rank and swap accuracy of the reward model",
    "eval/guidance_agreement": "Rank accuracy on fresh summaries of the policy",
    "reward/token_std": "Spread of the token rewards, their share at an end, and length in the score",
    "reward/preference": "Preference of sampled summaries",
    "perf/policy_steps_per_second": "Steps a second",
}


def best_median_worst(evaluation: Evaluation, count: int = SHOWN_OF_EACH) -> list[tuple[str, int]]:
    """Rows to show, each with what it is: `count` of the best, the middle and the worst by validation score."""
    order = sorted(range(len(evaluation.predictions)), key=lambda i: _score(evaluation, i), reverse=True)
    middle = max((len(order) - count) // 2, 0)
    parts = (("best", order[:count]), ("median", order[middle : middle + count]), ("worst", order[-count:]))
    chosen: dict[int, str] = {}
    for name, rows in parts:
        for row in rows:
            chosen.setdefault(row, name)
    return [(name, row) for row, name in chosen.items()]


def summary_token_rewards(
    evaluation: Evaluation, rows: Sequence[Row], reward: SummaryRewardModel, policy: SummaryPolicy, likeliest: int
) -> list[TokenRewards]:
    """The best, median and worst summaries, each followed by its reference, with the reward of each token.

    And, where the reward model tells, with its advantage; at references with the policy's likeliest other token where
    the reward prefers that. `likeliest`: see :meth:`sum_task.reward_model.SummaryRewardModel.judge`.
    """
    shown = best_median_worst(evaluation)
    pairs = []
    for _, i in shown:
        pairs += [Row(rows[i].source, evaluation.predictions[i]), Row(rows[i].source, rows[i].reference)]
    judged = text_rewards(reward, pairs)
    compared: list[Compared] = [(None, None)] * len(pairs)
    if reward.reads_policy_tokens and reward.model.tells_alternatives:
        compared = compared_tokens(reward, policy, pairs, likeliest)
    sequences = []
    for number, (kind, i) in enumerate(shown):
        scores = evaluation.scores[i]
        columns = {"ROUGE-1": scores["rouge1"], "ROUGE-2": scores["rouge2"], "METEOR": scores["meteor"]}
        of_summary, of_reference = f"{kind}: summary of row {i}", f"{kind}: reference of row {i}"
        sequences.append(TokenRewards(*judged[2 * number], of_summary, columns, compared[2 * number][0]))
        sequences.append(TokenRewards(*judged[2 * number + 1], of_reference, {}, *compared[2 * number + 1]))
    return sequences


@torch.no_grad()
def compared_tokens(
    reward: SummaryRewardModel, policy: SummaryPolicy, rows: Sequence[Row], likeliest: int
) -> list[Compared]:
    """Of each token of summaries the advantage, and the policy's likeliest other token where the reward prefers it."""
    policy.lm.eval()
    tokenizer = policy.tokenizer
    found: list[Compared] = []
    for batch in batches_of(reward, rows):
        summaries = batch.targets
        logits = policy.logits(policy.encode(batch.sources), summaries)
        rewards, expected = reward.judge(batch, summaries, logits, likeliest)
        written = summaries.tokens.unsqueeze(-1)
        others = logits[..., : len(tokenizer)].scatter(-1, written, -torch.inf).argmax(-1, keepdim=True)  # (N, T, 1)
        given, of_others = reward.alternative_rewards(batch, summaries, others)
        wrong = (of_others.squeeze(-1) > given).tolist()
        texts = [[token_texts(tokenizer, [token])[0] for token in row] for row in others.squeeze(-1).tolist()]
        for row, ids in enumerate(summaries.lists()):
            preferred = [text if is_wrong else None for text, is_wrong in zip(texts[row], wrong[row], strict=True)]
            found.append(((rewards - expected)[row, : len(ids)].tolist(), preferred[: len(ids)]))
    return found


def write_run_report(
    folder: RunFolder,
    results: dict[str, Any],
    evaluation: Evaluation,
    rows: Sequence[Row],
    reward: SummaryRewardModel | None,
    policy: SummaryPolicy,
    likeliest: int,
) -> None:
    """Write ``report.html`` of a finished run; `likeliest`: see `summary_token_rewards`."""
    facts = {
        "ROUGE-1": results["test_rouge1"],
        "ROUGE-2": results["test_rouge2"],
        "ROUGE-L": results["test_rougeL"],
        "ROUGE-L before training": results["untrained_rougeL"],
        "preference trained for": Fact(
            f"{results['test_preference']:.3f}", f"before training {results['untrained_preference']:.3f}"
        ),
        "METEOR": results["test_meteor"],
        "words a summary": results["test_length"],
        "wall time": f"{results['wall_seconds'] / 60:.1f} min",
    }
    subtitle = (
        f"policy {results['model']}, guidance {results['guidance']}, preference {results['preference']}, "
        f"aggregation {results['agg_func']}, seed {results['seed']}; "
        f"{results['test_rows']} rows of {results['tested_on']}"
    )
    accuracies, notices = reward_accuracies(results)
    report = Report(f"Summaries of {_short_name(results['dataset'])}", subtitle, facts | accuracies, notices)
    if reward is not None:
        sequences = summary_token_rewards(evaluation, rows, reward, policy, likeliest)
        note = (
            "By ROUGE-1 + 2 ROUGE-2 + ROUGE-Lsum. A token's colour is the reward that the last reward model gives it"
            + (", or the part of it that tells the token from others in its place." if sequences[0].advantages else ".")
        )
        report.add_token_rewards(
            "Best, median and worst summaries and their learned token rewards",
            sequences,
            reward_range(reward.model.config.bound),
            note,
        )
    kinds = {"test": f"this run, {results['tested_on']}", "compared": "this run, the rows compared"}
    kinds |= {"untrained": "before training", "lead3": "first three sentences"}
    report.add_table(
        "What there was before it",
        [
            {"": words} | {name: results[f"{kind}_{name}"] for name in COMPARED_FIGURES}
            for kind, words in kinds.items() if f"{kind}_rouge1" in results
        ],
        note=f"The policy before training and the articles' first three sentences, on the first "
        f"{results['compared_rows']} rows; preference: {results['preference']}.",
    )  # fmt: skip
    shown = best_median_worst(evaluation)
    table = [
        {
            "": kind,
            "summary": evaluation.predictions[i],
            "reference": rows[i].reference,
            "article begins": rows[i].source[:300],
            "ROUGE-1": evaluation.scores[i]["rouge1"],
        }
        for kind, i in shown
    ]
    report.add_table("Summaries", table)
    report.add_curves("Training", curves_from_metrics(read_metrics(folder.metrics), CURVES, TITLES))
    figures = [{"figure": name, "mean": value} for name, value in evaluation.means.items()]
    report.add_table(f"All figures on {results['tested_on']}", figures)
    options = yaml.safe_load(folder.config.read_text(encoding="utf-8"))["options"]
    report.add_details("Options", options)
    report.add_details("Environment", results["environment"]["packages"] | {"hardware": results["hardware"]})
    report.write(folder.report)


def _short_name(dataset: str) -> str:
    """A data set's name; of a file, its own and its folder's."""
    path = Path(dataset)
    return "/".join(path.parts[-2:]) if path.is_absolute() else dataset


def _score(evaluation: Evaluation, row: int) -> float:
    scores = evaluation.scores[row]
    return validation_score(*(float(scores[name] or 0.0) for name in ("rouge1", "rouge2", "rougeLsum")))
