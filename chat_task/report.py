"""The pages of a run: figures, curves and coloured replies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from chat_task.evaluation import most_wrong
from chat_task.marked_errors import OWN_AREAS
from chat_task.ranked_sets import EncodedSet
from chat_task.reward_stage import Found
from chat_task.written_replies import Replies
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
POLICY_CURVES = (
    ("policy/score", "policy/judge"),
    ("policy/reply_length",),
    "policy/entropy",
    "policy/kl",
    "policy/advantage_rms",
)
POLICY_TITLES = {
    "policy/score": "Score of the policy's samples",
    "policy/reply_length": "Tokens of a sample",
    "policy/entropy": "Policy entropy (nats a token)",
    "policy/kl": "KL from the start (nats a token)",
    "policy/advantage_rms": "Size of the advantages",
}
SHOWN_PROMPTS = 6
SHOWN_SETS = 8
SHOWN_REPLIES = 4
SHOWN_CHARACTERS = 300


def write_reward_report(
    page: Path,
    folder: RunFolder,
    results: dict[str, Any],
    found: Found,
    sets: Sequence[EncodedSet],
    reply_format: ReplyFormat,
    bound: str,
) -> None:
    """Write the page of a reward model; `bound`: of its rewards."""
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
        "that of its segment or reply; an end token without colour belongs to none.",
    )
    if "span_auc" in results:
        own = {kind: results[key] for key, kind in OWN_AREAS.items()}
        beside = {"the reward": own} | results["span_baselines"]
        rows = [{"measure": name} | {kind: areas[kind] for kind in own} for name, areas in beside.items()]
        report.add_table(
            "Marked errors: area under the curve", rows, f"{results['wrong_tokens']} wrong tokens and "
            f"{results['right_tokens']} others in {results['marked_replies']} replies. 0.5 is chance. A word is as "
            "suspicious as the most suspicious of its tokens; names and numbers are the words with a capital letter or "
            "a digit.",
        )  # fmt: skip
    report.add_table("Pairs by length", results["by_length_difference"], note="Length alone decides as it does best on "
                     "the training sets.")  # fmt: skip
    report.add_table("By the number of replies", results["by_set_size"])
    report.add_table("Pairs by the probability that the model gives its own order", results["calibration"])
    report.add_curves("Training", curves_from_metrics(read_metrics(folder.metrics), CURVES, TITLES))
    _write(report, page, folder, results)


def write_policy_report(
    folder: RunFolder, results: dict[str, Any], prompts: Sequence[Text], before: Replies, after: Replies
) -> None:
    """Write ``report.html`` of a policy: replies before and after, coloured by what their tokens are paid."""
    facts = {"score before": results["policy_score_before"], "score after": results["policy_score_after"]}
    if "policy_judge_after" in results:
        facts |= {"judge before": results["policy_judge_before"], "judge after": results["policy_judge_after"]}
    if "policy_win_rate" in results:
        facts |= {"won against the start": results["policy_win_rate"]}
    facts |= {"rollouts": results["rollouts"], "wall time": f"{results['wall_seconds'] / 60:.1f} min"}
    subtitle = (
        f"{results['policy']} learns from {results['paid_by']} {results['granularity']} rewards, payment by "
        f"{results['payment']}, seed {results['seed']}; {results['held_out_prompts']} held-out prompts"
    )
    report = Report(f"Policy of replies: {results['dataset']}", subtitle, facts)
    rows = []
    for number, prompt in enumerate(prompts[:SHOWN_PROMPTS]):
        for name, replies in (("before", before), ("after", after)):
            columns: dict[str, Any] = {"policy": name, "score": replies.scores[number]}
            if replies.judged is not None:
                columns["judge"] = replies.judged[number]
            caption = _excerpt(prompt) if name == "before" else ""
            rows.append(TokenRewards(replies.tokens[number], replies.rewards[number], caption, columns))
    report.add_token_rewards(
        "Replies before and after", rows, note="The most likely reply to each held-out prompt, coloured by what "
        "each token is paid; what a segment is paid is divided over its tokens.",
    )  # fmt: skip
    metrics = read_metrics(folder.metrics)
    report.add_curves("Policy learning", curves_from_metrics(metrics, POLICY_CURVES, POLICY_TITLES))
    _write(report, folder.report, folder, results)


def _write(report: Report, page: Path, folder: RunFolder, results: dict[str, Any]) -> None:
    options = yaml.safe_load(folder.config.read_text(encoding="utf-8"))["options"]
    report.add_details("Options", options)
    report.add_details("Environment", results["environment"]["packages"] | {"hardware": results["hardware"]})
    report.write(page)


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
