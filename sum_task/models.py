"""The policy, a language model that summarizes, and the token reward model that judges its summaries.

Both may be encoder-decoder or decoder-only, and each may have its own tokenizer.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
)

from common.cpu.cheap_layers import use_cheap_layers
from common.errors import UserError, nearest
from common.language_models.adapters import merged_state_dict
from common.language_models.attention import SHARED_SOURCE, share_sources
from common.language_models.capabilities import (
    DECODER_ONLY,
    ENCODER_DECODER,
    EncoderStates,
    agree,
    can_read,
    capabilities,
    check_trainable,
    decoder_start_id,
    encode_alone,
    equal_lengths,
    exactly,
    pack_left,
    position_limits,
    probe_ids,
    require_kind,
    rows_with_token,
    without_cache,
)
from common.language_models.growing_cache import let_grow
from common.language_models.pretrained import load_pretrained, load_tokenizer
from common.language_models.sampling import draw_tokens
from common.language_models.token_carry import carry_over, token_spans
from common.token_reward_model import TokenRewardConfig, TokenRewardModel, with_start_token
from common.training.files import write_folder_atomic
from common.transfers import upload
from sum_task.batching import Batch, Collator, TextFormat, pad
from sum_task.settings import EvaluationSettings, ModelSettings, TextSettings

logger = logging.getLogger(__name__)

FORMAT_FILE = "summarization.json"
# A sample that has ended is still computed until so small a share of the rows is left.
COMPACT_BELOW = 0.75
# Tokens after which is looked how many samples have ended. A device is asked for that, and the CPU waits for it.
TOKENS_BETWEEN_LOOKS = {"cpu": 1}
TOKENS_BETWEEN_LOOKS_ELSEWHERE = 8


@dataclass
class Sources:
    """Articles as the policy has read them.

    Attributes:
        ids, mask: (B, S); True at real tokens.
        states: (B, S, d) encoder states; None for a decoder-only policy.
    """

    ids: Tensor
    mask: Tensor
    states: Tensor | None = None

    def detach(self) -> "Sources":
        """The same without gradient."""
        return Sources(self.ids, self.mask, None if self.states is None else self.states.detach())

    def rows(self, index: Tensor) -> "Sources":
        """The sources of the rows `index`."""
        return Sources(self.ids[index], self.mask[index], None if self.states is None else self.states[index])


@dataclass
class Summaries:
    """Summaries as token ids.

    Attributes:
        tokens: (N, T).
        mask: (N, T), True at real tokens, the end token included. What a token is makes no difference: a padding
            token that was sampled within a summary is real.
    """

    tokens: Tensor
    mask: Tensor

    def part(self, first: int, end: int) -> "Summaries":
        """Those from `first` to before `end`, no wider than the longest of them."""
        longest = int(self.mask[first:end].sum(-1).max())
        return Summaries(self.tokens[first:end, :longest], self.mask[first:end, :longest])

    def lists(self) -> list[list[int]]:
        """The real token ids of each summary."""
        tokens, lengths = self.tokens.tolist(), self.mask.sum(-1).tolist()
        return [row[:length] for row, length in zip(tokens, lengths, strict=True)]


class SummaryPolicy:
    """A language model that summarizes: encodes sources once, samples, scores and searches summaries of them."""

    def __init__(self, lm: PreTrainedModel, text_format: TextFormat):
        self.lm = lm
        self.format = text_format
        self.tokenizer = text_format.tokenizer
        self.end_id = int(self.tokenizer.eos_token_id)
        self.is_encoder_decoder = text_format.is_encoder_decoder
        self.can = capabilities(lm, "the policy")
        self.can.require_left_to_right(lm.config.model_type, "policy")
        self.start = decoder_start(lm.config, self.tokenizer) if self.is_encoder_decoder else ()
        self._no_cache = without_cache(lm)
        self._has_token = rows_with_token(self.tokenizer, self.can.vocabulary)
        self._no_holes = bool(self._has_token.all())
        self._shares_sources = self.is_encoder_decoder and share_sources(lm)
        # Without padding before it a decoder-only model is read with padding behind it, which no token sees.
        self._reads_whole = not (self.can.cache_by_rows and (self.is_encoder_decoder or self.can.ignores_padding))
        if self._reads_whole:
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

    @property
    def pad_id(self) -> int:
        """Token id at padded positions, whose content has no influence."""
        pad_id = self.tokenizer.pad_token_id
        return self.end_id if pad_id is None else int(pad_id)

    def collator(self, pad_lengths: tuple[int, int] | None = None, learn_padding: bool = False) -> Collator:
        """What makes batches for this policy; see `Collator`."""
        return Collator(self.pad_id, not self.is_encoder_decoder, pad_lengths, learn_padding)

    def encode(self, source_ids: Tensor, source_mask: Tensor) -> Sources:
        """Read the sources (B, S); an encoder-decoder's encoder runs here and nowhere else."""
        if not self.is_encoder_decoder:
            return Sources(self._unlike_padding(source_ids, source_mask), source_mask)
        encoder = self.lm.get_encoder()
        if not self.can.ignores_padding:
            return Sources(source_ids, source_mask, encode_alone(encoder, source_ids, source_mask))
        states = encoder(input_ids=source_ids, attention_mask=source_mask.long()).last_hidden_state
        return Sources(source_ids, source_mask, states)

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
        return Sources(ids, mask, torch.cat(states) if states else None)

    def logits(self, sources: Sources, summaries: Summaries) -> Tensor:
        """Logits (N, T, V) of the policy's own distribution, position t predicting token t of the summaries.

        Args:
            sources: B of them.
            summaries: N = B * K, the K summaries of a source one after the other.
        """
        tokens = summaries.tokens
        per_source = tokens.shape[0] // sources.ids.shape[0]
        index = torch.arange(sources.ids.shape[0], device=tokens.device).repeat_interleave(per_source)
        sources = sources if per_source == 1 or self._shares_sources else sources.rows(index)
        if self.is_encoder_decoder:
            inputs = torch.cat([self._starts(len(tokens)), tokens[:, :-1]], 1)
            logits = self.lm(**self._encoded(sources), decoder_input_ids=inputs, **self._no_cache).logits
            return logits[:, len(self.start) - 1 :]
        ids = torch.cat([sources.ids, self._unlike_padding(tokens, summaries.mask)[:, :-1]], 1)
        mask = torch.cat([sources.mask, torch.ones_like(summaries.mask[:, :-1])], 1)
        first = sources.ids.shape[1] - 1  # the last token of a source predicts the first of its summary
        if self._reads_whole:
            return self._packed_logits(ids, mask, first)
        positions = torch.arange(first, ids.shape[1], device=ids.device)
        output = self.lm(
            input_ids=ids, attention_mask=mask.long(), **self._no_cache,
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

    @torch.no_grad()
    def sample(
        self,
        sources: Sources,
        per_source: int,
        generator_noise: Tensor,
        top_k: int | None,
        temperature: float,
    ) -> Summaries:
        """Sample summaries without gradient, dropout off.

        Args:
            sources: B of them.
            per_source: K, summaries of each.
            generator_noise: (B * K, L) uniform numbers in [0, 1), on the CPU: number (n, t) decides token t of
                summary n, so that neither the batch nor the device changes what is drawn. L is the greatest length.
            top_k: draw from the k most probable tokens; None: from all.
            temperature: divides the logits.

        Returns:
            N = B * K summaries, the K of a source one after the other.
        """
        was_training = self.lm.training
        self.lm.eval()
        try:
            return self._sample(sources.detach(), per_source, generator_noise, top_k, temperature)
        finally:
            self.lm.train(was_training)

    def _sample(
        self, sources: Sources, per_source: int, noise: Tensor, top_k: int | None, temperature: float
    ) -> Summaries:
        count, length = noise.shape
        tokens = torch.full((count, length), self.pad_id, device=self.device)
        mask = torch.zeros(count, length, dtype=torch.bool, device=self.device)
        noise = upload(noise.float(), self.device)
        between = TOKENS_BETWEEN_LOOKS.get(self.device.type, TOKENS_BETWEEN_LOOKS_ELSEWHERE)
        alive = torch.arange(count, device=self.device)  # the summary of each row that is still computed
        ended = torch.zeros(count, dtype=torch.bool, device=self.device)
        written = torch.empty(count, 0, dtype=torch.long, device=self.device)  # of the rows still computed
        logits, cache = self._read_start(sources)  # once a source: its K summaries begin alike
        source_of = torch.arange(len(sources.ids), device=self.device).repeat_interleave(per_source)
        logits = logits[source_of]
        if self._shares_sources and cache is not None:
            cache.self_attention_cache.batch_select_indices(source_of)
        elif not self._shares_sources:
            self._select(cache, source_of, source_of)
            sources, source_of = sources.rows(source_of), torch.arange(count, device=self.device)
        if cache is not None:
            let_grow(cache.self_attention_cache if self.is_encoder_decoder else cache)
        for position in range(length):
            drawn = draw_tokens(self._possible(logits), noise[alive, position], top_k, temperature=temperature)
            tokens[alive, position] = drawn.masked_fill(ended, self.pad_id)
            mask[alive, position] = ~ended
            written = torch.cat([written, drawn.unsqueeze(1)], 1)
            ended = ended | (drawn == self.end_id)
            if position + 1 == length:
                break
            if (position + 1) % between == 0:
                going_on = (~ended.cpu()).nonzero().squeeze(1)
                if len(going_on) == 0:
                    break
                if len(going_on) < COMPACT_BELOW * len(alive):
                    kept = going_on.to(self.device)
                    self._select(cache, kept, source_of[kept])
                    sources, source_of = sources.rows(source_of[kept]), torch.arange(len(kept), device=self.device)
                    alive, written, ended = alive[kept], written[kept], ended[kept]
            logits = self._read_on(sources, written, cache)
        longest = int(mask.sum(-1).max())
        return Summaries(tokens[:, :longest], mask[:, :longest])

    def _read_start(self, sources: Sources) -> tuple[Tensor, Any]:
        """Logits (B, V) of the first token and the cache that goes with them; None where there can be none."""
        if self._reads_whole:
            nothing = torch.empty(len(sources.ids), 0, dtype=torch.long, device=self.device)
            return self._read_on(sources, nothing, None), None
        if self.is_encoder_decoder:
            start = self._starts(len(sources.ids))
            output = self.lm(**self._encoded(sources), decoder_input_ids=start, use_cache=True)
        else:
            positions = (sources.mask.long().cumsum(-1) - 1).clamp(min=0)
            output = self.lm(
                input_ids=sources.ids, attention_mask=sources.mask.long(), use_cache=True,
                **self._positions(positions), **self._kept(1),
            )  # fmt: skip
        return output.logits[:, -1].float(), output.past_key_values

    def _select(self, cache: Any, rows: Tensor, sources: Tensor) -> None:
        """Keep some rows of a cache, and of each the keys and values of its source."""
        if cache is None:
            return
        if self.is_encoder_decoder:
            cache.self_attention_cache.batch_select_indices(rows)
            cache.cross_attention_cache.batch_select_indices(sources)
        else:
            cache.batch_select_indices(rows)

    def _read_on(self, sources: Sources, written: Tensor, cache: Any) -> Tensor:
        """Logits (N, V) of the token after those `written` (N, t), all but the last of which the cache holds."""
        if self.is_encoder_decoder:
            if cache is None:
                inputs = torch.cat([self._starts(len(written)), written], 1)
                output = self.lm(**self._encoded(sources), decoder_input_ids=inputs, **self._no_cache)
            else:
                read = self._encoded(sources) | {"attention_mask": self._ready_mask(sources.mask)}
                output = self.lm(**read, decoder_input_ids=written[:, -1:], past_key_values=cache, use_cache=True)
            return output.logits[:, -1].float()
        mask = torch.cat([sources.mask, sources.mask.new_ones(written.shape)], 1)
        if cache is None:
            return self._packed_logits(torch.cat([sources.ids, written], 1), mask, mask.shape[1] - 1)[:, 0].float()
        positions = mask.long().sum(-1, keepdim=True) - 1
        output = self.lm(
            input_ids=written[:, -1:], attention_mask=self._ready_mask(mask), past_key_values=cache, use_cache=True,
            **self._positions(positions),
        )  # fmt: skip
        return output.logits[:, -1].float()

    def _ready_mask(self, mask: Tensor) -> Tensor:
        """What one more token sees, (N, S), as its attention takes it.

        transformers looks at every token whether a mask hides anything, for which the CPU waits for the device. A mask
        of four dimensions is taken as it stands.
        """
        if self.device.type == "cpu" or not _takes_ready_masks(self.lm.config):
            return mask.long()
        return mask[:, None, None]

    def _possible(self, logits: Tensor) -> Tensor:
        """Logits (N, V') of the vocabulary, none where no token belongs to a row: models have more than texts use."""
        logits = logits[:, : len(self._has_token)]
        if self._no_holes:
            return logits
        self._has_token = self._has_token.to(logits.device)
        return logits.masked_fill(~self._has_token, -torch.inf)

    @torch.no_grad()
    def search(self, sources: Sources, max_length: int, num_beams: int = 1) -> Summaries:
        """The summary of each source by greedy or beam search, dropout off: what a user of the policy gets.

        Settings that come with the model, such as a length penalty, hold; lengths and beams are those given.
        """
        was_training = self.lm.training
        self.lm.eval()
        options = GenerationConfig.from_dict(self.lm.generation_config.to_dict())
        options.update(
            do_sample=False, temperature=None, top_k=None, top_p=None, num_beams=num_beams, max_length=None,
            max_new_tokens=max_length, eos_token_id=self.end_id, pad_token_id=self.pad_id,
        )  # fmt: skip
        options.early_stopping = bool(options.early_stopping) and num_beams > 1
        if num_beams == 1:
            options.length_penalty = None
        options.use_cache = not self._reads_whole
        if self.is_encoder_decoder:
            options.decoder_start_token_id = self.start[0]  # else transformers puts its own before what is begun
            if len(self.start) > 1:
                options.forced_bos_token_id = None  # it is among what is begun
        if options.forced_eos_token_id is not None:
            options.forced_eos_token_id = self.end_id  # configurations name one where tokenizers have another
        try:
            if self.is_encoder_decoder:
                written = self._generate(options, self._starts(len(sources.ids)), **self._encoded(sources))
            elif self._reads_whole:
                parts = [
                    (rows, self._generate(options, *self._unpadded(sources, rows)))
                    for rows in equal_lengths(sources.mask)
                ]
                width = max(part.shape[1] for _, part in parts)
                written = torch.full((len(sources.ids), width), self.end_id, device=self.device)
                for rows, part in parts:
                    written[rows, : part.shape[1]] = part
            else:
                written = self._generate(options, sources.ids, attention_mask=sources.mask.long())
        finally:
            self.lm.train(was_training)
        ends = (written == self.end_id).long()
        return Summaries(written, (ends.cumsum(-1) - ends) == 0)  # all up to the first end token

    def _generate(self, options: GenerationConfig, begun: Tensor, **inputs: Any) -> Tensor:
        """What transformers' own search writes behind the ids `begun` (N, S)."""
        given: dict[str, Any] = {"decoder_input_ids" if self.is_encoder_decoder else "input_ids": begun}
        if self.is_encoder_decoder and options.use_cache:
            # Made by transformers for the configuration it would have as many layers as that tells, which may be wrong.
            given["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
        processors = LogitsProcessorList([self._without_tokenless])
        generate: Any = self.lm.generate
        return generate(**given, **inputs, generation_config=options, logits_processor=processors)[:, begun.shape[1] :]

    @exactly()
    def check_search(self) -> None:
        """See that transformers' search reads texts as training does; some families' puts more into them.

        Raises:
            UserError: it writes what is not most probable.
        """
        ids = probe_ids(self.lm)[:, :5]
        was_training, kept = self.lm.training, self.lm.generation_config
        self.lm.eval()
        self.lm.generation_config = GenerationConfig()
        try:
            sources = self.encode(ids, torch.ones_like(ids, dtype=torch.bool))
            found = self.search(sources, 3)
            logits = self._possible(self.logits(sources, found)[0])
        finally:
            self.lm.train(was_training)
            self.lm.generation_config = kept
        chosen = logits.gather(1, found.tokens[0, : len(logits), None])[:, 0][found.mask[0]]
        if not agree(chosen, logits.amax(-1)[found.mask[0]]):
            raise UserError(f"a {self.lm.config.model_type} reads other texts in transformers' search than in training")

    def _without_tokenless(self, ids: Tensor, scores: Tensor) -> Tensor:
        """What search asks of every row of logits (N, V)."""
        possible = self._possible(scores)
        return F.pad(possible, (0, scores.shape[1] - possible.shape[1]), value=-torch.inf)

    @staticmethod
    def _unpadded(sources: Sources, rows: Tensor) -> tuple[Tensor]:
        ids = sources.ids[rows]
        return (ids[:, -int(sources.mask[rows[0]].sum()) :],)

    def texts(self, summaries: Summaries) -> list[str]:
        """The text of each summary."""
        return [_each_line_stripped(self.format.text(ids)) for ids in summaries.lists()]

    def save_pretrained(self, folder: Path) -> None:
        """Write the model, its tokenizer and the text format; the folder loads with `from_pretrained` alone."""
        with write_folder_atomic(folder) as temporary:
            self.lm.save_pretrained(temporary, state_dict=merged_state_dict(self.lm))
            self.tokenizer.save_pretrained(temporary)
            _write_format(temporary, self.format)

    @classmethod
    def from_pretrained(cls, folder: str) -> "SummaryPolicy":
        """Load a policy that `save_pretrained` wrote.

        Raises:
            UserError: the folder holds none.
        """
        fields = read_format(folder, "policy")
        config = load_pretrained(AutoConfig, folder)
        lm = load_pretrained(_auto_class(config), folder, complete=True, dtype=torch.float32)
        tokenizer = load_tokenizer(AutoTokenizer, folder)
        set_languages(tokenizer, fields["source_language"], fields["target_language"], folder)
        return cls(lm.eval(), TextFormat(tokenizer, bool(config.is_encoder_decoder), **fields))

    def _starts(self, count: int) -> Tensor:
        """What the decoder reads before a summary, (count, start)."""
        return torch.tensor(self.start, device=self.device).expand(count, -1)

    def _encoded(self, sources: Sources) -> dict[str, Any]:
        return {
            "encoder_outputs": EncoderStates(sources.states),
            "attention_mask": sources.mask.long(),
        }

    def _positions(self, positions: Tensor) -> dict[str, Any]:
        return {"position_ids": positions.clamp(min=0)} if self.can.takes_positions else {}

    def _kept(self, positions: Tensor | int) -> dict[str, Any]:
        return {"logits_to_keep": positions} if self.can.keeps_logits else {}


def _takes_ready_masks(config: Any) -> bool:
    """Whether attention wants True where a token is seen, and every layer sees all that the mask allows."""
    kinds = {"full_attention", *(getattr(config, "layer_types", None) or ())}
    windows = getattr(config, "sliding_window", None)
    return config._attn_implementation in ("sdpa", SHARED_SOURCE) and kinds == {"full_attention"} and not windows


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

    def own_rewards(self, batch: Batch, summaries: Summaries) -> tuple[Tensor, Tensor]:
        """Rewards of the summaries in the reward model's own tokens, and their mask, (N, T) each.

        The K = N / B summaries of an article stand one after the other; each article is encoded once.
        """
        if self.reads_policy_tokens:
            rewards = self._rewards(batch.source_ids, batch.source_mask, summaries)
            return rewards, summaries.mask
        texts, ended = self._policy_texts(summaries)
        own, _ = self._own_tokens(texts, ended)
        return self._rewards(*self._own_sources(batch), own), own.mask

    def policy_rewards(self, batch: Batch, summaries: Summaries) -> Tensor:
        """Rewards (N, T) of the policy's tokens.

        Where tokenizers differ, each reward is spread over the characters of its token and given to the policy's
        tokens that hold them; the sum over a summary is preserved.
        """
        if self.reads_policy_tokens:
            return self._rewards(batch.source_ids, batch.source_mask, summaries)
        tokenizer = self.policy_format.tokenizer
        spans = [token_spans(tokenizer, ids, self.policy_format.line_break) for ids in summaries.lists()]
        _, ended = self._policy_texts(summaries)
        own, own_spans = self._own_tokens([text for text, _ in spans], ended)
        rewards = self._rewards(*self._own_sources(batch), own).cpu()
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

    def judge(self, batch: Batch, summaries: Summaries, policy_logits: Tensor, likeliest: int) -> tuple[Tensor, Tensor]:
        """Rewards of the policy's tokens, and what the policy expects in each state, (N, T) each; no gradient.

        Args:
            batch, summaries: see `own_rewards`; in the policy's own tokens.
            policy_logits: (N, T, V), position t about token t of the summaries.
            likeliest: tokens over which it is expected, where the head does not tell all, see
                :meth:`common.token_reward_model.TokenRewardModel.rewards_and_expectations`.
        """
        sequences = self._sequences(batch.source_ids, batch.source_mask, summaries)
        return self.model.rewards_and_expectations(policy_logits, likeliest=likeliest, **sequences)

    def alternative_rewards(self, batch: Batch, summaries: Summaries, alternatives: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards (N, T) of the policy's tokens, and (N, T, K) of K others in the place of each; no gradient."""
        sequences = self._sequences(batch.source_ids, batch.source_mask, summaries)
        return self.model.alternative_rewards(alternatives, **sequences)

    def save_pretrained(self, folder: Path) -> None:
        """Write the model, its tokenizer and the text format."""
        with write_folder_atomic(folder) as temporary:
            self.model.save_pretrained(temporary, state_dict=merged_state_dict(self.model))
            self.format.reply_format().save(temporary)
            _write_format(temporary, self.format)

    @classmethod
    def from_pretrained(cls, folder: str, policy_format: TextFormat | None = None) -> "SummaryRewardModel":
        """Load what `save_pretrained` wrote, for a policy's tokens or (None) for its own.

        Raises:
            UserError: the folder holds none.
        """
        fields = read_format(folder, "reward_model")
        model = TokenRewardModel.from_pretrained(folder)
        tokenizer = load_tokenizer(AutoTokenizer, folder)
        set_languages(tokenizer, fields["source_language"], fields["target_language"], folder)
        text_format = TextFormat(tokenizer, model.is_encoder_decoder, **fields)
        return cls(model, text_format, policy_format or text_format)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: torch.device) -> None:
        """Move the model."""
        torch.nn.Module.to(self.model, device)

    def _rewards(self, source_ids: Tensor, source_mask: Tensor, summaries: Summaries) -> Tensor:
        sequences = self._sequences(source_ids, source_mask, summaries)
        return self.model(**sequences)[:, sequences["targets_from"] :]

    def _sequences(self, source_ids: Tensor, source_mask: Tensor, summaries: Summaries) -> dict[str, Any]:
        """Sources and summaries as the reward model reads them."""
        tokens, mask = summaries.tokens, summaries.mask
        if self.model.is_encoder_decoder:
            decoder_ids, decoder_mask = with_start_token(tokens, mask, self.start)
            sources = {"input_ids": source_ids, "attention_mask": source_mask}
            return sources | {
                "decoder_input_ids": decoder_ids, "decoder_attention_mask": decoder_mask,
                "targets_from": len(self.start),
            }  # fmt: skip
        per_source = len(tokens) // len(source_ids)
        ids = torch.cat([source_ids.repeat_interleave(per_source, 0), tokens], 1)
        real = torch.cat([source_mask.repeat_interleave(per_source, 0), mask], 1)
        return {"input_ids": ids, "attention_mask": real, "targets_from": source_ids.shape[1]}

    def _policy_texts(self, summaries: Summaries) -> tuple[list[str], list[bool]]:
        tokenizer = self.policy_format.tokenizer
        lists = summaries.lists()
        texts = [self.policy_format.text(ids, clean_up_tokenization_spaces=False) for ids in lists]
        return texts, [tokenizer.eos_token_id in ids for ids in lists]

    def _own_tokens(self, texts: Sequence[str], ended: Sequence[bool]) -> tuple[Summaries, list[list[tuple[int, int]]]]:
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
        tokens, mask = pad(lists, end)
        return Summaries(tokens.to(self.device), mask.to(self.device)), spans

    def _own_sources(self, batch: Batch) -> tuple[Tensor, Tensor]:
        ids, mask = pad(
            self.format.sources([row.source for row in batch.rows]), int(self.format.tokenizer.eos_token_id)
        )
        return ids.to(self.device), mask.to(self.device)


def _each_line_stripped(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().split("\n"))


def same_tokens(one: Any, other: Any) -> bool:
    """Whether two tokenizers give the same ids to the same tokens."""
    if one is other:
        return True
    return one.eos_token_id == other.eos_token_id and one.get_vocab() == other.get_vocab()


def load_policy(models: ModelSettings, text: TextSettings, search: EvaluationSettings) -> SummaryPolicy:
    """The policy that the options ask for, with pretrained or (model_name_or_path=null) random weights.

    Raises:
        UserError: it cannot be loaded, is no language model that writes, or cannot read sources of such a length.
    """
    if models.use_slow_tokenizer:
        logger.warning("use_slow_tokenizer: transformers has one tokenizer a model today; the flag changes nothing")
    name = models.policy_checkpoint_path or models.model_name_or_path
    config = _policy_config(models, name)
    require_kind(config, str(name or models.config_name or models.model_type), "policy", DECODER_ONLY, ENCODER_DECODER)
    tokenizer_name = models.tokenizer_name or name or models.config_name
    if tokenizer_name is None:
        raise UserError("tokenizer_name: needed for a policy of random weights that is given by model_type")
    tokenizer = load_tokenizer(AutoTokenizer, tokenizer_name)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of '{tokenizer_name}' has no end token, with which a summary could end")
    auto_class = _auto_class(config)
    if name is None:
        lm = auto_class.from_config(config)
    else:
        lm = load_pretrained(auto_class, name, complete=True, dtype=torch.float32, config=config)
    _fit_vocabulary(lm, tokenizer)
    languages = set_languages(tokenizer, text.source_language, text.target_language, tokenizer_name)
    text_format = TextFormat(
        tokenizer, bool(config.is_encoder_decoder), text.source_prefix, text.separator,
        text.max_source_length, *languages,
    )  # fmt: skip
    if text_format.is_encoder_decoder and decoder_start_id(lm.config) is None:
        lm.config.decoder_start_token_id = decoder_start(lm.config, tokenizer)[0]  # for whoever loads what is saved
    fit_positions(lm, text_format, text)
    _set_generation(lm, search)
    policy = SummaryPolicy(lm, text_format)
    check_trainable(lm, "the policy")
    policy.check_search()
    return policy


def load_reward_model(models: ModelSettings, text: TextSettings, policy: SummaryPolicy) -> SummaryRewardModel:
    """The token reward model that the options ask for; a fresh head unless rew_checkpoint_path is given.

    Raises:
        UserError: it cannot be loaded or cannot read sources of such a length.
    """
    if models.rew_checkpoint_path is not None:
        return SummaryRewardModel.from_pretrained(models.rew_checkpoint_path, policy.format)
    bound = "softplus" if models.use_softplus else "sigmoid"
    name = models.reward_model_name
    if name is None:
        backbone = policy.lm.config.to_diff_dict()
        model = TokenRewardModel(
            TokenRewardConfig(
                backbone=backbone,
                bound=bound,
                head=models.rew_head,
                head_hidden_size=models.head_hidden_size,
                head_init_gain=models.head_init_gain,
            )
        )
    else:
        model = TokenRewardModel.from_backbone(
            name, bound, models.head_hidden_size, models.head_init_gain, head=models.rew_head
        )
    tokenizer = policy.tokenizer
    if models.rew_model_name_or_path is not None:
        tokenizer = load_tokenizer(AutoTokenizer, models.rew_model_name_or_path)
        if same_tokens(tokenizer, policy.tokenizer):
            tokenizer = policy.tokenizer
        elif not tokenizer.is_fast or tokenizer.eos_token_id is None:
            raise UserError(
                f"rew_model_name_or_path: the tokenizer of '{name}' differs from the policy's; rewards can be carried "
                "over only from a fast tokenizer with an end token"
            )
    _fit_vocabulary(model.backbone, tokenizer)
    languages: tuple[str | None, ...] = (policy.format.source_language, policy.format.target_language)
    if tokenizer is not policy.tokenizer:
        languages = set_languages(tokenizer, *_known_languages(tokenizer, text), str(name))
    text_format = TextFormat(
        tokenizer, model.is_encoder_decoder, text.source_prefix, text.separator, text.max_source_length,
        *languages,
    )  # fmt: skip
    fit_positions(model.backbone, text_format, text)
    if text_format.is_encoder_decoder and decoder_start_id(model.backbone.config) is None:
        model.backbone.config.decoder_start_token_id = decoder_start(model.backbone.config, tokenizer)[0]
    model.config.backbone = model.backbone.config.to_diff_dict()  # with what was fitted
    return SummaryRewardModel(model, text_format, policy.format)


def fit_positions(model: PreTrainedModel, text_format: TextFormat, text: TextSettings) -> None:
    """See that the model has a position for each token it will read; lengthen its position embeddings if it can.

    Raises:
        UserError: it has not, and may not or cannot be lengthened.
    """
    targets = max(text.max_target_length, text.eval_target_length)
    sources = text.max_source_length
    start = decoder_start(model.config, text_format.tokenizer) if text_format.is_encoder_decoder else ()
    needed = {"source": sources, "target": targets + len(start)}
    if not start:
        needed = {"source": sources + targets}
    limits = dict(zip(("source", "target"), position_limits(model), strict=True))
    missing = [(side, n, limits[side]) for side, n in needed.items() if n > (limits[side] or n)]
    option = {"source": "max_source_length", "target": "max_target_length"}
    lengths = f"max_source_length={sources} and max_target_length={targets}"
    if not missing:
        if limits["source"] is None and not can_read(model, needed["source"]):
            raise UserError(
                f"max_source_length: a {model.config.model_type} cannot read the {needed['source']} tokens of {lengths}"
            )
        return
    side, tokens, limit = missing[0]
    problem = (
        f"{option[side]}: a {model.config.model_type} of {limit} positions cannot read the {tokens} tokens of {lengths}"
    )
    if text.resize_position_embeddings is False:
        raise UserError(f"{problem}; resize_position_embeddings=true lengthens them where the model can")
    try:
        model.resize_position_embeddings(max(needed.values()))
        lengthened = all(n <= (has or n) for n, has in zip(needed.values(), position_limits(model), strict=False))
    except NotImplementedError:
        lengthened = False
    if not lengthened:
        raise UserError(f"{problem}, and its position embeddings cannot be lengthened")
    if text.resize_position_embeddings is None:
        logger.warning("position embeddings are lengthened from %d to %d, the new ones are untrained", limit, tokens)


def decoder_start(config: Any, tokenizer: Any) -> tuple[int, ...]:
    """What an encoder-decoder's decoder reads before a target.

    Its start token, then whatever the tokenizer puts before every target: nobody chooses those, so they are given and
    neither written nor rewarded. A code that the tokenizer puts behind the end token (mBART's way) is the start token.

    Raises:
        UserError: nothing says what it is.
    """
    ids = tokenizer(text_target="a")["input_ids"]
    text = tokenizer(text_target="a", add_special_tokens=False)["input_ids"]
    at = next((i for i in range(len(ids)) if ids[i : i + len(text)] == text), len(ids))
    before, behind = ids[:at], ids[at + len(text) :]
    codes = behind[behind.index(tokenizer.eos_token_id) + 1 :] if tokenizer.eos_token_id in behind else []
    if codes:
        return tuple(codes[-1:])
    start = decoder_start_id(config)
    if start is None and not before:
        start = tokenizer.pad_token_id
        if start is None:
            raise UserError(f"a {config.model_type} without decoder_start_token_id whose tokenizer has no pad token")
    return tuple(before) if start is None or before[:1] == [start] else (start, *before)


def set_languages(tokenizer: Any, source: str | None, target: str | None, name: str) -> tuple[str | None, str | None]:
    """Tell a multilingual tokenizer the languages of articles and summaries, and return those that it uses.

    Raises:
        UserError: it needs one that is not given, or does not know one.
    """
    found: list[str | None] = []
    for option, attribute, code in (("source_language", "src_lang", source), ("target_language", "tgt_lang", target)):
        if not hasattr(tokenizer, attribute):
            if code is not None:
                raise UserError(f"{option}: the tokenizer of '{name}' does not tell languages apart")
            found.append(None)
            continue
        if code is None and getattr(tokenizer, attribute) is None:
            raise UserError(f"{option}: needed by the multilingual tokenizer of '{name}', such as en_XX or eng_Latn")
        if code is not None:
            try:
                setattr(tokenizer, attribute, code)
                known = tokenizer.convert_tokens_to_ids(code) not in (None, tokenizer.unk_token_id)
            except KeyError:
                known = False
            known = (
                known
                or code in getattr(tokenizer, "lang_code_to_id", {})
                or code in getattr(tokenizer, "lang_code_to_token", {})
            )
            if not known:
                raise UserError(f"{option}: the tokenizer of '{name}' knows no language '{code}'")
        found.append(getattr(tokenizer, attribute))
    return found[0], found[1]


def _known_languages(tokenizer: Any, text: TextSettings) -> tuple[str | None, str | None]:
    """The languages asked for, where a tokenizer tells them apart."""
    return (
        text.source_language if hasattr(tokenizer, "src_lang") else None,
        text.target_language if hasattr(tokenizer, "tgt_lang") else None,
    )


# What a run sets itself, whatever comes with a model.
_OWN_GENERATION = {
    "do_sample", "temperature", "top_k", "top_p", "num_beams", "max_length", "max_new_tokens", "use_cache",
    "transformers_version", "_from_model_config", "output_attentions", "output_hidden_states",
    "return_dict_in_generate",
}  # fmt: skip


def _set_generation(lm: PreTrainedModel, search: EvaluationSettings) -> None:
    """Settings of search that are given replace those that come with the model; what is kept of these is said."""
    config = lm.generation_config
    assert config is not None
    if search.min_length is not None:
        config.min_length, config.min_new_tokens = None, search.min_length
    if search.no_repeat_ngram_size is not None:
        config.no_repeat_ngram_size = search.no_repeat_ngram_size
    if search.length_penalty is not None:
        if (search.num_beams or 1) == 1:
            raise UserError("length_penalty: only a search with beams has one; num_beams must be above 1")
        config.length_penalty, config.num_beams = search.length_penalty, search.num_beams
    given = {"min_new_tokens": search.min_length, "no_repeat_ngram_size": search.no_repeat_ngram_size}
    given["length_penalty"] = search.length_penalty  # type: ignore[assignment]
    kept = {
        name: value
        for name, value in config.to_diff_dict().items()
        if value is not None
        and name not in _OWN_GENERATION
        and not name.endswith("token_id")
        and given.get(name) is None
    }
    if kept:
        logger.warning(
            "settings that come with the model hold when it writes summaries for validation and test: %s; "
            "min_length, no_repeat_ngram_size and length_penalty set others",
            ", ".join(f"{name}={value}" for name, value in kept.items()),
        )
    least = max(config.min_length or 0, config.min_new_tokens or 0)
    if least >= search.eval_target_length:
        logger.warning(
            "min_length: summaries of at least %d tokens cannot end within %d; 0 sets it off",
            least, search.eval_target_length,
        )  # fmt: skip


def read_format(folder: str, kind: str) -> dict[str, Any]:
    """The text format that lies in a saved folder.

    Raises:
        UserError: it is not such a folder.
    """
    try:
        fields = json.loads((Path(folder) / FORMAT_FILE).read_text(encoding="utf-8"))
        languages = {name: fields.get(name) for name in ("source_language", "target_language")}
        return {name: fields[name] for name in ("source_prefix", "separator", "max_source_length")} | languages
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"'{folder}' is not the {kind} folder of a summarization run: no {FORMAT_FILE} in it") from None


def _write_format(folder: Path, text_format: TextFormat) -> None:
    (folder / FORMAT_FILE).write_text(json.dumps(text_format.describe(), indent=2), encoding="utf-8")


def _policy_config(models: ModelSettings, name: str | None) -> Any:
    known = list(CONFIG_MAPPING.keys())
    if models.model_type is not None and models.model_type not in known:
        raise UserError(f"model_type: no family '{models.model_type}'{nearest(models.model_type, known)}")
    source = models.config_name or name
    if source is None:
        return CONFIG_MAPPING[str(models.model_type)]()
    config = load_pretrained(AutoConfig, source)
    if models.model_type is not None and config.model_type != models.model_type:
        raise UserError(f"model_type: '{source}' is a {config.model_type}, not a {models.model_type}")
    return config


def _fit_vocabulary(model: Any, tokenizer: Any) -> None:
    needed = 1 + max(tokenizer.get_vocab().values())  # ids may have holes
    if needed > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(needed, mean_resizing=False)


def _auto_class(config: Any) -> Any:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
