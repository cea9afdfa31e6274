"""The frozen task LM: probability of each class for (sentence, prompt) pairs, read off its verbalizers.

A task LM is asked the same small question thousands of times, so everything that is not part of the answer is
left out: one position of each text meets the LM head, the head has one column a class, texts are batched with
others of their length, and a left-to-right LM reads each sentence once and keeps its keys and values.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import Cache, DynamicLayer

from common.errors import UserError
from common.language_models.capabilities import (
    DECODER_ONLY,
    MASKED,
    agree,
    appended_tokens,
    capabilities,
    exactly,
    kind_of,
    position_limits,
    require_kind,
    takes,
    without_cache,
)
from common.language_models.pretrained import load_pretrained, load_tokenizer
from common.training.runtime import DTYPES
from common.transfers import upload
from prompt_task.few_shot_data import DatasetSpec, fill_template

logger = logging.getLogger(__name__)

Pair = tuple[str, str]  # (sentence, prompt)
PROBE: tuple[Pair, ...] = (
    ("a short sentence", " and a prompt"),
    ("another one , a little longer", "read"),
    ("one as long , to the word", "read"),
)


def load_task_lm(
    task_lm: str,
    spec: DatasetSpec,
    device: torch.device,
    is_mask_lm: bool | None = None,
    task_lm_dtype: str = "float32",
    scoring_tokens_per_batch: int | None = None,
    sentence_cache_mib: int = 1024,
) -> "TaskLM":
    """Load a masked or left-to-right task LM for one data set.

    Args:
        task_lm: hub id, folder, or ``builtin/...``.
        spec: the data set, for its verbalizers and templates.
        is_mask_lm: which of the two; None reads it off the model's configuration.
        task_lm_dtype: ``float32``, ``bfloat16`` or ``float16``, of the frozen weights.
        scoring_tokens_per_batch: bound on the tokens in one forward pass; None chooses by device.
        sentence_cache_mib: memory for the keys and values that a left-to-right LM keeps of sentences it has read.

    Raises:
        UserError: the model cannot be loaded, lacks its LM head, or a verbalizer is not one token of it.
    """
    config = load_pretrained(AutoConfig, task_lm)
    require_kind(config, task_lm, "task LM", MASKED, DECODER_ONLY)
    if is_mask_lm is None:
        is_mask_lm = looks_masked(config)
    elif not is_mask_lm and looks_masked(config) and not getattr(config, "is_decoder", False):
        # Its classes with a left-to-right head would load, but every token would see those after it.
        raise UserError(
            f"is_mask_lm: '{task_lm}' reads in both directions (a masked LM); false needs a left-to-right LM"
        )
    kind = "masked_template" if is_mask_lm else "left_to_right_template"
    if not getattr(spec, kind):
        raise UserError(f"dataset '{spec.name}': {kind}: needed for the task LM '{task_lm}'")
    tokenizer = load_tokenizer(AutoTokenizer, task_lm)
    auto_class = AutoModelForMaskedLM if is_mask_lm else AutoModelForCausalLM
    model = load_pretrained(auto_class, task_lm, dtype=DTYPES[task_lm_dtype], complete=True)
    return make_task_lm(model, tokenizer, spec, device, is_mask_lm, scoring_tokens_per_batch, sentence_cache_mib)


def make_task_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: DatasetSpec,
    device: torch.device,
    is_mask_lm: bool,
    tokens_per_batch: int | None = None,
    sentence_cache_mib: int = 1024,
) -> "TaskLM":
    """`load_task_lm` for a model and tokenizer in memory. The model is changed: it belongs to the task LM now."""
    budget = tokens_per_batch or (1024 if device.type == "cpu" else 16384)
    if is_mask_lm:
        return MaskedTaskLM(model, tokenizer, spec, device, budget)
    capabilities(model, "the task LM").require_left_to_right(model.config.model_type, "task LM without masks")
    return LeftToRightTaskLM(model, tokenizer, spec, device, budget, sentence_cache_mib)


def looks_masked(config: Any) -> bool:
    """Whether a model's configuration is that of a masked LM."""
    architectures = getattr(config, "architectures", None) or []
    if any("MaskedLM" in name for name in architectures):
        return True
    if any("CausalLM" in name for name in architectures):
        return False
    return kind_of(config) == MASKED


class TaskLM(ABC):
    """What both kinds of task LM share: verbalizers, fitting texts to the context, the narrowed LM head."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: DatasetSpec,
        device: torch.device,
        tokens_per_batch: int,
    ):
        self.tokenizer = tokenizer
        self.spec = spec
        self.device = device
        self.tokens_per_batch = tokens_per_batch
        self.max_tokens = context_length(model, tokenizer)
        self.sentences_cut = 0
        self.verbalizer_ids = verbalizer_ids(tokenizer, spec.verbalizers, spec.name)
        self.model = model.eval().requires_grad_(False)
        self.model.to(device)
        self._readout = _Readout(self.model, self.verbalizer_ids)
        self._equal_lengths = False
        self._choose_ways()

    @property
    def num_classes(self) -> int:
        return len(self.verbalizer_ids)

    def ways(self) -> list[tuple[str, str, str]]:
        """How this task LM reads, as its probe chose: (question, answer, what is done) a row."""
        tokens = self.tokenizer.convert_ids_to_tokens(self.verbalizer_ids)
        words = [f"{word!r} = {token}" for word, token in zip(self.spec.verbalizers, tokens, strict=True)]
        padding, alone = not self._equal_lengths, self.tokens_per_batch == 1
        done = "each text is read alone" if alone else "" if padding else "texts of equal length are read together"
        return [
            ("positions", str(self.max_tokens), "longer texts are cut at the end of their sentence"),
            ("classes", ", ".join(words), ""),
            ("ignores its batch", "no" if alone else "yes", ""),
            ("ignores padding", "yes" if padding else "no", done),
            (
                "head can be narrowed", "yes" if self._readout.narrowed else "no",
                "one column a class" if self._readout.narrowed else "all columns are computed",
            ),
        ]  # fmt: skip

    @abstractmethod
    def fill(self, sentence: str, prompt: str) -> str:
        """The text that the task LM reads, both parts verbatim."""

    @abstractmethod
    def _logits(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """Verbalizer logits of pairs in their order, (N, C)."""

    @torch.no_grad()
    def class_probabilities(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """Softmax over the verbalizer logits of each (sentence, prompt) pair: (N, C), float32, on the CPU.

        Raises:
            UserError: a prompt leaves no room for any sentence in the model's context, or the model's numbers
                overflow.
        """
        if not pairs:
            return torch.empty(0, self.num_classes)
        probabilities = self._logits(pairs).float().softmax(-1).cpu()
        if probabilities.isnan().any():
            raise UserError(f"task_lm_dtype: the task LM's numbers overflow in {self.model.dtype}; float32 may help")
        return probabilities

    def read_ahead(self, sentences: Sequence[str]) -> None:  # noqa: B027 - most task LMs keep nothing
        """Forget what was kept of earlier sentences, and keep what can be kept of these.

        What is kept comes from batches whose make-up reaches the last bits of the numbers. Read ahead, it does not
        depend on what is asked first, so that a run that goes on from a checkpoint sees the same numbers.
        """

    def _encode(self, pairs: Sequence[Pair]) -> tuple[list[list[int]], list[str]]:
        """Token ids of the filled template, and the sentence of each pair, cut at its end where it was too long."""
        texts = [self.fill(sentence, prompt) for sentence, prompt in pairs]
        ids = self._tokenize(texts)
        sentences = [sentence for sentence, _ in pairs]
        for i, row in enumerate(ids):
            if len(row) > self.max_tokens:
                sentences[i], ids[i] = self._shorten(*pairs[i], excess=len(row) - self.max_tokens)
        return ids, sentences

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, verbose=False)["input_ids"]

    def _shorten(self, sentence: str, prompt: str, excess: int) -> tuple[str, list[int]]:
        """Cut the sentence, never the prompt or the mask, until the filled template fits the context."""
        self.sentences_cut += 1
        encoding = self.tokenizer(sentence, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in encoding["offset_mapping"]]
        for keep in range(len(ends) - excess, 0, -1):
            shorter = sentence[: ends[keep - 1]]
            ids = self._tokenize([self.fill(shorter, prompt)])[0]
            if len(ids) <= self.max_tokens:
                return shorter, ids
        raise UserError(f"prompt {prompt!r} leaves no room for a sentence in the task LM's {self.max_tokens} tokens")

    @exactly()
    def _choose_ways(self) -> None:
        """Take the ways that save work and say what the whole model says of each text alone; leave the others.

        Raises:
            UserError: the model cannot read a few short texts.
        """
        try:
            alone = torch.cat([self._logits([pair]) for pair in PROBE])
        except UserError:
            raise
        except Exception as error:  # whatever a model raises that is not made for this
            reason = str(error).strip().split("\n")[0]
            kind = self.model.config.model_type
            raise UserError(f"task_lm: this {kind} cannot read a few short texts: {reason}") from None
        if not self._says(alone):
            self._equal_lengths = True
            logger.warning(
                "this task LM's numbers depend on padding; texts are batched with those of equal length only"
            )
            if not self._says(alone):
                self.tokens_per_batch = 1
                logger.warning("this task LM's numbers depend on the other texts of a batch; each text is read alone")
        self._readout.picks = True
        if not self._says(alone):
            self._readout.picks = False
        self._readout.narrow()
        if not self._says(alone):
            self._readout.widen()
            logger.warning("this task LM's head cannot be narrowed to the verbalizers; all columns are computed")
            if self.model.dtype.itemsize < 4:
                # Logits of 8 or 11 bits are often equal, and each tie would count as a mistake.
                self.model.float()
                logger.warning("task_lm_dtype: so that logits do not tie, this task LM is computed in float32")

    def _says(self, alone: torch.Tensor) -> bool:
        """Whether the probe's texts together have the logits (N, C) that each has alone."""
        try:
            return agree(self._logits(PROBE), alone, self.model.dtype)
        except Exception as error:  # a head that is narrowed may fail in any way
            logger.debug("a way to read fails: %s: %s", type(error).__name__, error)
            return False

    def _batches(self, ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Indices of the texts of each forward pass."""
        return batches_by_length([len(row) for row in ids], self.tokens_per_batch, self._equal_lengths)


class _Readout:
    """Runs a model with its LM head applied to one position a row and, once narrowed, one column a class.

    It works on most architectures of transformers: a hook on the model's body passes on the hidden state of the
    wanted position only, and the output embedding is replaced by its rows for the verbalizers, in float32; who uses it
    tries both and does without what changes the numbers. In BERT and its kin,
    nothing else of the last layer's attention is used either: what follows it there, most of the layer, is computed
    for that position alone.
    """

    def __init__(self, model: PreTrainedModel, columns: list[int]):
        self.model = model
        self.columns = columns
        self.whole = model.get_output_embeddings()
        self.picks = False
        self.narrowed = False
        self._positions: torch.Tensor | None = None
        self._last_output: nn.Module | None = None
        if model.base_model is not model:
            model.base_model.register_forward_hook(self._pick)
            self._last_output = _last_attention_output(model.base_model)
            if self._last_output is not None:
                self._last_output.register_forward_pre_hook(self._pick_early)

    def _pick(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if self.picks and self._positions is not None and not self._picks_early:
            output.last_hidden_state = self._wanted(output.last_hidden_state)
        return output

    def _pick_early(self, module: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> Any:
        if self._positions is not None and self._picks_early:
            return tuple(self._wanted(states) for states in inputs)
        return inputs

    @property
    def _picks_early(self) -> bool:
        return self.picks and self.narrowed and self._last_output is not None

    def _wanted(self, states: torch.Tensor) -> torch.Tensor:
        """States (N, T, d) at the wanted position of each row, (N, 1, d)."""
        assert self._positions is not None
        return states[torch.arange(states.shape[0], device=states.device), self._positions].unsqueeze(1)

    def __call__(self, positions: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Verbalizer logits (N, C) at `positions` (N,) of the input."""
        self._positions = positions
        try:
            logits = self.model(**inputs).logits
        finally:
            self._positions = None
        if logits.shape[1] > 1:  # a model without a separate body computed all positions
            rows = torch.arange(logits.shape[0], device=logits.device)
            logits = logits[rows, positions].unsqueeze(1)
        return logits[:, 0] if self.narrowed else logits[:, 0, self.columns]

    def narrow(self) -> None:
        head = self.whole
        if not isinstance(head, nn.Linear):
            return
        narrow = _Float32Linear(head.in_features, len(self.columns), bias=head.bias is not None)
        narrow = narrow.to(head.weight.device).requires_grad_(False)
        narrow.weight.copy_(head.weight[self.columns])
        if head.bias is not None:
            narrow.bias.copy_(head.bias[self.columns])
        self.model.set_output_embeddings(narrow)
        self.narrowed = True

    def widen(self) -> None:
        self.model.set_output_embeddings(self.whole)
        self.narrowed = False


class _Float32Linear(nn.Linear):
    """A layer that is computed in float32: logits of 8 or 11 bits are often equal, and a tie is a mistake."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states.float())


def _last_attention_output(body: Any) -> nn.Module | None:
    """What comes behind the heads of the last layer, output(states of the heads, input of the layer), in BERT's kin."""
    layers = getattr(getattr(body, "encoder", None), "layer", None)
    in_chunks = bool(getattr(body.config, "chunk_size_feed_forward", None))
    if not isinstance(layers, nn.ModuleList) or in_chunks:
        return None
    attention = getattr(layers[-1], "attention", None)
    output = getattr(attention, "output", None)
    has_parts = isinstance(getattr(attention, "self", None), nn.Module) and hasattr(layers[-1], "feed_forward_chunk")
    return output if has_parts and isinstance(output, nn.Module) else None


class MaskedTaskLM(TaskLM):
    """A masked LM: the class is read at the template's mask."""

    def fill(self, sentence: str, prompt: str) -> str:
        return fill_template(self.spec.masked_template, sentence, prompt, self._mask_token)

    def ways(self) -> list[tuple[str, str, str]]:
        return [("mask token", self._mask_token, "classes are read there"), *super().ways()]

    @property
    def _mask_token(self) -> str:
        if self.tokenizer.mask_token is None:
            raise UserError(f"the task LM's tokenizer '{self.tokenizer.name_or_path}' has no mask token")
        return str(self.tokenizer.mask_token)

    def _mask_position(self, ids: list[int], sentence: str, prompt: str) -> int:
        # A sentence or a prompt may itself spell the mask token; the template's own is known by its rank.
        before = self.spec.masked_template.split("<mask>")[0]
        rank = fill_template(before, sentence, prompt, None).count(self._mask_token)
        mask_id = self.tokenizer.mask_token_id
        found = [i for i, token in enumerate(ids) if token == mask_id]
        if rank >= len(found):
            raise UserError(f"the task LM's tokenizer does not see the mask in {self.fill(sentence, prompt)!r}")
        return found[rank]

    def _logits(self, pairs: Sequence[Pair]) -> torch.Tensor:
        ids, sentences = self._encode(pairs)
        logits = torch.empty(len(pairs), self.num_classes, device=self.device)
        for rows in self._batches(ids):
            batch, mask = pad_right([ids[i] for i in rows], self.tokenizer.pad_token_id or 0, self.device)
            positions = [self._mask_position(ids[i], sentences[i], pairs[i][1]) for i in rows]
            at = upload(torch.tensor(positions), self.device)
            logits[rows] = self._readout(at, input_ids=batch, attention_mask=mask).float()
        return logits


class _PastLayer(DynamicLayer):
    """One layer's keys and values of tokens read before, with room behind them: adding the new ones moves nothing."""

    def __init__(self, buffer: torch.Tensor, length: int):
        super().__init__()
        self.buffer, self.length = buffer, length  # (2, N, heads, length + room, d)
        self.keys, self.values = buffer[:, :, :, :length]
        self.dtype, self.device, self.is_initialized = buffer.dtype, buffer.device, True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.buffer[0, :, :, self.length :] = key_states
        self.buffer[1, :, :, self.length :] = value_states
        self.keys, self.values = self.buffer
        return self.keys, self.values


class LeftToRightTaskLM(TaskLM):
    """A left-to-right LM: the class is the next token after the filled template.

    The text up to the prompt is read once a sentence; its keys and values serve every prompt. Where joint
    tokenization of sentence and prompt differs from that of the sentence alone, only the tokens that both have
    in common are taken from the cache, so that probabilities are those of the whole text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: DatasetSpec,
        device: torch.device,
        tokens_per_batch: int,
        sentence_cache_mib: int,
    ):
        self._states: dict[tuple[int, ...], torch.Tensor] = {}  # prefix ids -> (layers, 2, heads, T, d)
        self._cache_bytes = self._free_bytes = sentence_cache_mib * 2**20
        self._takes_positions = takes(model.base_model, "position_ids")
        self._appended = appended_tokens(tokenizer)
        self.reuses_sentences = False
        super().__init__(model, tokenizer, spec, device, tokens_per_batch)
        with exactly():
            self.reuses_sentences = self._reuse_is_exact()
        if not self.reuses_sentences:
            logger.warning("this task LM's keys and values cannot be reused between prompts; every text is read whole")

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        # The class follows the text, not the end token that some tokenizers put behind it.
        ids = super()._tokenize(texts)
        return [row[: len(row) - self._appended] for row in ids]

    def fill(self, sentence: str, prompt: str) -> str:
        return fill_template(self.spec.left_to_right_template, sentence, prompt, None)

    def ways(self) -> list[tuple[str, str, str]]:
        kept = "a sentence is read once for all prompts" if self.reuses_sentences else "each text is read whole"
        appended = "left out before a class is read" if self._appended else ""
        return [
            ("tokens behind a text", str(self._appended), appended),
            *super().ways(),
            ("memory can be kept", "yes" if self.reuses_sentences else "no", kept),
        ]

    @torch.no_grad()
    def read_ahead(self, sentences: Sequence[str]) -> None:
        self._states.clear()
        self._free_bytes = self._cache_bytes
        if not self.reuses_sentences or not self._cache_bytes:
            return
        distinct = {tuple(ids) for ids in self._tokenize([self._prefix(sentence) for sentence in sentences])}
        prefixes = sorted((p for p in distinct if 0 < len(p) <= self.max_tokens), key=lambda p: (len(p), p))
        for rows in batches_by_length([len(prefix) for prefix in prefixes], self.tokens_per_batch):
            self._read_prefixes([prefixes[i] for i in rows])

    def _prefix(self, sentence: str) -> str:
        """The text before the prompt. The blank between them belongs to the prompt's first token in most tokenizers."""
        before = self.spec.left_to_right_template.split("{prompt}")[0].rstrip(" ")
        return fill_template(before, sentence, "", None)

    def _logits(self, pairs: Sequence[Pair]) -> torch.Tensor:
        ids, sentences = self._encode(pairs)
        if not self.reuses_sentences:
            return self._read_whole(ids)
        distinct = list(dict.fromkeys(sentences))
        prefix_of = dict(zip(distinct, self._tokenize([self._prefix(s) for s in distinct]), strict=True))
        prefixes = [tuple(prefix_of[sentence]) for sentence in sentences]
        shared = [common_length(p, row) for p, row in zip(prefixes, ids, strict=True)]
        logits = torch.empty(len(pairs), self.num_classes, device=self.device)
        for group in self._sentence_groups(prefixes):
            states = self._read_prefixes(sorted({prefixes[i] for i in group}, key=lambda p: (len(p), p)))
            suffix_lengths = [len(ids[i]) - shared[i] for i in group]
            # Rows are bounded by the keys and values they drag along too, eight tokens of which count as one read.
            weights = [new + shared[i] // 8 for new, i in zip(suffix_lengths, group, strict=True)]
            for picked in batches_by_length(weights, self.tokens_per_batch):
                rows = [group[j] for j in picked]
                logits[rows] = self._read_suffixes(
                    [states[prefixes[i]] for i in rows], [shared[i] for i in rows], [ids[i] for i in rows]
                )
        return logits

    def _read_whole(self, ids: list[list[int]]) -> torch.Tensor:
        logits = torch.empty(len(ids), self.num_classes, device=self.device)
        for rows in self._batches(ids):
            batch, mask = pad_right([ids[i] for i in rows], self.tokenizer.pad_token_id or 0, self.device)
            last = mask.sum(-1) - 1
            inputs = {"input_ids": batch, "attention_mask": mask}
            logits[rows] = self._readout(last, **inputs, **without_cache(self.model)).float()
        return logits

    def _sentence_groups(self, prefixes: list[tuple[int, ...]]) -> Iterator[list[int]]:
        """Pair indices by sentence, as many sentences a group as are read in one pass of new sentences."""
        pairs_of: dict[tuple[int, ...], list[int]] = {}
        for i, prefix in enumerate(prefixes):
            pairs_of.setdefault(prefix, []).append(i)
        order = sorted(pairs_of, key=lambda p: (len(p), p))
        for rows in batches_by_length([max(len(p), 1) for p in order], self.tokens_per_batch):
            yield [i for r in rows for i in pairs_of[order[r]]]

    def _read_prefixes(self, prefixes: list[tuple[int, ...]]) -> dict[tuple[int, ...], torch.Tensor]:
        """Keys and values of each prefix; those that fit the memory set aside are kept for the next call."""
        states = {prefix: self._states[prefix] for prefix in prefixes if prefix in self._states}
        missing = [prefix for prefix in prefixes if prefix not in states and prefix]
        if missing:
            batch, mask = pad_right([list(p) for p in missing], self.tokenizer.pad_token_id or 0, self.device)
            cache = DynamicCache()  # whole also where the model attends to a window only: a suffix may begin anywhere
            self.model.base_model(input_ids=batch, attention_mask=mask, past_key_values=cache, use_cache=True)
            # (layers, 2, N, heads, T, d)
            stacked = torch.stack([torch.stack([keys, values]) for keys, values, *_ in cache])
            for row, prefix in enumerate(missing):
                state = stacked[:, :, row, :, : len(prefix)].clone()
                states[prefix] = state
                size = state.numel() * state.element_size()
                if size <= self._free_bytes:
                    self._free_bytes -= size
                    self._states[prefix] = state
        if () in prefixes:
            some = next(iter(states.values()), None)
            shape = some.shape if some is not None else (0, 2, 0, 0, 0)
            states[()] = torch.empty(*shape[:3], 0, shape[4], device=self.device)
        return states

    def _read_suffixes(self, states: list[torch.Tensor], shared: list[int], ids: list[list[int]]) -> torch.Tensor:
        """Verbalizer logits (N, C) of texts whose first `shared` tokens are read from the cached states."""
        longest = max(shared)
        if longest == 0:
            return self._read_whole(ids)
        example = states[shared.index(longest)]  # a state of no tokens at all may lack the other dimensions
        layers, _, heads, _, width = example.shape
        total = longest + max(len(row) - length for row, length in zip(ids, shared, strict=True))
        past = torch.empty(layers, 2, len(ids), heads, total, width, dtype=example.dtype, device=self.device)
        for row, (state, length) in enumerate(zip(states, shared, strict=True)):
            # On the right: models that attend to a window count its tokens by place.
            past[:, :, row, :, : longest - length] = 0
            if length:
                past[:, :, row, :, longest - length : longest] = state[:, :, :, :length]
        batch, new_mask = pad_right(
            [row[length:] for row, length in zip(ids, shared, strict=True)],
            self.tokenizer.pad_token_id or 0,
            self.device,
        )
        lengths = upload(torch.tensor(shared), self.device).unsqueeze(1)
        past_mask = (torch.arange(longest, device=self.device) >= longest - lengths).to(new_mask.dtype)
        inputs: dict[str, Any] = {
            "input_ids": batch,
            "attention_mask": torch.cat([past_mask, new_mask], 1),
            "past_key_values": Cache(layers=[_PastLayer(layer, longest) for layer in past]),
            "use_cache": True,
        }
        if self._takes_positions:
            inputs["position_ids"] = lengths + torch.arange(batch.shape[1], device=self.device)
        return self._readout(new_mask.sum(-1) - 1, **inputs).float()

    def _reuse_is_exact(self) -> bool:
        """Whether this model gives the same logits from cached sentences; recurrent ones, for example, do not."""
        whole = self._logits(PROBE)
        self.reuses_sentences = True
        try:
            cached = self._logits(PROBE)
        except Exception as error:  # a model that knows no such cache may raise anything
            logger.debug("reuse of keys and values failed: %s", error)
            return False
        return agree(cached, whole, self.model.dtype)


def verbalizer_ids(tokenizer: PreTrainedTokenizerBase, verbalizers: Sequence[str], dataset: str) -> list[int]:
    """The token of each verbalizer, in the order of the labels.

    Raises:
        UserError: a verbalizer is not exactly one known token, or two classes share one.
    """
    found: list[int] = []
    for word in verbalizers:
        ids = tokenizer.encode(word, add_special_tokens=False)
        if len(ids) != 1:  # tokenizers that put a blank of their own before a text need a word before it
            context = tokenizer.encode("a", add_special_tokens=False)
            joint = tokenizer.encode("a" + word, add_special_tokens=False)
            ids = joint[len(context) :] if joint[: len(context)] == context else ids
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            pieces = tokenizer.convert_ids_to_tokens(ids)
            raise UserError(
                f"dataset {dataset}: the verbalizer {word!r} is not one token of the task LM "
                f"'{tokenizer.name_or_path}' (it reads {pieces}); choose verbalizers that are"
            )
        if ids[0] in found:
            other = verbalizers[found.index(ids[0])]
            raise UserError(f"dataset {dataset}: the verbalizers {other!r} and {word!r} are the same token")
        found.append(ids[0])
    return found


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the model can read at once."""
    return int(min(tokenizer.model_max_length, position_limits(model)[0] or tokenizer.model_max_length))


def common_length(prefix: Sequence[int], ids: Sequence[int]) -> int:
    """Length of the common beginning of two token sequences, short of the last token of `ids`."""
    length = 0
    for a, b in zip(prefix, ids[:-1], strict=False):
        if a != b:
            break
        length += 1
    return length


def batches_by_length(lengths: Sequence[int], tokens_per_batch: int, equal: bool = False) -> Iterator[list[int]]:
    """Indices in order of length, cut so that rows x longest stays within the budget (one row at least).

    With `equal`, also where the length changes.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and ((len(batch) + 1) * lengths[i] > tokens_per_batch or (equal and lengths[i] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def pad_right(rows: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (N, T), of rows padded to the longest."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return upload(ids, device), upload(mask, device)
