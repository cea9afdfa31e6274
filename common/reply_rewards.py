"""What a policy's replies are paid: token rewards of any source, read by token, segment or sequence, and normalised.

A source is any object with ``score_tokens``; :class:`TokenRewardScorer` makes one of a saved reward model.
"""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from common.checks import check_name, check_shape
from common.errors import UserError
from common.language_models.pretrained import load_pretrained
from common.language_models.token_carry import carry_over, token_spans
from common.reply_surprise import Masks, reply_entropies
from common.segments import (
    GRANULARITIES,
    READ_SCORES,
    LocationNormalizer,
    fit_location_normalizer,
    score_increments,
    segment_ends,
    spread_segments,
)
from common.token_reward_model import TokenRewardModel
from common.training.run_files import saved_fields

READING_FILE = "reward_reading.json"
BASELINES = ("leave-one-out", "group")  # of advantages, and what they are divided by; see common/integrations/trl.py
SCALES = ("group", "batch", "none")
PAYMENTS = ("reward", "increment", "reply")


class TokenScorer(Protocol):
    """Where token rewards come from."""

    def score_tokens(self, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks) -> Tensor:
        """Reward of each token of each reply.

        Args:
            prompt_ids: (B, P), padded on the left.
            completion_ids: (B, T), padded on the right; the end token is there where the reply has one.
            masks: of the prompts (B, P) and of the replies (B, T), 1 at real tokens.

        Returns:
            (B, T); what stands at padding has no influence.
        """


@dataclass(frozen=True)
class RewardReading:
    """Where rewards are read, and how they are normalised. Kept with the reward model, see :meth:`save`.

    Attributes:
        granularity: one of :data:`common.segments.GRANULARITIES`.
        cut: of ``segment``, in nats; see :func:`common.segments.segment_ends`.
        entropy_model: of ``segment``: name or folder of the frozen LM whose surprise ends a segment.
        normalizer: fitted on held-out replies, see :func:`fit_reading`; None: not fitted.
        score: what the score of a reply is of the rewards that are read, one of
            :data:`common.segments.READ_SCORES`.
    """

    granularity: str = "token"
    cut: float | None = None
    entropy_model: str | None = None
    normalizer: LocationNormalizer | None = None
    score: str = "mean"

    def __post_init__(self) -> None:
        check_name(self.granularity, "granularity", GRANULARITIES)
        check_name(self.score, "score", READ_SCORES)
        if self.granularity == "segment" and self.cut is None:
            raise ValueError("cut: needed by granularity 'segment'")

    def save(self, folder: str | Path) -> None:
        """Write it beside a reward model."""
        (Path(folder) / READING_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read it from a reward model's folder; of one that has none, rewards are read at each token, unfitted.

        Raises:
            UserError: the file cannot be read.
        """
        path = Path(folder) / READING_FILE
        if not path.is_file():
            return cls()
        found = saved_fields(path, cls)
        try:
            if missing := asdict(cls()).keys() - found.keys() - {"score"}:  # which older folders lack
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            return cls(**found)
        except ValueError as error:
            raise UserError(f"cannot read {path}: {error}") from None


class Paid(NamedTuple):
    """What replies get.

    Attributes:
        rewards: (B, T) of their tokens, see ``payment`` of :class:`ReplyRewards`.
        scores: (B,) the replies' scores: mean or sum of the rewards read, as they are, see :class:`RewardReading`.
    """

    rewards: Tensor
    scores: Tensor


class ReplyRewards:
    """Token rewards of a source, read as a :class:`RewardReading` says.

    Args:
        scorer: the source.
        reading: where rewards are read.
        entropy_model: of ``segment``: the frozen LM, in the policy's tokens.
        payment: one of :data:`PAYMENTS`. ``reward`` (arXiv 2501.02790): what is read at the end of each segment,
            normalised where a normaliser is fitted, and divided evenly over the segment's tokens. The sum over a reply
            grows with its length once the policy's rewards are better than those that the normaliser was fitted on.
            ``increment``: what each segment adds to the score of the reply so far, divided likewise, so that the sum
            over a reply is its score (of a mean whatever its length). ``reply``: as ``increment``, for a trainer that
            pays the sum to all tokens alike, as by sequence.

    Raises:
        UserError: ``segment`` without an LM or a fitted normaliser; rewards of another tokenizer that are not read at
            each token.
    """

    def __init__(
        self,
        scorer: TokenScorer,
        reading: RewardReading | None = None,
        entropy_model: PreTrainedModel | None = None,
        payment: str = "reward",
    ) -> None:
        check_name(payment, "payment", PAYMENTS)
        self.scorer, self.payment = scorer, payment
        self.reading = reading or RewardReading()
        self.entropy_model = entropy_model
        if self.reading.granularity == "segment":
            if entropy_model is None:
                raise UserError(
                    "granularity 'segment' needs entropy_model, the frozen LM whose surprise ends a segment"
                )
            if self.reading.normalizer is None:
                raise UserError("granularity 'segment' needs a normaliser fitted on held-out replies; see fit_reading")
        if self.reading.granularity != "token" and getattr(scorer, "other_tokenizer", False):
            raise UserError(
                f"granularity '{self.reading.granularity}' needs a reward model with the policy's own tokenizer: "
                "a reward that is read at one token of another cannot be carried over"
            )

    @torch.no_grad()
    def __call__(
        self, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks, end_token_ids: Collection[int]
    ) -> Paid:
        """What replies get; one without a token gets nothing.

        Args:
            prompt_ids, completion_ids, masks: as of :meth:`TokenScorer.score_tokens`, but that a reply may have no
                token.
            end_token_ids: tokens that end a reply where they stand last.
        """
        prompt_mask, mask = masks
        there = mask.bool().any(-1)
        rewards = torch.zeros(completion_ids.shape, device=completion_ids.device)
        scores = rewards.new_zeros(len(rewards))
        if bool(there.any()):
            chosen = prompt_ids[there], completion_ids[there], (prompt_mask[there], mask[there])
            raw, ends = self._read(*chosen, end_token_ids)
            increments = score_increments(raw, ends, self.reading.score)
            scores[there] = increments.sum(-1)
            normalizer = self.reading.normalizer
            paid = raw if normalizer is None else normalizer(raw, ends)
            if self.payment != "reward":
                paid = increments
            rewards[there] = spread_segments(paid, ends, mask[there].bool(), "even")
        return Paid(rewards, scores)

    def _read(
        self, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks, end_token_ids: Collection[int]
    ) -> tuple[Tensor, Tensor]:
        """Rewards (B, T), float32, and where they are read (B, T)."""
        rewards = self.scorer.score_tokens(prompt_ids, completion_ids, masks)
        check_shape(rewards, "score_tokens", completion_ids.shape)
        mask = masks[1].bool()
        entropies = None
        if self.reading.granularity == "segment":
            assert self.entropy_model is not None  # see __init__
            entropies = reply_entropies(self.entropy_model, prompt_ids, completion_ids, masks)
        ends_reply = torch.isin(completion_ids, torch.tensor(sorted(end_token_ids), device=mask.device))
        last = mask & (mask.flip(-1).long().cumsum(-1).flip(-1) == 1)
        ends = segment_ends(self.reading.granularity, mask, ends_reply & last, entropies, self.reading.cut)
        return rewards.detach().to(mask.device, torch.float32), ends


def fit_reading(
    scorer: TokenScorer,
    reading: RewardReading,
    batches: Iterable[tuple[Tensor, Tensor, Masks]],
    end_token_ids: Collection[int],
    entropy_model: PreTrainedModel | None = None,
) -> RewardReading:
    """The same reading with its normaliser fitted, see :func:`common.segments.fit_location_normalizer`.

    Args:
        scorer: the source of rewards.
        reading: where they are read.
        batches: (prompt_ids, completion_ids, masks) of replies that the reward model was not trained on, in the form
            and of the tokens that the policy will write, as of :meth:`TokenScorer.score_tokens`.
        end_token_ids, entropy_model: as of :class:`ReplyRewards`.

    Raises:
        ValueError: fewer than two rewards, or rewards that are all equal.
    """
    fields = asdict(reading) | {"normalizer": LocationNormalizer(0, 0, 0, 1, 1)}  # none is used below
    reader = ReplyRewards(scorer, RewardReading(**fields), entropy_model)
    rows: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for prompt_ids, completion_ids, masks in batches:
            rewards, ends = reader._read(prompt_ids, completion_ids, masks, end_token_ids)
            rows += zip(rewards.cpu(), ends.cpu(), strict=True)
    all_rewards, all_ends = (
        torch.nn.utils.rnn.pad_sequence([row[part] for row in rows], batch_first=True) for part in (0, 1)
    )
    return RewardReading(**fields | {"normalizer": fit_location_normalizer(all_rewards, all_ends)})


class TokenRewardScorer:
    """Token rewards of a reward model for the tokens of a policy.

    With one tokenizer for both the policy's tokens are read as they are. Else prompts and replies are read as text and
    each reward is divided among the policy's tokens by the characters that they share with its own.

    Args:
        model: the reward model; decoder-only or encoder-decoder.
        tokenizer: its own.
        policy_tokenizer: the policy's; None: the same.
        batch_size: replies that are read at once.
    """

    def __init__(
        self, model: TokenRewardModel, tokenizer: Any, policy_tokenizer: Any = None, batch_size: int = 16
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.policy_tokenizer = tokenizer if policy_tokenizer is None else policy_tokenizer
        self.batch_size = batch_size
        self.other_tokenizer = not same_tokens(tokenizer, self.policy_tokenizer)

    @classmethod
    def from_pretrained(cls, folder: str, policy_tokenizer: Any = None, batch_size: int = 16) -> Self:
        """Load a saved reward model with its tokenizer.

        Raises:
            UserError: one of the two cannot be loaded.
        """
        model = TokenRewardModel.from_pretrained(folder)
        return cls(model, load_pretrained(AutoTokenizer, folder), policy_tokenizer, batch_size)

    @torch.no_grad()
    def score_tokens(self, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks) -> Tensor:
        """See :meth:`TokenScorer.score_tokens`.

        Raises:
            UserError: two tokenizers, and a prompt with special tokens within, as chat templates put them: those of
                one model say nothing to the other.
        """
        read = self._through_text if self.other_tokenizer else self._directly
        given = (part.to(self.model.device).split(self.batch_size) for part in (prompt_ids, completion_ids, *masks))
        return torch.cat([read(*batch) for batch in zip(*given, strict=True)])

    def to(self, device: torch.device | str) -> Self:
        """Let the reward model compute on `device`, wherever the tokens are."""
        self.model.to(device)
        return self

    def _directly(self, prompt_ids: Tensor, ids: Tensor, prompt_mask: Tensor, mask: Tensor) -> Tensor:
        rewards = self.model.reply_rewards(prompt_ids, prompt_mask, ids.unsqueeze(1), mask.unsqueeze(1).bool())
        return rewards.squeeze(1)

    def _through_text(self, prompt_ids: Tensor, ids: Tensor, prompt_mask: Tensor, mask: Tensor) -> Tensor:
        ours, theirs = self.tokenizer, self.policy_tokenizer
        rewards = torch.zeros(ids.shape, device=ids.device)
        rows, prompts, replies, places = [], [], [], []
        for row in range(len(ids)):
            prompt, reply = prompt_ids[row][prompt_mask[row].bool()].tolist(), ids[row][mask[row].bool()].tolist()
            if not set(prompt[1:]).isdisjoint(theirs.all_special_ids):
                raise UserError(
                    "the prompts hold special tokens of the policy's chat template, which a reward model with another "
                    "tokenizer does not know; use one with the policy's tokenizer, or prompts that are text"
                )
            text, spans = token_spans(theirs, reply)
            own_reply = list(ours(text, add_special_tokens=False)["input_ids"])
            if reply[-1] == theirs.eos_token_id and ours.eos_token_id is not None:
                own_reply.append(ours.eos_token_id)
            if own_reply:  # a reply may be of no character
                rows.append(row)
                prompts.append(ours(theirs.decode(prompt, skip_special_tokens=True))["input_ids"][::-1])
                replies.append(own_reply)
                places.append(spans)
        if not rows:
            return rewards
        own_prompts, own_prompt_mask = (part.flip(1) for part in padded(prompts, ids.device))
        own_ids, own_mask = padded(replies, ids.device)
        found = self._directly(own_prompts, own_ids, own_prompt_mask, own_mask).float().cpu()
        for row, values, own_reply, spans in zip(rows, found, replies, places, strict=True):
            carried = carry_over(values[: len(own_reply)], token_spans(ours, own_reply)[1], spans)
            rewards[row, mask[row].bool()] = carried.to(rewards.device)
        return rewards


def scalar_reward(
    scorer: TokenScorer,
    tokenizer: Any,
    reading: RewardReading | None = None,
    entropy_model: PreTrainedModel | None = None,
    end_token_ids: Sequence[int] = (),
) -> Callable[..., list[float | None]]:
    """A reward function of TRL, one number a reply, of any source of token rewards: for GRPO, RLOO and logs.

    The number is the score of a reply as the reward model means it, see :class:`Paid`.

    Args:
        scorer, reading, entropy_model: as of :class:`ReplyRewards`, where they are to compute.
        tokenizer: the policy's.
        end_token_ids: tokens that end a reply, beside the tokenizer's end token.
    """
    reader = ReplyRewards(scorer, reading, entropy_model)
    ends = {*end_token_ids, tokenizer.eos_token_id} - {None}

    def score(prompts: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        left, left_mask = prompt_tokens(tokenizer, prompts)
        right, right_mask = padded(completion_ids)
        found = reader(left, right, (left_mask, right_mask), ends)
        return list(found.scores.tolist())

    return score


def same_tokens(one: Any, other: Any) -> bool:
    """Whether the token ids of one tokenizer mean the same to another."""
    return (one.eos_token_id, one.get_vocab()) == (other.eos_token_id, other.get_vocab())


def padded(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Token ids padded on the right, and their mask; (N, T) each. Padding is id 0."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device)


def prompt_tokens(tokenizer: Any, prompts: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Token ids of prompts (text, or messages for the chat template) as TRL reads them, and their mask.

    (N, P) each, padded on the left.
    """
    if isinstance(prompts[0], str):
        rows = tokenizer(text=list(prompts))["input_ids"]
    else:
        rows = tokenizer.apply_chat_template(list(prompts), add_generation_prompt=True, return_dict=True)["input_ids"]
    ids, mask = padded([list(row)[::-1] for row in rows])
    return ids.flip(1), mask.flip(1)
