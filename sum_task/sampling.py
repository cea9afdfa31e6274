"""Sampling of summaries token by token: what has ended is no longer computed, and a GPU is rarely asked."""

import torch
from torch import Tensor

from common.language_models.evaluation_mode import evaluation_mode
from common.language_models.growing_cache import let_grow
from common.language_models.sampling import draw_tokens
from common.transfers import upload
from sum_task.batching import Padded
from sum_task.policy import Sources, SummaryPolicy

# A sample that has ended is still computed until so small a share of the rows is left.
COMPACT_BELOW = 0.75
# Tokens after which is looked how many samples have ended. A device is asked for that, and the CPU waits for it.
TOKENS_BETWEEN_LOOKS = {"cpu": 1}
TOKENS_BETWEEN_LOOKS_ELSEWHERE = 8


@torch.no_grad()
def sample_summaries(
    policy: SummaryPolicy, sources: Sources, per_source: int, noise: Tensor, top_k: int | None, temperature: float
) -> Padded:
    """Sample summaries without gradient, dropout off.

    Args:
        policy: what writes.
        sources: B of them.
        per_source: K, summaries of each.
        noise: (B * K, L) uniform numbers in [0, 1), on the CPU: number (n, t) decides token t of summary n, so that
            neither the batch nor the device changes what is drawn. L is the greatest length.
        top_k: draw from the k most probable tokens; None: from all.
        temperature: divides the logits.

    Returns:
        N = B * K summaries, the K of a source one after the other.
    """
    with evaluation_mode(policy.lm):
        return _sample(policy, sources.detach(), per_source, noise, top_k, temperature)


def _sample(
    policy: SummaryPolicy, sources: Sources, per_source: int, noise: Tensor, top_k: int | None, temperature: float
) -> Padded:
    count, length = noise.shape
    tokens = torch.full((count, length), policy.pad_id, device=policy.device)
    mask = torch.zeros(count, length, dtype=torch.bool, device=policy.device)
    noise = upload(noise.float(), policy.device)
    between = TOKENS_BETWEEN_LOOKS.get(policy.device.type, TOKENS_BETWEEN_LOOKS_ELSEWHERE)
    alive = torch.arange(count, device=policy.device)  # the summary of each row that is still computed
    ended = torch.zeros(count, dtype=torch.bool, device=policy.device)
    written = torch.empty(count, 0, dtype=torch.long, device=policy.device)  # of the rows still computed
    logits, cache = policy.read_start(sources)  # once a source: its K summaries begin alike
    source_of = torch.arange(len(sources.ids), device=policy.device).repeat_interleave(per_source)
    logits = logits[source_of]
    if policy.shares_sources and cache is not None:
        cache.self_attention_cache.batch_select_indices(source_of)
    elif not policy.shares_sources:
        policy.select(cache, source_of, source_of)
        sources, source_of = sources.rows(source_of), torch.arange(count, device=policy.device)
    if cache is not None:
        let_grow(cache.self_attention_cache if policy.is_encoder_decoder else cache)
    for position in range(length):
        drawn = draw_tokens(policy.possible(logits), noise[alive, position], top_k, temperature=temperature)
        tokens[alive, position] = drawn.masked_fill(ended, policy.pad_id)
        mask[alive, position] = ~ended
        written = torch.cat([written, drawn.unsqueeze(1)], 1)
        ended = ended | (drawn == policy.end_id)
        if position + 1 == length:
            break
        if (position + 1) % between == 0:
            going_on = (~ended.cpu()).nonzero().squeeze(1)
            if len(going_on) == 0:
                break
            if len(going_on) < COMPACT_BELOW * len(alive):
                kept = upload(going_on, policy.device)
                policy.select(cache, kept, source_of[kept])
                sources, source_of = sources.rows(source_of[kept]), torch.arange(len(kept), device=policy.device)
                alive, written, ended = alive[kept], written[kept], ended[kept]
        logits = policy.read_on(sources, written, cache)
    return Padded(tokens, mask).rows(slice(count))
