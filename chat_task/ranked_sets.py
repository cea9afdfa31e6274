"""Ranking sets in a model's tokens, with the places where rewards are read, and batches of them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from chat_task.ranking_rows import RankingSet
from common.errors import UserError
from common.kept_entropies import KeptEntropies
from common.language_models.replies import ReplyFormat
from common.reply_rewards import RewardReading, padded
from common.segments import segment_ends
from common.training.progress import progress

logger = logging.getLogger(__name__)

LONG_ROWS = ("cut", "drop")


@dataclass(frozen=True)
class EncodedSet:
    """A ranking set in tokens.

    Attributes:
        source: the texts.
        prompt_ids: tokens of the prompt.
        reply_ids: of each reply.
        ends: for each reply the places of its tokens at which rewards are read.
    """

    source: RankingSet
    prompt_ids: list[int]
    reply_ids: list[list[int]]
    ends: list[list[int]]


@dataclass
class EncodedSets(Sequence[EncodedSet]):
    """Encoded sets as a data set of torch.

    Attributes:
        sets: of them.
        counts: ``prompts_cut``, ``replies_cut`` (sets with one at least) and ``sets_dropped``.
    """

    sets: list[EncodedSet]
    counts: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sets)

    def __getitem__(self, index: Any) -> Any:
        return self.sets[index]


def encode_sets(
    sets: Sequence[RankingSet],
    reply_format: ReplyFormat,
    reading: RewardReading,
    entropies: KeptEntropies | None = None,
    long_rows: str = "cut",
) -> EncodedSets:
    """Ranking sets as token ids.

    Args:
        sets: the texts.
        reply_format: of the reward model.
        reading: where rewards are read.
        entropies: of ``segment``: those of the frozen LM.
        long_rows: ``cut``: prompts from the left, replies from the right; ``drop``: such sets are left out.

    Raises:
        UserError: a set that the format refuses, naming it; or no set is left.
    """
    counts = {"prompts_cut": 0, "replies_cut": 0, "sets_dropped": 0}
    kept: list[tuple[RankingSet, list[int], list[list[int]], list[bool]]] = []
    for item in progress(sets, "tokens of the preferences", "set"):
        try:
            prompt_ids, prompt_cut = reply_format.encode_prompt(item.prompt)
            replies = [reply_format.encode_reply(item.prompt, reply) for reply in item.replies]
        except UserError as error:
            raise UserError(f"{item.where}: {error}") from None
        replies_cut = any(reply.cut for reply in replies)
        if long_rows == "drop" and (prompt_cut or replies_cut):
            counts["sets_dropped"] += 1
            continue
        counts["prompts_cut"] += prompt_cut
        counts["replies_cut"] += replies_cut
        kept.append((item, prompt_ids, [reply.ids for reply in replies], [reply.has_end for reply in replies]))
    if not kept:
        raise UserError(f"long_rows: all {len(sets)} sets have a prompt or reply that is too long")
    for name, count in counts.items():
        if count:
            logger.warning("%s: %d of %d sets", name.replace("_", " "), count, len(sets))
    encoded = []
    for item, prompt_ids, ids, has_end in progress(kept, "where rewards are read", "set"):
        encoded.append(EncodedSet(item, prompt_ids, ids, _ends(prompt_ids, ids, has_end, reading, entropies)))
    if entropies is not None:
        entropies.write()
    return EncodedSets(encoded, counts)


def _ends(
    prompt_ids: list[int],
    replies: list[list[int]],
    has_end: list[bool],
    reading: RewardReading,
    entropies: KeptEntropies | None,
) -> list[list[int]]:
    ids, mask = padded(replies)
    last = torch.tensor([len(row) - 1 if end else -1 for row, end in zip(replies, has_end, strict=True)])
    is_end = torch.arange(ids.shape[1]) == last.unsqueeze(1)
    found = None if entropies is None else entropies.of(prompt_ids, replies)
    ends = segment_ends(reading.granularity, mask, is_end, found, reading.cut)
    return [row.nonzero().flatten().tolist() for row in ends]


@dataclass(frozen=True)
class Known:
    """What the CPU knows of a batch, so that it need not ask the device; no tensor to whoever moves batches there.

    Attributes:
        prompt_mask, reply_mask, margins: those of the batch.
        sizes: replies of each set.
    """

    prompt_mask: Tensor
    reply_mask: Tensor
    margins: Tensor
    sizes: list[int]


def collate(sets: Sequence[EncodedSet]) -> dict[str, Any]:
    """A batch of B sets with up to K replies each.

    Returns:
        prompt_ids, prompt_mask: (B, P), padded on the left.
        reply_ids, reply_mask, ends: (B, K, R), padded on the right; a reply that is not there has no real token.
        preferences: (B, K), ranks from 0, equal for equal scores; NaN where there is no reply.
        weights: (B,).
        known: of it on the CPU.
    """
    prompt_ids, prompt_mask = padded([item.prompt_ids[::-1] for item in sets])
    most = max(len(item.reply_ids) for item in sets)
    longest = max(len(ids) for item in sets for ids in item.reply_ids)
    shape = (len(sets), most, longest)
    reply_ids, reply_mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    ends = torch.zeros(shape, dtype=torch.bool)
    preferences = torch.full(shape[:2], torch.nan)
    for b, item in enumerate(sets):
        # Their order alone counts: as ranks it survives float32 whatever the scores are.
        scores = torch.tensor(item.source.scores, dtype=torch.float64)
        preferences[b, : len(scores)] = scores.unique(return_inverse=True)[1].float()
        for k, (ids, places) in enumerate(zip(item.reply_ids, item.ends, strict=True)):
            reply_ids[b, k, : len(ids)] = torch.tensor(ids)
            reply_mask[b, k, : len(ids)] = True
            ends[b, k, places] = True
    prompt_mask = prompt_mask.flip(1).bool()
    margins = torch.tensor([item.source.margin for item in sets])
    return {
        "prompt_ids": prompt_ids.flip(1),
        "prompt_mask": prompt_mask,
        "reply_ids": reply_ids,
        "reply_mask": reply_mask,
        "ends": ends,
        "preferences": preferences,
        "known": Known(prompt_mask, reply_mask, margins, [len(item.reply_ids) for item in sets]),
        "weights": torch.tensor([item.source.weight for item in sets]),
    }
