"""Do the rewards of tokens point at the errors that are marked in held-out replies, and better than what is there
without them: the position, and what the language model expects."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from chat_task.ranked_sets import EncodedSet
from common.language_models.replies import ReplyFormat
from common.reply_rewards import padded
from common.reply_surprise import reply_expectations
from common.reporting.marked_tokens import Table, areas, marked_row
from common.training.progress import progress

DRAWS = 20  # of random numbers, whose mean area stands beside the others
OWN_AREAS = {  # of the reward, in results.json: which of `areas` each is
    "span_auc": "pooled",
    "span_auc_within": "within texts",
    "span_auc_words": "words",
    "span_auc_names": "names and numbers",
}


def marked_table(
    sets: Sequence[EncodedSet],
    rewards: Sequence[Sequence[Sequence[float]]],
    reply_format: ReplyFormat,
    lm: PreTrainedModel | None = None,
) -> Table:
    """Of each reply whose errors are marked which tokens are wrong, and how suspicious each measure finds them.

    Args:
        sets: ranking sets.
        rewards: for each set and reply the reward of each token.
        reply_format: of the reward model.
        lm: of whose log-probabilities and entropies the baselines are; None: none of these.
    """
    table: Table = []
    for item, of_replies in progress(zip(sets, rewards, strict=True), "errors in replies", "set", total=len(sets)):
        for reply, spans, ids, values in zip(
            item.source.replies, item.source.spans or (), item.reply_ids, of_replies, strict=False
        ):
            if spans is None:
                continue
            text = reply if isinstance(reply, str) else str(reply[0]["content"])
            offsets = reply_format.encode_reply(item.source.prompt, reply, with_spans=True).spans
            measures = {"reward": [-value for value in values], "position": [n / len(ids) for n in range(len(ids))]}
            if lm is not None:
                measures |= _expected(lm, item.prompt_ids, ids)
            table.append(marked_row(offsets, text, spans, measures))
    return table


def _expected(lm: PreTrainedModel, prompt_ids: list[int], ids: list[int]) -> dict[str, list[float]]:
    (prompt, prompt_mask), (reply, mask) = (padded([row], lm.device) for row in (prompt_ids, ids))
    log_p, entropies = (found[0] for found in reply_expectations(lm, prompt, reply, (prompt_mask, mask)))
    return {"log-probability": (-log_p).tolist(), "entropy": entropies.tolist()}


def span_figures(table: Table) -> dict[str, Any]:
    """For results.json: areas under the curve of the rewards and of what they have to beat.

    Empty without a wrong word, and without a right one.
    """
    wrong = sum(sum(row.is_wrong) for row in table)
    if not wrong:
        return {}
    found = areas(table, DRAWS)
    own = found.pop("reward")
    if own["words"] is None:
        return {}
    return {key: own[kind] for key, kind in OWN_AREAS.items()} | {
        "span_baselines": found,
        "marked_replies": len(table),
        "wrong_tokens": wrong,
        "right_tokens": sum(len(row.is_wrong) for row in table) - wrong,
    }
