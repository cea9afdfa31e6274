"""What a loaded language model can do: asked once, in one place for all tasks, by looking at it or by a few tokens.

Nothing here goes by a model's name. Configurations nest, lack fields or mean something else by them, and a family's
memory or padding may work in a way of its own; what a model answers to a few tokens is what it will answer in training.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutput

from common.errors import UserError
from common.language_models.evaluation_mode import evaluation_mode

logger = logging.getLogger(__name__)

DECODER_ONLY, ENCODER_DECODER, MASKED, ENCODER_ONLY = "decoder-only", "encoder-decoder", "masked", "encoder-only"

# Two texts of different length and what follows both, as places in the list of tokens that a probe may use.
_LONG, _SHORT, _NEXT = (0, 1, 2, 3, 4), (5, 6, 7), (8, 9)


@dataclass(frozen=True)
class Capabilities:
    """The answer of one model, with a language-model head or without.

    Attributes:
        kind: `DECODER_ONLY` or `ENCODER_DECODER`: what can write.
        width: of the states that its body gives, which need not be that of its word embeddings or of a configuration.
        vocabulary: rows of its head; without one, `width`.
        source_positions, target_positions: how many tokens it can read, and an encoder-decoder write; None: no limit is
            known. The same number for a decoder-only model.
        cache_by_rows: what it has read can be kept, chosen by rows and read on from, with the numbers of a whole pass.
        ignores_padding: numbers do not change with padding that the mask hides: before a text for a decoder-only model,
            behind a source for an encoder-decoder.
        left_to_right: no token changes the numbers before it, nor how many there are.
        looks_ahead: what a token is changes the numbers before it.
    """

    kind: str
    width: int
    vocabulary: int
    source_positions: int | None
    target_positions: int | None
    takes_positions: bool
    keeps_logits: bool
    cache_by_rows: bool
    ignores_padding: bool
    left_to_right: bool
    looks_ahead: bool

    def require_left_to_right(self, model_type: str, role: str) -> None:
        """Refuse a model for a role in which a token may not depend on what is written after it.

        Raises:
            UserError: it does.
        """
        if not self.left_to_right:
            how = "reads in both directions" if self.looks_ahead else "gives other numbers where more tokens follow"
            raise UserError(f"a {model_type} {how}; a {role} must read left to right")


def kind_of(config: PreTrainedConfig) -> str:
    """What a configuration says that its model is."""
    if config.is_encoder_decoder:
        return ENCODER_DECODER
    # transformers lists BERT and its kin as causal too, as the decoders nobody uses them as.
    writes = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not writes:
        return MASKED
    return DECODER_ONLY if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else ENCODER_ONLY


def require_kind(config: PreTrainedConfig, name: str, role: str, *allowed: str) -> str:
    """The kind of a model that is to be loaded for a role, before its weights are.

    Raises:
        UserError: the role needs another.
    """
    kind = kind_of(config)
    if kind not in allowed:
        raise UserError(f"'{name}' ({config.model_type}) is {kind}; a {role} must be {' or '.join(allowed)}")
    return kind


def decoder_start_id(config: PreTrainedConfig) -> int | None:
    """The token that an encoder-decoder's decoder reads first, as far as the configuration says it."""
    start = getattr(config, "decoder_start_token_id", None)
    if start is None and (decoder := getattr(config, "decoder", None)) is not None:
        start = getattr(decoder, "bos_token_id", None)
    return start


def takes(model: nn.Module, name: str) -> bool:
    """Whether the model's forward names an argument so."""
    return name in inspect.signature(model.forward).parameters


def without_cache(model: nn.Module) -> dict[str, bool]:
    """The argument that keeps a model from building a cache, where it knows one."""
    return {"use_cache": False} if takes(model, "use_cache") else {}


@dataclass
class EncoderStates(BaseModelOutput):
    """Encoder states (B, S, d) as a decoder takes them, without what some encoders give beside them and no decoder
    needs: decoders of experts look for the choices that the encoder's made."""

    router_logits: Any = None
    router_probs: Any = None


@contextmanager
def exactly() -> Iterator[None]:
    """Where two ways to compute are compared: no gradient, and float32 products whatever `matmul_precision` says."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@exactly()
def capabilities(lm: PreTrainedModel, name: str = "the model") -> Capabilities:
    """Ask a model, on whatever device it is.

    Args:
        lm: decoder-only or encoder-decoder, with its language-model head or without.
        name: what an error calls it.

    Raises:
        UserError: it does not read a few tokens, or says nothing about each.
    """
    kind = ENCODER_DECODER if lm.config.is_encoder_decoder else DECODER_ONLY
    with _asked(lm, name):
        probe: _Probe = (_EncoderDecoder if kind == ENCODER_DECODER else _DecoderOnly)(lm)
        whole = probe.whole()
        vocabulary = whole[0].shape[-1]
        width = states_width(lm)
        left_to_right = probe.left_to_right(whole)
        looks_ahead = not left_to_right and probe.looks_ahead()
        cache_by_rows = _holds(lambda: probe.reads_on_from_rows(whole))
        ignores_padding = _holds(lambda: probe.ignores_padding(whole))
    source, target = position_limits(lm)
    return Capabilities(
        kind=kind,
        width=width,
        vocabulary=vocabulary,
        source_positions=source,
        target_positions=target,
        takes_positions=takes(lm, "position_ids"),
        keeps_logits=takes(lm, "logits_to_keep"),
        cache_by_rows=cache_by_rows,
        ignores_padding=ignores_padding,
        left_to_right=left_to_right,
        looks_ahead=looks_ahead,
    )


@exactly()
def states_width(model: PreTrainedModel, name: str = "the model") -> int:
    """Width of the states that a model's body gives, with or without a head.

    Raises:
        UserError: it gives none.
    """
    ids = probe_ids(model)[:, :3]
    body = model.base_model
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    with _asked(model, name):
        given = body(**inputs, **without_cache(body))
        states = getattr(given, "last_hidden_state", None)
        return int(states.shape[-1]) if states is not None else _width_before_head(model, inputs)


@contextmanager
def states_before_head(lm: PreTrainedModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, the LM's head reads `change` of the states (N, T, d) that are handed to it.

    What the model does before its head, such as a projection, and behind it, such as a soft cap, a scale or a bias,
    stays its own.
    """
    head: Any = lm.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, given: (change(given[0]), *given[1:]))
    try:
        yield
    finally:
        handle.remove()


@exactly()
def head_width(lm: PreTrainedModel, name: str = "the model") -> int:
    """Width of the states that a decoder-only LM's head reads, which a projection may have made another.

    Raises:
        UserError: it makes its logits of no states that are handed to one output embedding, each alone.
    """
    ids = probe_ids(lm)[:, :5]
    widths: list[int] = []

    def last(states: Tensor) -> Tensor:
        widths.append(states.shape[-1])
        return states[:, -1:]

    with _asked(lm, name):
        whole = lm(input_ids=ids, **without_cache(lm)).logits
        if isinstance(lm.get_output_embeddings(), nn.Module):
            with states_before_head(lm, last):
                picked = lm(input_ids=ids, **without_cache(lm)).logits
            if len(widths) == 1 and agree(picked, whole[:, -1:]):
                return widths[0]
    raise UserError(f"{name} ({lm.config.model_type}) has no head that reads one state a token")


def rows_with_token(tokenizer: PreTrainedTokenizerBase, rows: int) -> Tensor:
    """Which of a head's first `rows` rows belong to a token, (V,) bool, up to the last that does."""
    has_token = torch.isin(torch.arange(rows), torch.tensor(sorted(tokenizer.get_vocab().values())))
    return has_token[: int(has_token.nonzero().max()) + 1]


def appended_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a tokenizer puts behind every text, such as an end token."""
    whole, text = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = [i for i in range(len(whole)) if whole[i : i + len(text)] == text]
    return len(whole) - len(text) - starts[0] if starts else 0


def position_limits(model: PreTrainedModel) -> tuple[int | None, int | None]:
    """How many tokens of a source, and of a target, a model has positions for; None: no limit is known.

    By what its configuration says, under the names there are, and by the tables of positions that it holds.
    """
    config = model.config.get_text_config() if not model.config.is_encoder_decoder else model.config
    names = {
        "encoder": ("max_position_embeddings", "max_encoder_position_embeddings", "max_source_positions"),
        "decoder": ("max_position_embeddings", "max_decoder_position_embeddings", "max_target_positions"),
    }
    sides = {side: [getattr(config, name, None) for name in names[side]] for side in names}
    body: Any = model
    if not model.config.is_encoder_decoder and isinstance(model.get_decoder(), nn.Module):
        body = model.get_decoder()  # what reads images beside it has positions of its own
    for path, module in body.named_modules():
        if isinstance(module, nn.Embedding) and any(mark in path.split(".")[-1] for mark in ("position", "wpe")):
            # Some tables begin with rows that no token reads.
            unread = getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
            for side in [side for side in sides if side in path.split(".")] or list(sides):
                sides[side].append(module.num_embeddings - unread)
    source, target = (min((n for n in found if n and n > 0), default=None) for found in sides.values())
    if not model.config.is_encoder_decoder:
        source = target = min((n for n in (source, target) if n), default=None)
    return source, target


def check_trainable(model: PreTrainedModel, name: str) -> None:
    """Read a few tokens as training does, where some families ask for more than in evaluation.

    Raises:
        UserError: the model cannot.
    """
    ids = probe_ids(model)[:, :7]
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices), _asked(model, name):
        model.train()
        model(**inputs, **without_cache(model))


def can_read(model: PreTrainedModel, tokens: int) -> bool:
    """Whether the model reads one text of so many tokens: for limits that nothing tells of."""
    ids = probe_ids(model)[:, :1].expand(1, tokens)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids[:, :1]} if model.config.is_encoder_decoder else {})
    inputs |= {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}  # type: ignore[dict-item]
    with torch.no_grad(), _asked(model, "the model"):
        return _holds(lambda: bool(model(**inputs, **without_cache(model)) is not None))


def pack_left(ids: Tensor, mask: Tensor) -> Tensor:
    """Token ids (N, T') with the real tokens of each row at its start, in their order, and anything behind them.

    No token of a left-to-right model sees what stands behind it: so its numbers need neither a mask nor positions.
    """
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[:, : int(mask.sum(-1).max())]
    return ids.gather(1, order)


def equal_lengths(mask: Tensor) -> Iterator[Tensor]:
    """Rows of a mask (N, T) in groups of as many real tokens: what a model that padding changes can read at once."""
    lengths = mask.sum(-1)
    for length in lengths.unique():
        yield (lengths == length).nonzero().squeeze(1)


def encode_alone(encoder: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Encoder states (B, S, d) of sources padded at their end, each as if it had no padding; 0 at the padding."""
    rows, parts = [], []
    for group in equal_lengths(mask):
        real = mask[group]
        width = int(real[0].sum())
        states = encoder(input_ids=ids[group][:, :width], attention_mask=real[:, :width].long()).last_hidden_state
        parts.append(nn.functional.pad(states, (0, 0, 0, ids.shape[1] - width)))
        rows.append(group)
    return torch.cat(parts)[torch.cat(rows).argsort()]


def probe_ids(model: PreTrainedModel) -> Tensor:
    """Ten tokens (1, 10), different if there are so many, that have no meaning of their own in the configuration."""
    config = model.config.get_text_config()
    special = {getattr(config, f"{n}_token_id", None) for n in ("pad", "eos", "bos", "decoder_start", "sep", "cls")}
    flat = {i for value in special for i in (value if isinstance(value, (list, tuple)) else [value])}
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    free = [i for i in range(rows) if i not in flat][-len(_LONG + _SHORT + _NEXT) :] or [0]
    wanted = len(_LONG + _SHORT + _NEXT)
    return torch.tensor([(free * wanted)[:wanted]], device=model.device)


def agree(one: Tensor, other: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether two ways give the same numbers but for the rounding of `dtype`, by default their own."""
    if one.shape != other.shape:
        return False
    tolerance = 1e-3 if (dtype or other.dtype) == torch.float32 else 2e-2
    return torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance * float(other.abs().max()))


def _width_before_head(model: PreTrainedModel, inputs: dict[str, Any]) -> int:
    """Of a model that is one with its head, such as T5's."""
    widths = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[-1]))
    try:
        model(**inputs, **without_cache(model))
    finally:
        handle.remove()
    return int(widths[-1])


@contextmanager
def _asked(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model in evaluation mode; whatever it raises as one line."""
    try:
        with evaluation_mode(model):
            yield
    except UserError:
        raise
    except Exception as error:  # whatever a model raises that is not made for this
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{name} ({model.config.model_type}) cannot read a few tokens: {reason}") from None


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except Exception as error:  # a model that knows no such thing may raise anything
        logger.debug("asked a model: %s: %s", type(error).__name__, error)
        return False


def _said(output: Any) -> Tensor:
    """Logits of a model with a head, else states."""
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


class _Probe:
    """Two texts and what follows them, read in one way and another."""

    def __init__(self, lm: PreTrainedModel):
        self.lm = lm
        ids = probe_ids(lm)[0]
        self.texts = [ids[list(_LONG)], ids[list(_SHORT)]]
        self.next = ids[list(_NEXT)]  # (2,)

    def whole(self) -> list[Tensor]:
        """Logits (T, V) of each text with what follows, alone and without a cache."""
        raise NotImplementedError

    def left_to_right(self, whole: list[Tensor]) -> bool:
        raise NotImplementedError

    def looks_ahead(self) -> bool:
        raise NotImplementedError

    def ignores_padding(self, whole: list[Tensor]) -> bool:
        raise NotImplementedError

    def reads_on_from_rows(self, whole: list[Tensor]) -> bool:
        raise NotImplementedError


class _DecoderOnly(_Probe):
    def whole(self) -> list[Tensor]:
        return [self._read(torch.cat([text, self.next])[None])[0] for text in self.texts]

    def left_to_right(self, whole: list[Tensor]) -> bool:
        holding = self.texts[0].clone()
        holding[2] = getattr(self.lm.config.get_text_config(), "pad_token_id", None) or 0  # a token like any other
        return all(
            agree(self._read(text[None])[0], logits[: len(text)])
            for text, logits in zip(self.texts, whole, strict=True)
        ) and agree(self._read(holding[None, :4]), self._read(holding[None])[:, :4])

    def looks_ahead(self) -> bool:
        text, other = self.texts[0][None], self.texts[0][None].clone()
        other[:, -1] = self.next[0]
        return not agree(self._read(other)[:, :-1], self._read(text)[:, :-1])

    def ignores_padding(self, whole: list[Tensor]) -> bool:
        ids, mask = self._padded()
        logits = self._read(ids, mask)
        return all(
            agree(row[-n:], alone[:n]) for row, alone, n in zip(logits, whole, map(len, self.texts), strict=True)
        )

    def reads_on_from_rows(self, whole: list[Tensor]) -> bool:
        ids, mask = self._padded()
        if not self.ignores_padding(whole):
            ids, mask, whole = ids[:1], mask[:1], whole[:1]
        cache = self.lm(**self._inputs(ids, mask), use_cache=True).past_key_values
        order = [*reversed(range(len(ids))), 0]
        for token in self.next:
            rows = torch.tensor(order, device=ids.device)
            cache.batch_select_indices(rows)
            mask = torch.cat([mask[rows], mask.new_ones(len(rows), 1)], 1)
            whole = [whole[row] for row in order]
            inputs = self._inputs(token.expand(len(rows), 1), mask)
            logits = _said(self.lm(**inputs, past_key_values=cache, use_cache=True))[:, -1]
            lengths = mask.sum(-1)
            if not all(agree(found, alone[n - 1]) for found, alone, n in zip(logits, whole, lengths, strict=True)):
                return False
            order = [*reversed(range(len(rows)))][:2]
        return True

    def _padded(self) -> tuple[Tensor, Tensor]:
        missing = len(self.texts[0]) - len(self.texts[1])
        filling = self.texts[0][:missing]  # what a mask hides may be anything
        ids = torch.stack([self.texts[0], torch.cat([filling, self.texts[1]])])
        mask = torch.ones_like(ids)
        mask[1, :missing] = 0
        return ids, mask

    def _inputs(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        inputs = {"input_ids": ids, "attention_mask": mask}
        if takes(self.lm, "position_ids"):
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return inputs

    def _read(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        inputs = {"input_ids": ids} if mask is None else self._inputs(ids, mask)
        return _said(self.lm(**inputs, **without_cache(self.lm)))


class _EncoderDecoder(_Probe):
    def __init__(self, lm: PreTrainedModel):
        super().__init__(lm)
        start = decoder_start_id(lm.config)  # it may be the padding token, which some families give no position
        first = self.next if start is None else self.next.new_tensor([start])
        self.written = torch.cat([first, self.texts[1]])  # what the decoder reads

    def whole(self) -> list[Tensor]:
        encoder, found = self.lm.get_encoder(), []
        for text in self.texts:
            inputs = {"input_ids": text[None], "decoder_input_ids": self.written[None]}
            found.append(_said(self.lm(**inputs, **without_cache(self.lm)))[0])
            mask = torch.ones_like(text[None])
            states = encoder(input_ids=text[None], attention_mask=mask).last_hidden_state
            if not agree(self._decoded(states, mask)[0], found[-1]):
                raise ValueError("it writes something else from the states of its encoder than from the source")
        return found

    def left_to_right(self, whole: list[Tensor]) -> bool:
        source, first = self.texts[0][None], self.written[None, :2]
        logits = _said(self.lm(input_ids=source, decoder_input_ids=first, **without_cache(self.lm)))[0]
        return agree(logits, whole[0][:2])

    def looks_ahead(self) -> bool:
        source, other = self.texts[0][None], self.written[None].clone()
        other[:, -1] = source[:, 0]
        one, two = (
            _said(self.lm(input_ids=source, decoder_input_ids=written, **without_cache(self.lm)))[:, :-1]
            for written in (self.written[None], other)
        )
        return not agree(two, one)

    def ignores_padding(self, whole: list[Tensor]) -> bool:
        ids, mask = self._padded()
        states = self.lm.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = self._decoded(states, mask)
        return all(agree(row, alone) for row, alone in zip(logits, whole, strict=True))

    def reads_on_from_rows(self, whole: list[Tensor]) -> bool:
        states, mask = self._states()
        written = self.written[None].expand(2, -1)
        cache = self._output(states, mask, written[:, :1], use_cache=True).past_key_values
        for position in range(1, written.shape[1]):
            rows = torch.tensor([1, 0], device=states.device)
            cache.self_attention_cache.batch_select_indices(rows)
            cache.cross_attention_cache.batch_select_indices(rows)
            states, mask, whole = states[rows], mask[rows], whole[::-1]
            tokens = written[:, position : position + 1]
            logits = _said(self._output(states, mask, tokens, past_key_values=cache, use_cache=True))[:, -1]
            if not all(agree(found, alone[position]) for found, alone in zip(logits, whole, strict=True)):
                return False
        return True

    def _states(self) -> tuple[Tensor, Tensor]:
        """Encoder states of both texts, each read alone, and their mask."""
        encoder = self.lm.get_encoder()
        alone = [encoder(input_ids=t[None], attention_mask=torch.ones_like(t[None])) for t in self.texts]
        _, mask = self._padded()
        return nn.utils.rnn.pad_sequence([a.last_hidden_state[0] for a in alone], batch_first=True), mask

    def _padded(self) -> tuple[Tensor, Tensor]:
        ids = nn.utils.rnn.pad_sequence(self.texts, batch_first=True, padding_value=int(self.texts[0][0]))
        mask = torch.ones_like(ids)
        mask[1, len(self.texts[1]) :] = 0
        return ids, mask

    def _decoded(self, states: Tensor, mask: Tensor) -> Tensor:
        written = self.written[None].expand(len(states), -1)
        return _said(self._output(states, mask, written, **without_cache(self.lm)))

    def _output(self, states: Tensor, mask: Tensor, written: Tensor, **more: Any) -> Any:
        inputs = {"encoder_outputs": EncoderStates(states), "attention_mask": mask, "decoder_input_ids": written}
        return self.lm(**inputs, **more)
