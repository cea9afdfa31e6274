"""The token reward model that judges summaries, in its own tokens where they are not the policy's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.cpu.cheap_layers import use_cheap_layers
from common.errors import UserError
from common.language_models.adapters import merged_state_dict
from common.language_models.token_carry import carry_over, token_spans
from common.reply_rewards import same_tokens
from common.token_reward_model import TokenRewardModel, with_start_token
from common.training.files import write_folder_atomic
from sum_task.batching import Batch, Padded, pad
from sum_task.text_format import TextFormat, decoder_start, read_settings


class SummaryRewardModel:
    """A token reward model that reads articles and summaries, in its own tokens where they are not the policy's."""

    def __init__(self, model: TokenRewardModel, text_format: TextFormat, policy_format: TextFormat):
        use_cheap_layers(model)
        model.checks_start = False  # it is put there below
        self.model = model
        self.format = text_format
        self.start = decoder_start(model.backbone.config, text_format.tokenizer) if model.is_encoder_decoder else ()
        self.policy_format = policy_format
        self.reads_policy_tokens = (
            text_format.is_encoder_decoder == policy_format.is_encoder_decoder
            and text_format.describe() == policy_format.describe()
            and same_tokens(text_format.tokenizer, policy_format.tokenizer)
        )

    def own_rewards(self, batch: Batch, summaries: Padded) -> tuple[Tensor, Padded]:
        """Rewards (N, T) of the summaries in the reward model's own tokens, and those.

        The K = N / B summaries of an article stand one after the other; each article is encoded once.
        """
        if self.reads_policy_tokens:
            return self._rewards(batch.sources, summaries), summaries
        texts, ended = self._policy_texts(summaries)
        own, _ = self._own_tokens(texts, ended)
        return self._rewards(self._own_sources(batch), own), own

    def policy_rewards(self, batch: Batch, summaries: Padded) -> Tensor:
        """Rewards (N, T) of the policy's tokens.

        Where tokenizers differ, each reward is spread over the characters of its token and given to the policy's
        tokens that hold them; the sum over a summary is preserved.
        """
        if self.reads_policy_tokens:
            return self._rewards(batch.sources, summaries)
        tokenizer = self.policy_format.tokenizer
        spans = [token_spans(tokenizer, ids, self.policy_format.line_break) for ids in summaries.lists()]
        _, ended = self._policy_texts(summaries)
        own, own_spans = self._own_tokens([text for text, _ in spans], ended)
        rewards = self._rewards(self._own_sources(batch), own).cpu()
        carried = torch.zeros(summaries.mask.shape)
        for row, (_, policy_spans) in enumerate(spans):
            given = rewards[row, : len(own_spans[row])]
            carried[row, : len(policy_spans)] = carry_over(given, own_spans[row], policy_spans)
        return carried.to(summaries.tokens.device)

    def check_expectations(self) -> None:
        """Refuse a credit by what the policy expects in a state where this model cannot tell.

        Raises:
            UserError: it reads other tokens than the policy, or cannot be asked for those that could stand elsewhere.
        """
        if not self.reads_policy_tokens:
            raise UserError("credit: an advantage needs a reward model that reads the policy's own tokens")
        if not self.model.tells_alternatives:
            raise UserError(
                f"rew_head: a credit that is an advantage needs the rewards of other tokens in a state, which the head "
                f"'{self.model.config.head}' does not give on a {self.model.backbone.config.model_type}; use likelihood"
            )

    def judge(self, batch: Batch, summaries: Padded, policy_logits: Tensor, likeliest: int) -> tuple[Tensor, Tensor]:
        """Rewards of the policy's tokens, and what the policy expects in each state, (N, T) each; no gradient.

        Args:
            batch, summaries: see `own_rewards`; in the policy's own tokens.
            policy_logits: (N, T, V), position t about token t of the summaries.
            likeliest: tokens over which it is expected, where the head does not tell all, see
                :meth:`common.token_reward_model.TokenRewardModel.rewards_and_expectations`.
        """
        sequences = self._sequences(batch.sources, summaries)
        return self.model.rewards_and_expectations(policy_logits, likeliest=likeliest, **sequences)

    def alternative_rewards(self, batch: Batch, summaries: Padded, alternatives: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards (N, T) of the policy's tokens, and (N, T, K) of K others in the place of each; no gradient."""
        sequences = self._sequences(batch.sources, summaries)
        return self.model.alternative_rewards(alternatives, **sequences)

    def save_pretrained(self, folder: Path) -> None:
        """Write the model, its tokenizer and the text format."""
        with write_folder_atomic(folder) as temporary:
            self.model.save_pretrained(temporary, state_dict=merged_state_dict(self.model))
            self.format.reply_format().save(temporary)
            self.format.save(temporary)

    @classmethod
    def from_pretrained(cls, folder: str, policy_format: TextFormat | None = None) -> "SummaryRewardModel":
        """Load what `save_pretrained` wrote, for a policy's tokens or (None) for its own.

        Raises:
            UserError: the folder holds none.
        """
        settings = read_settings(folder, "reward_model")
        model = TokenRewardModel.from_pretrained(folder)
        text_format = TextFormat.load(folder, settings, model.is_encoder_decoder)
        return cls(model, text_format, policy_format or text_format)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: torch.device) -> None:
        """Move the model."""
        torch.nn.Module.to(self.model, device)

    def _rewards(self, sources: Padded, summaries: Padded) -> Tensor:
        sequences = self._sequences(sources, summaries)
        return self.model(**sequences)[:, sequences["targets_from"] :]

    def _sequences(self, sources: Padded, summaries: Padded) -> dict[str, Any]:
        """Sources and summaries as the reward model reads them; what is known of them stays on the CPU."""
        if self.model.is_encoder_decoder:
            decoder_ids, decoder_mask = with_start_token(summaries.tokens, summaries.known, self.start)
            return {
                "input_ids": sources.tokens, "attention_mask": sources.known,
                "decoder_input_ids": decoder_ids, "decoder_attention_mask": decoder_mask,
                "targets_from": len(self.start),
            }  # fmt: skip
        per_source = len(summaries.known) // len(sources.known)
        ids, real = (
            torch.cat([of_sources.repeat_interleave(per_source, 0), of_summaries], 1)
            for of_sources, of_summaries in (
                (sources.tokens, summaries.tokens), (sources.known, summaries.known)
            )
        )  # fmt: skip
        return {"input_ids": ids, "attention_mask": real, "targets_from": sources.tokens.shape[1]}

    def _policy_texts(self, summaries: Padded) -> tuple[list[str], list[bool]]:
        tokenizer = self.policy_format.tokenizer
        lists = summaries.lists()
        texts = [self.policy_format.text(ids, clean_up_tokenization_spaces=False) for ids in lists]
        return texts, [tokenizer.eos_token_id in ids for ids in lists]

    def _own_tokens(self, texts: Sequence[str], ended: Sequence[bool]) -> tuple[Padded, list[list[tuple[int, int]]]]:
        """The texts in the reward model's tokens with the characters of each; an end token where the policy wrote one.

        A text of no tokens gets the end token in any case: a sequence needs a token to have a reward.
        """
        tokenizer = self.format.tokenizer
        mark = self.format.line_break
        marked = list(texts) if mark is None else [mark.mark(text) for text in texts]
        encoded = tokenizer(marked, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        end = int(tokenizer.eos_token_id)
        lists, spans = [], []
        for text, has_ended, ids, offsets in zip(
            texts, ended, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            if mark is not None:
                offsets = mark.unmarked(text, offsets)
            closes = has_ended or not ids
            lists.append([*ids, end] if closes else ids)
            # The end token stands for a character behind the last one.
            spans.append([*map(tuple, offsets), (len(text), len(text) + 1)] if closes else list(map(tuple, offsets)))
        return pad(lists, end).to(self.device), spans

    def _own_sources(self, batch: Batch) -> Padded:
        sources = self.format.sources([row.source for row in batch.rows])
        return pad(sources, int(self.format.tokenizer.eos_token_id)).to(self.device)
