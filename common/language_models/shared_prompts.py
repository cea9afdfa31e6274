"""Several replies to one prompt, of which the prompt is read once.

All real tokens of prompts and replies stand in one row without padding, so that every matrix product has all of them
and nothing else; attention alone knows what belongs together: a prompt's tokens see those before them, a reply's see
their own prompt and what stands before them in the reply. Models whose attention cannot be put in place that way go on
from the keys and values that the prompts left, one pass for the prompts and one for the replies.

Nothing is approximated, and gradients reach the prompt through all its replies. The work grows linearly in the tokens
of the replies.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from common.language_models.capabilities import exactly
from common.language_models.evaluation_mode import evaluation_mode
from common.transfers import upload

logger = logging.getLogger(__name__)

SHARED_PROMPTS = "shared_prompts"

Reader = Callable[[PreTrainedModel, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(backbone, prompt_ids, prompt_mask, reply_ids, reply_mask, owners) -> what the backbone says of the M real tokens of
the replies: of a model with an LM head the logits of each, (M, V), else the hidden states that have read it, (M, d).

Prompts and their mask are (B, P), padded on either side; replies (N, R), padded on the right; ``owners`` (N,) names the
prompt of each."""

_PROBE_PROMPTS = ((1, 2, 3), (3, 1, 4, 1, 5, 9, 2))
_PROBE_REPLIES = ((2, 7, 1, 8), (6, 5), (1, 6, 1))
_PROBE_OWNERS = (0, 1, 1)
_PROBE_TOLERANCE = 1e-4  # of the largest number, in float32


def read_in_one_row(
    backbone: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    reply_ids: Tensor,
    reply_mask: Tensor,
    owners: Tensor,
) -> Tensor:
    """See `Reader`; all tokens in one row."""
    layout = Layout(prompt_mask.sum(-1), reply_mask.sum(-1), owners, prompt_ids.device)
    ids = torch.cat([real_ones(prompt_ids, prompt_mask), real_ones(reply_ids, reply_mask)]).unsqueeze(0)
    wanted = layout.before if _has_lm_head(backbone) else layout.of_replies
    fewer = _has_lm_head(backbone) and "logits_to_keep" in inspect.signature(backbone.forward).parameters
    outputs = backbone(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),  # else transformers makes a mask of the sequences that it guesses
        position_ids=layout.positions.unsqueeze(0),
        use_cache=False,
        shared_prompts=layout,
        **({"logits_to_keep": wanted} if fewer else {}),
    )
    output = _output(outputs)[0]
    return output if fewer else output[wanted]


def real_ones(values: Tensor, mask: Tensor) -> Tensor:
    """The values (N, T) where a mask of the same shape is True, one behind the other; the mask may lie on the CPU."""
    return values.flatten().index_select(0, upload(mask.flatten().nonzero().squeeze(1), values.device))


@dataclass
class Layout:
    """Where the tokens of prompts and replies stand in the one row: all prompts, then all replies.

    Attributes:
        prompts: (B,) tokens of each prompt.
        replies: (N,) tokens of each reply.
        owners: (N,) the prompt of each reply.
        device: where the row is read. Lengths and owners may lie on the CPU, which then waits for no device.
    """

    prompts: Tensor
    replies: Tensor
    owners: Tensor
    device: torch.device

    def __post_init__(self) -> None:
        ends = [end for lengths in (self.prompts, self.replies) for end in (lengths.max(), lengths.sum())]
        self.longest_prompt, self.prompt_tokens, self.longest_reply, reply_tokens = torch.stack(ends).tolist()
        lengths = torch.cat([self.prompts, self.replies])
        self.starts = lengths.cumsum(0) - lengths  # (B + N,)
        # Places of the padded tables (B, P) and (N, R) in the row, and which of them are real.
        self._prompt_real, prompt_places = _places(self.prompts, self.longest_prompt, self.starts[: len(self.prompts)])
        self._reply_real, self._reply_places = _places(
            self.replies, self.longest_reply, self.starts[len(self.prompts) :]
        )
        self.prompt_places, self.reply_places, self.prompt_of, self.lengths = (
            upload(table, self.device) for table in (prompt_places, self._reply_places, self.owners, self.prompts)
        )
        self._masks: dict[int | None, Tensor] = {}
        self.is_even = self.prompt_tokens == self.longest_prompt * len(
            self.prompts
        ) and reply_tokens == self.longest_reply * len(self.replies)

    @cached_property
    def positions(self) -> Tensor:
        """(L,) of each token in its own sequence of prompt and reply."""
        of_prompts = torch.arange(self.longest_prompt, device=self.prompts.device).expand_as(self._prompt_real)
        of_replies = torch.arange(self.longest_reply, device=self.prompts.device) + self.prompts[self.owners, None]
        return upload(torch.cat([of_prompts[self._prompt_real], of_replies[self._reply_real]]), self.device)

    @cached_property
    def of_replies(self) -> Tensor:
        """(M,) places of the replies' tokens."""
        return upload(self._reply_places[self._reply_real], self.device)

    @cached_property
    def before(self) -> Tensor:
        """(M,) places of the tokens before them: of the first of a reply, the last of its prompt."""
        last = (self.starts[: len(self.prompts)] + self.prompts - 1)[self.owners]
        before = torch.cat([last.unsqueeze(1), self._reply_places[:, :-1]], 1)
        return upload(before[self._reply_real], self.device)

    @cached_property
    def back(self) -> Tensor:
        """(L,) of each token of the row, its place in both tables one behind the other."""
        real = torch.cat([self._prompt_real.flatten(), self._reply_real.flatten()])
        return upload(real.nonzero().squeeze(1), self.device)

    def prompt_mask(self, window: int | None) -> Tensor | None:
        """(P, P), True where a query of a prompt sees a key; None: everywhere it is causal."""
        if window is None or window >= self.longest_prompt:
            return None
        places = torch.arange(self.longest_prompt, device=self.device)
        gap = places.unsqueeze(1) - places
        return (gap >= 0) & (gap < window)

    def reply_mask(self, window: int | None) -> Tensor:
        """(N or 1, 1, R, P + R), True where a query of a reply sees a key of its prompt or of itself."""
        if window not in self._masks:
            self._masks[window] = self._reply_mask(window)
        return self._masks[window]

    def _reply_mask(self, window: int | None) -> Tensor:
        lengths = self.lengths.index_select(0, self.prompt_of) if not self.is_even else self.lengths[:1]
        in_prompt = torch.arange(self.longest_prompt, device=lengths.device).expand(len(lengths), -1)
        in_reply = torch.arange(self.longest_reply, device=lengths.device)
        keys = torch.cat([in_prompt, lengths.unsqueeze(1) + in_reply], 1).unsqueeze(1)  # positions, (N, 1, P + R)
        queries = (lengths.unsqueeze(1) + in_reply).unsqueeze(2)  # (N, R, 1)
        padding = in_prompt >= lengths.unsqueeze(1)  # behind a prompt that is shorter than others
        seen = (keys <= queries) & ~F.pad(padding, (0, self.longest_reply)).unsqueeze(1)
        if window is not None:
            seen &= queries - keys < window
        return seen.unsqueeze(1)


def _places(lengths: Tensor, longest: int, starts: Tensor) -> tuple[Tensor, Tensor]:
    """(N, longest): which columns of the N sequences are real, and where in the row each stands."""
    columns = torch.arange(longest, device=lengths.device)
    real = columns < lengths.unsqueeze(1)
    return real, (starts.unsqueeze(1) + columns).masked_fill(~real, 0)


def shared_prompt_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    shared_prompts: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for each attention layer; without a layout its own attention.

    Args:
        module: the attention layer.
        query: (1, H, L, d) of the one row.
        key, value: (1, H or fewer, L, d).
        attention_mask: not read where there is a layout.
        dropout, scaling: of the weights, and factor of the scores.
        shared_prompts: what belongs together.
        options: of the family; a window of keys is honoured.

    Returns:
        (1, L, H, d), and no attention weights.

    Raises:
        NotImplementedError: the family asks for something else.
    """
    if shared_prompts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    asked = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if asked:
        raise NotImplementedError(f"attention with {asked[0]}")
    layout, window = shared_prompts, options.get("sliding_window")
    groups = query.shape[1] // key.shape[1]
    rows = [states[0].transpose(0, 1) for states in (query, key, value)]  # (L, H, d)
    of_prompts, of_replies = zip(*(_tables(states, layout) for states in rows), strict=True)
    attend: Any = functools.partial(F.scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    mask = layout.prompt_mask(window)
    prompt_query, *prompt_states = of_prompts
    own = [_repeated(states, groups) for states in prompt_states]
    prompts = attend(prompt_query, *own, attn_mask=mask, is_causal=mask is None)
    reply_query, *reply_states = of_replies
    both = [
        _repeated(torch.cat([before.index_select(0, layout.prompt_of), states], 2), groups)
        for before, states in zip(prompt_states, reply_states, strict=True)
    ]
    replies = attend(reply_query, *both, attn_mask=layout.reply_mask(window))
    flat = torch.cat([states.transpose(1, 2).flatten(0, 1) for states in (prompts, replies)])
    return (flat if layout.is_even else flat.index_select(0, layout.back)).unsqueeze(0), None


def _tables(states: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """States (L, H, d) of the row as those of prompts (B, H, P, d) and of replies (N, H, R, d)."""
    if layout.is_even:
        parts = states.split([layout.prompt_tokens, len(states) - layout.prompt_tokens])
        of_prompts, of_replies = (
            part.unflatten(0, (-1, length))
            for part, length in zip(parts, (layout.longest_prompt, layout.longest_reply), strict=True)
        )
    else:
        of_prompts, of_replies = (
            states.index_select(0, places.flatten()).unflatten(0, places.shape)
            for places in (layout.prompt_places, layout.reply_places)
        )
    return of_prompts.transpose(1, 2), of_replies.transpose(1, 2)


def _repeated(states: Tensor, groups: int) -> Tensor:
    """Keys or values for each head of the queries."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def read_from_cache(
    backbone: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    reply_ids: Tensor,
    reply_mask: Tensor,
    owners: Tensor,
) -> Tensor:
    """See `Reader`; the prompts, and then the replies from the prompts' keys and values."""
    parameters = inspect.signature(backbone.forward).parameters
    longest = int(prompt_mask.sum(-1).max())
    device = prompt_ids.device
    real = reply_mask
    prompt_mask, reply_mask, owners = (upload(table, device) for table in (prompt_mask, reply_mask, owners))
    lengths = prompt_mask.long().sum(-1)  # (B,)
    # To the right end of their columns, so that a reply follows its prompt without a gap.
    order = prompt_mask.to(torch.uint8).argsort(dim=-1, stable=True)[:, prompt_mask.shape[1] - longest :]
    prompt_ids, prompt_mask = prompt_ids.masked_fill(~prompt_mask, 0).gather(1, order), prompt_mask.gather(1, order)
    reply_ids = reply_ids.masked_fill(~reply_mask, 0)
    positions = (prompt_mask.long().cumsum(-1) - 1).clamp(min=0)
    last_only: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
    prompts = backbone(
        input_ids=prompt_ids,
        attention_mask=prompt_mask.long(),
        use_cache=True,
        **({"position_ids": positions} if "position_ids" in parameters else {}),
        **last_only,
    )
    cache = prompts.past_key_values
    cache.batch_select_indices(owners)
    positions = lengths[owners].unsqueeze(1) + torch.arange(reply_ids.shape[1], device=reply_ids.device)
    replies = backbone(
        input_ids=reply_ids,
        attention_mask=torch.cat([prompt_mask[owners].long(), torch.ones_like(reply_ids)], 1),
        past_key_values=cache,
        use_cache=True,
        **({"position_ids": positions} if "position_ids" in parameters else {}),
    )
    states = _output(replies)
    if _has_lm_head(backbone):
        states = torch.cat([_output(prompts)[owners, -1:], states[:, :-1]], 1)
    return states.flatten(0, 1).index_select(0, upload(real.flatten().nonzero().squeeze(1), device))


@exactly()
def find_reader(backbone: PreTrainedModel) -> Reader | None:
    """How a decoder-only model reads prompts once for all their replies; None: it does not.

    Each way is tried once, on a few tokens: it has to give what reading each reply behind its prompt gives. Models
    whose memory is no cache of keys and values, or that do not take positions, have none.
    """
    before = backbone.config._attn_implementation
    if before == "sdpa":
        backbone.set_attn_implementation(SHARED_PROMPTS)
        if _agrees(read_in_one_row, backbone):
            return read_in_one_row
        backbone.set_attn_implementation(before)
    return read_from_cache if _agrees(read_from_cache, backbone) else None


def _agrees(reader: Reader, backbone: PreTrainedModel) -> bool:
    """Whether a way gives the right numbers."""
    device, kind = next(backbone.parameters()).device, backbone.config.model_type
    longest, widest = max(map(len, _PROBE_PROMPTS)), max(map(len, _PROBE_REPLIES))
    prompt_ids = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in _PROBE_PROMPTS], device=device)
    prompt_mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in _PROBE_PROMPTS], device=device)
    reply_ids = torch.tensor([[*ids, *[0] * (widest - len(ids))] for ids in _PROBE_REPLIES], device=device)
    reply_mask = torch.tensor([[1] * len(ids) + [0] * (widest - len(ids)) for ids in _PROBE_REPLIES], device=device)
    owners = torch.tensor(_PROBE_OWNERS, device=device)
    expected = []
    try:
        with evaluation_mode(backbone):
            found = reader(backbone, prompt_ids, prompt_mask.bool(), reply_ids, reply_mask.bool(), owners)
            for ids, owner in zip(_PROBE_REPLIES, _PROBE_OWNERS, strict=True):
                whole = torch.tensor([[*_PROBE_PROMPTS[owner], *ids]], device=device)
                alone = _output(backbone(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False))[0]
                first = len(whole[0]) - len(ids) - _has_lm_head(backbone)
                expected.append(alone[first : first + len(ids)])
        wanted = torch.cat(expected)
        tolerance = _PROBE_TOLERANCE if wanted.dtype == torch.float32 else 0.02
        if bool(((found - wanted).abs().max() <= tolerance * wanted.abs().max()).item()):
            return True
        logger.info("%s: a %s gives other numbers", reader.__name__, kind)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        # Any of these is how a family says that it has no such attention, cache, positions or mask.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.info("%s: a %s cannot (%s)", reader.__name__, kind, reason)
    return False


def _has_lm_head(backbone: PreTrainedModel) -> bool:
    return backbone.get_output_embeddings() is not None


def _output(outputs: Any) -> Tensor:
    logits = getattr(outputs, "logits", None)
    output: Tensor = outputs.last_hidden_state if logits is None else logits
    return output


AttentionInterface.register(SHARED_PROMPTS, shared_prompt_attention)
AttentionMaskInterface.register(SHARED_PROMPTS, sdpa_mask)
