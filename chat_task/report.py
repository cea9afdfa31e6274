"""The page of a run: figures, curves, and coloured held-out replies, the sets that it gets most wrong first."""

from collections.abc import Sequence
from typing import Any

import yaml

from chat_task.evaluation import most_wrong
from chat_task.ranked_sets import EncodedSet
from chat_task.reward_stage import Found
from common.language_models.replies import ReplyFormat, Text
from common.reporting.report import Report, TokenRewards, curves_from_metrics
from common.reporting.trust import reward_accuracies
from common.token_reward_model import reward_range
from common.training.run_folder import RunFolder
from common.training.tracking import read_metrics

CURVES = (
    ("reward/loss", "reward/dev_loss"),
    ("reward/rank_accuracy", "reward/dev_rank_accuracy"),
    ("reward/dev_token_std", "reward/dev_saturation_share", "reward/dev_length_correlation"),
)
TITLES = {
    "reward/loss": "ListMLE loss",
    "reward/rank_accuracy": "Rank accuracy",
    "reward/dev_token_std": "Spread of the rewards, their share at an end, and length in the score",
}
SHOWN_SETS = 8
SHOWN_REPLIES = 4
SHOWN_CHARACTERS = 300


def write_run_report(
    folder: RunFolder,
    results: dict[str, Any],
    found: Found,
    sets: Sequence[EncodedSet],
    reply_format: ReplyFormat,
    bound: str,
) -> None:
    """Write ``report.html`` of a finished run; `bound`: of the rewards."""
    accuracies, notices = reward_accuracies(results)
    facts = {
        **accuracies,
        "by length alone": results["reward_length_only_accuracy"],
        "Kendall's tau": results["reward_kendall_tau"],
    }
    if "span_auc" in results:
        facts["area under the curve of marked errors"] = results["span_auc"]
    facts["wall time"] = f"{results['wall_seconds'] / 60:.1f} min"
    subtitle = (
        f"{results['granularity']} rewards by {results['model']}, head {results['rew_head']}, aggregation "
        f"{results['agg_func']}, seed {results['seed']}; {results['validation_sets']} held-out sets"
    )
    report = Report(f"Rewards of replies: {results['dataset']}", subtitle, facts, notices)
    report.add_token_rewards(
        "Held-out sets, those it gets most wrong first",
        coloured_sets(found, sets, reply_format),
        reward_range(bound),
        note="Replies of a set stand in the order of their preference, best first. A token's colour is its reward, or "
        "that of its segment or reply.",
    )
    report.add_table("Pairs by length", results["by_length_difference"], note="Length alone decides as it does best on "
                     "the training sets.")  # fmt: skip
    report.add_table("By the number of replies", results["by_set_size"])
    report.add_table("Pairs by the probability that the model gives its own order", results["calibration"])
    report.add_curves("Training", curves_from_metrics(read_metrics(folder.metrics), CURVES, TITLES))
    options = yaml.safe_load(folder.config.read_text(encoding="utf-8"))["options"]
    report.add_details("Options", options)
    report.add_details("Environment", results["environment"]["packages"] | {"hardware": results["hardware"]})
    report.write(folder.report)


def coloured_sets(found: Found, sets: Sequence[EncodedSet], reply_format: ReplyFormat) -> list[TokenRewards]:
    """The first replies of the sets that are most wrong, by preference."""
    rows = []
    for number in most_wrong(found.table)[:SHOWN_SETS]:
        item = sets[number]
        order = sorted(range(len(item.reply_ids)), key=lambda k: -item.source.scores[k])
        for k in order[:SHOWN_REPLIES]:
            tokens = [reply_format.tokenizer.decode([token]) for token in item.reply_ids[k]]
            columns = {"preference": item.source.scores[k], "score": float(found.table[number, k, 0])}
            caption = (
                f"{item.source.where or f'set {number + 1}'}: {_excerpt(item.source.prompt)}" if k == order[0] else ""
            )
            rows.append(TokenRewards(tokens, found.rewards[number][k], caption, columns))
    return rows


def _excerpt(prompt: Text) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) if prompt else ""
    return text if len(text) <= SHOWN_CHARACTERS else "\N{HORIZONTAL ELLIPSIS}" + text[-SHOWN_CHARACTERS:]
