"""The policy: a language model, encoder-decoder or decoder-only, that summarizes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from common.cpu.cheap_layers import use_cheap_layers
from common.language_models.adapters import merged_state_dict
from common.language_models.attention import share_sources
from common.language_models.capabilities import (
    EncoderStates,
    capabilities,
    encode_alone,
    pack_left,
    rows_with_token,
    without_cache,
)
from common.language_models.masks import Masks
from common.language_models.pretrained import load_pretrained
from common.training.files import write_folder_atomic
from sum_task.batching import Collator, Padded
from sum_task.text_format import TextFormat, decoder_start, read_settings

logger = logging.getLogger(__name__)


@dataclass
class Sources:
    """Articles as the policy has read them.

    Attributes:
        ids, mask: (B, S); True at real tokens.
        hides: whether any token is none.
        states: (B, S, d) encoder states; None for a decoder-only policy.
    """

    ids: Tensor
    mask: Tensor
    hides: bool
    states: Tensor | None = None

    def detach(self) -> "Sources":
        """The same without gradient."""
        return Sources(self.ids, self.mask, self.hides, None if self.states is None else self.states.detach())

    def rows(self, index: Tensor) -> "Sources":
        """The sources of the rows `index`."""
        states = None if self.states is None else self.states[index]
        return Sources(self.ids[index], self.mask[index], self.hides, states)


class SummaryPolicy:
    """A language model that summarizes: encodes sources once, and says what it expects behind them.

    `sum_task.sampling` and `sum_task.search` write with it.

    Attributes:
        lm: the model.
        format: how texts become its tokens.
        end_id, pad_id: the token that ends a summary, and that at padded positions, whose content has no influence.
        start: what an encoder-decoder's decoder reads before a summary.
        shares_sources: whether K summaries of a source are read with its states as they are, not K times.
        reads_whole: whether all is read anew for every token of a summary.
    """

    def __init__(self, lm: PreTrainedModel, text_format: TextFormat):
        self.lm = lm
        self.format = text_format
        self.tokenizer = text_format.tokenizer
        self.end_id = int(self.tokenizer.eos_token_id)
        pad_id = self.tokenizer.pad_token_id
        self.pad_id = self.end_id if pad_id is None else int(pad_id)
        self.is_encoder_decoder = text_format.is_encoder_decoder
        self.can = capabilities(lm, "the policy")
        self.can.require_left_to_right(lm.config.model_type, "policy")
        self.start = decoder_start(lm.config, self.tokenizer) if self.is_encoder_decoder else ()
        self._no_cache = without_cache(lm)
        self._has_token = rows_with_token(self.tokenizer, self.can.vocabulary)
        self._no_holes = bool(self._has_token.all())
        self.shares_sources = self.is_encoder_decoder and share_sources(lm)
        self._masks = Masks(lm)
        # Without padding before it a decoder-only model is read with padding behind it, which no token sees.
        self.reads_whole = not (self.can.cache_by_rows and (self.is_encoder_decoder or self.can.ignores_padding))
        if self.reads_whole:
            logger.warning(
                "what a %s has read cannot be kept by rows: all is read anew for every token of a summary",
                lm.config.model_type,
            )
        use_cheap_layers(lm)

    @property
    def device(self) -> torch.device:
        return next(self.lm.parameters()).device

    def to(self, device: torch.device) -> None:
        """Move the model."""
        torch.nn.Module.to(self.lm, device)

    def collator(self, pad_lengths: tuple[int, int] | None = None, learn_padding: bool = False) -> Collator:
        """What makes batches for this policy; see `Collator`."""
        return Collator(self.pad_id, not self.is_encoder_decoder, pad_lengths, learn_padding)

    def encode(self, texts: Padded) -> Sources:
        """Read sources; an encoder-decoder's encoder runs here and nowhere else."""
        ids, mask, hides = texts.tokens, texts.mask, not bool(texts.known.all())
        if not self.is_encoder_decoder:
            return Sources(self._unlike_padding(ids, mask), mask, hides)
        encoder = self.lm.get_encoder()
        if not self.can.ignores_padding:
            return Sources(ids, mask, hides, encode_alone(encoder, ids, mask))
        states = encoder(input_ids=ids, attention_mask=self._masks(mask, hides=hides)).last_hidden_state
        return Sources(ids, mask, hides, states)

    def join(self, parts: Sequence[Sources]) -> Sources:
        """The sources of several batches as one, as wide as the widest."""
        if len(parts) == 1:
            return parts[0]
        width = max(part.ids.shape[1] for part in parts)

        def widened(values: Tensor, filling: float) -> Tensor:
            missing = width - values.shape[1]
            sides = (0, missing) if self.is_encoder_decoder else (missing, 0)  # what writes on needs the end at the end
            return F.pad(values, (0, 0, *sides) if values.dim() == 3 else sides, value=filling)

        ids = torch.cat([widened(part.ids, self.pad_id) for part in parts])
        mask = torch.cat([widened(part.mask, False) for part in parts])
        states = [widened(part.states, 0) for part in parts if part.states is not None]
        hides = any(part.hides or part.ids.shape[1] < width for part in parts)
        return Sources(ids, mask, hides, torch.cat(states) if states else None)

    def logits(self, sources: Sources, summaries: Padded) -> Tensor:
        """Logits (N, T, V) of the policy's own distribution, position t predicting token t of the summaries.

        Args:
            sources: B of them.
            summaries: N = B * K, the K summaries of a source one after the other.
        """
        tokens = summaries.tokens
        per_source = tokens.shape[0] // sources.ids.shape[0]
        index = torch.arange(sources.ids.shape[0], device=tokens.device).repeat_interleave(per_source)
        sources = sources if per_source == 1 or self.shares_sources else sources.rows(index)
        if self.is_encoder_decoder:
            inputs = torch.cat([self.starts(len(tokens)), tokens[:, :-1]], 1)
            logits = self.lm(**self.encoded(sources), decoder_input_ids=inputs, **self._no_cache).logits
            return logits[:, len(self.start) - 1 :]
        ids = torch.cat([sources.ids, self._unlike_padding(tokens, summaries.mask)[:, :-1]], 1)
        mask = torch.cat([sources.mask, torch.ones_like(summaries.mask[:, :-1])], 1)
        first = sources.ids.shape[1] - 1  # the last token of a source predicts the first of its summary
        if self.reads_whole:
            return self._packed_logits(ids, mask, first)
        positions = torch.arange(first, ids.shape[1], device=ids.device)
        output = self.lm(
            input_ids=ids, attention_mask=self._masks(mask, ids.shape[1], sources.hides), **self._no_cache,
            **self._positions(mask.long().cumsum(-1) - 1), **self._kept(positions),
        ).logits  # fmt: skip
        return output if self.can.keeps_logits else output[:, first:]

    def _unlike_padding(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids with the end token for padding: the state of a padding token may be 0, and its gradient nothing."""
        return ids.masked_fill(~mask, self.end_id)

    def _packed_logits(self, ids: Tensor, mask: Tensor, first: int) -> Tensor:
        """Logits (N, T, V) after each column of `ids` from `first` on, padding wherever it stands left out."""
        logits = self.lm(input_ids=pack_left(ids, mask), **self._no_cache).logits
        places = (mask.long().cumsum(-1) - 1)[:, first:]
        return logits.gather(1, places.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))

    def read_start(self, sources: Sources) -> tuple[Tensor, Any]:
        """Logits (B, V) of the first token and the cache that goes with them; None where there can be none."""
        if self.reads_whole:
            nothing = torch.empty(len(sources.ids), 0, dtype=torch.long, device=self.device)
            return self.read_on(sources, nothing, None), None
        if self.is_encoder_decoder:
            start = self.starts(len(sources.ids))
            output = self.lm(**self.encoded(sources), decoder_input_ids=start, use_cache=True)
        else:
            positions = sources.mask.long().cumsum(-1) - 1
            output = self.lm(
                input_ids=sources.ids, attention_mask=self._masks(sources.mask, sources.ids.shape[1], sources.hides),
                use_cache=True, **self._positions(positions), **self._kept(1),
            )  # fmt: skip
        return output.logits[:, -1].float(), output.past_key_values

    def select(self, cache: Any, rows: Tensor, sources: Tensor) -> None:
        """Keep some rows of a cache, and of each the keys and values of its source."""
        if cache is None:
            return
        if self.is_encoder_decoder:
            cache.self_attention_cache.batch_select_indices(rows)
            cache.cross_attention_cache.batch_select_indices(sources)
        else:
            cache.batch_select_indices(rows)

    def read_on(self, sources: Sources, written: Tensor, cache: Any) -> Tensor:
        """Logits (N, V) of the token after those `written` (N, t), all but the last of which the cache holds."""
        if self.is_encoder_decoder:
            if cache is None:
                inputs = torch.cat([self.starts(len(written)), written], 1)
                output = self.lm(**self.encoded(sources), decoder_input_ids=inputs, **self._no_cache)
            else:
                inputs = written[:, -1:]
                output = self.lm(
                    **self.encoded(sources), decoder_input_ids=inputs, past_key_values=cache, use_cache=True
                )
            return output.logits[:, -1].float()
        mask = torch.cat([sources.mask, sources.mask.new_ones(written.shape)], 1)
        if cache is None:
            return self._packed_logits(torch.cat([sources.ids, written], 1), mask, mask.shape[1] - 1)[:, 0].float()
        positions = mask.long().sum(-1, keepdim=True) - 1
        output = self.lm(
            input_ids=written[:, -1:], attention_mask=self._masks(mask), past_key_values=cache, use_cache=True,
            **self._positions(positions),
        )  # fmt: skip
        return output.logits[:, -1].float()

    def possible(self, logits: Tensor) -> Tensor:
        """Logits (N, V') of the vocabulary, none where no token belongs to a row: models have more than texts use."""
        logits = logits[:, : len(self._has_token)]
        if self._no_holes:
            return logits
        self._has_token = self._has_token.to(logits.device)
        return logits.masked_fill(~self._has_token, -torch.inf)

    def starts(self, count: int) -> Tensor:
        """What the decoder reads before a summary, (count, start)."""
        return torch.tensor(self.start, device=self.device).expand(count, -1)

    def encoded(self, sources: Sources) -> dict[str, Any]:
        mask = self._masks(sources.mask, hides=sources.hides)
        return {"encoder_outputs": EncoderStates(sources.states), "attention_mask": mask}

    def _positions(self, positions: Tensor) -> dict[str, Any]:
        return {"position_ids": positions.clamp(min=0)} if self.can.takes_positions else {}

    def _kept(self, positions: Tensor | int) -> dict[str, Any]:
        return {"logits_to_keep": positions} if self.can.keeps_logits else {}

    def texts(self, summaries: Padded) -> list[str]:
        """The text of each summary."""
        texts = (self.format.text(ids).strip().split("\n") for ids in summaries.lists())
        return ["\n".join(line.strip() for line in lines) for lines in texts]

    def save_pretrained(self, folder: Path) -> None:
        """Write the model, its tokenizer and the text format; the folder loads with `from_pretrained` alone."""
        with write_folder_atomic(folder) as temporary:
            self.lm.save_pretrained(temporary, state_dict=merged_state_dict(self.lm))
            self.tokenizer.save_pretrained(temporary)
            self.format.save(temporary)

    @classmethod
    def from_pretrained(cls, folder: str) -> "SummaryPolicy":
        """Load a policy that `save_pretrained` wrote.

        Raises:
            UserError: the folder holds none.
        """
        settings = read_settings(folder, "policy")
        config = load_pretrained(AutoConfig, folder)
        lm = load_pretrained(auto_class(config), folder, complete=True, dtype=torch.float32)
        return cls(lm.eval(), TextFormat.load(folder, settings, bool(config.is_encoder_decoder)))


def auto_class(config: Any) -> Any:
    """Of transformers, with the head of a language model."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
