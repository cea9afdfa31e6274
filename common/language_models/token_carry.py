"""Carrying token rewards from one tokenization of a text to another, by the characters that tokens share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.language_models.line_breaks import LineBreak, decode_lines

Span = tuple[int, int]


def token_spans(tokenizer: Any, ids: Sequence[int], mark: LineBreak | None = None) -> tuple[str, list[Span]]:
    """The text of some tokens and the characters (start, end) of each.

    A span ends where the text of the tokens so far ceases to agree with the whole text, so tokens that hold only a
    part of a character (bytes) or none share the span of the next one that completes some. The end token stands for
    one character behind the last. Token ids that no encoding of the text would give are fine.

    Args:
        tokenizer: of transformers.
        ids: (T,) with at most one end token, at the end.
        mark: of the line break, where the vocabulary has one.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    has_end = bool(ids) and ids[-1] == tokenizer.eos_token_id
    inner = list(ids[:-1] if has_end else ids)
    prefixes = [decode_lines(tokenizer, inner[:n], mark, **options) for n in range(1, len(inner) + 1)]
    text = prefixes[-1] if prefixes else ""
    ends: list[int] = []
    for prefix in prefixes:
        agree = next((i for i, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), len(prefix))
        ends.append(max(agree, ends[-1] if ends else 0))
    spans: list[Span] = []
    for position, end in enumerate(ends):
        start = ends[position - 1] if position else 0
        later = next((e for e in ends[position:] if e > start), len(text))
        spans.append((start, later if end == start else end))
    return text, [*spans, (len(text), len(text) + 1)] if has_end else spans


def carry_over(rewards: Tensor, from_spans: Sequence[Span], to_spans: Sequence[Span]) -> Tensor:
    """Rewards (J,) of tokens at `from_spans` as rewards (I,) of tokens at `to_spans` of the same text.

    Each reward is divided among the tokens in proportion to the characters they share with its own token; one that
    shares none with any goes to the nearest token. The sum stays the same.
    """
    starts, ends = torch.tensor(to_spans, dtype=rewards.dtype).unbind(1)  # (I,)
    from_starts, from_ends = torch.tensor(from_spans, dtype=rewards.dtype).unbind(1)  # (J,)
    overlap = torch.minimum(ends[:, None], from_ends) - torch.maximum(starts[:, None], from_starts)  # (I, J)
    distance = -overlap  # where positive, the characters between the two; negative where they share some
    nearest = torch.nn.functional.one_hot(distance.argmin(0), len(to_spans)).T.to(rewards.dtype)
    overlap = overlap.clamp(min=0)
    shared = overlap.sum(0)
    shares = torch.where(shared > 0, overlap / shared.clamp(min=1), nearest)
    return shares @ rewards
