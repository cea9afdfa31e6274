"""Sampling of summaries token by token: what has ended is no longer computed, and a GPU is rarely asked."""

import torch
from torch import Tensor

from common.language_models.evaluation_mode import evaluation_mode
from common.language_models.growing_cache import let_grow
from common.language_models.sampling import draw_tokens
from common.transfers import upload
from sum_task.batching import Padded
from sum_task.reading import Reader, Sources

# A sample that has ended is still computed until so small a share of the rows is left.
COMPACT_BELOW = 0.75
# Tokens after which is looked how many samples have ended. A device is asked for that, and the CPU waits for it.
TOKENS_BETWEEN_LOOKS = {"cpu": 1}
TOKENS_BETWEEN_LOOKS_ELSEWHERE = 8


@torch.no_grad()
def sample_summaries(
    reader: Reader, sources: Sources, per_source: int, noise: Tensor, top_k: int | None, temperature: float
) -> Padded:
    """Sample summaries without gradient, dropout off.

    Args:
        reader: the language model.
        sources: B of them.
        per_source: K, summaries of each.
        noise: (B * K, L) uniform numbers in [0, 1), on the CPU: number (n, t) decides token t of summary n, so that
            neither the batch nor the device changes what is drawn. L is the greatest length.
        top_k: draw from the k most probable tokens; None: from all.
        temperature: divides the logits.

    Returns:
        N = B * K summaries, the K of a source one after the other.
    """
    with evaluation_mode(reader.lm):
        return _sample(reader, sources.detach(), per_source, noise, top_k, temperature)


def _sample(
    reader: Reader, sources: Sources, per_source: int, noise: Tensor, top_k: int | None, temperature: float
) -> Padded:
    count, length = noise.shape
    tokens = torch.full((count, length), reader.pad_id, device=reader.device)
    mask = torch.zeros(count, length, dtype=torch.bool, device=reader.device)
    noise = upload(noise.float(), reader.device)
    between = TOKENS_BETWEEN_LOOKS.get(reader.device.type, TOKENS_BETWEEN_LOOKS_ELSEWHERE)
    alive = torch.arange(count, device=reader.device)  # the summary of each row that is still computed
    ended = torch.zeros(count, dtype=torch.bool, device=reader.device)
    written = torch.empty(count, 0, dtype=torch.long, device=reader.device)  # of the rows still computed
    logits, cache = reader.read_start(sources)  # once a source: its K summaries begin alike
    source_of = torch.arange(len(sources.ids), device=reader.device).repeat_interleave(per_source)
    logits = logits[source_of]
    if reader.shares_sources and cache is not None:
        cache.self_attention_cache.batch_select_indices(source_of)
    elif not reader.shares_sources:
        reader.select(cache, source_of, source_of)
        sources, source_of = sources.rows(source_of), torch.arange(count, device=reader.device)
    if cache is not None:
        let_grow(cache.self_attention_cache if reader.is_encoder_decoder else cache)
    for position in range(length):
        drawn = draw_tokens(reader.possible(logits), noise[alive, position], top_k, temperature=temperature)
        tokens[alive, position] = drawn.masked_fill(ended, reader.pad_id)
        mask[alive, position] = ~ended
        written = torch.cat([written, drawn.unsqueeze(1)], 1)
        ended = ended | (drawn == reader.end_id)
        if position + 1 == length:
            break
        if (position + 1) % between == 0:
            going_on = (~ended.cpu()).nonzero().squeeze(1)
            if len(going_on) == 0:
                break
            if len(going_on) < COMPACT_BELOW * len(alive):
                kept = upload(going_on, reader.device)
                reader.select(cache, kept, source_of[kept])
                sources, source_of = sources.rows(source_of[kept]), torch.arange(len(kept), device=reader.device)
                alive, written, ended = alive[kept], written[kept], ended[kept]
        logits = reader.read_on(sources, written, cache)
    return Padded(tokens, mask).rows(slice(count))
