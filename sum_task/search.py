"""Greedy and beam search for summaries, by transformers' own `generate`."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, LogitsProcessorList

from common.errors import UserError
from common.language_models.capabilities import agree, equal_lengths, exactly, probe_ids
from common.language_models.evaluation_mode import evaluation_mode
from sum_task.batching import Padded
from sum_task.policy import Sources, SummaryPolicy


@torch.no_grad()
def search_summaries(policy: SummaryPolicy, sources: Sources, max_length: int, num_beams: int = 1) -> Padded:
    """The summary of each source by greedy or beam search, dropout off: what a user of the policy gets.

    Settings that come with the model, such as a length penalty, hold; lengths and beams are those given.
    """
    options = GenerationConfig.from_dict(policy.lm.generation_config.to_dict())
    options.update(
        do_sample=False, temperature=None, top_k=None, top_p=None, num_beams=num_beams, max_length=None,
        max_new_tokens=max_length, eos_token_id=policy.end_id, pad_token_id=policy.pad_id,
    )  # fmt: skip
    options.early_stopping = bool(options.early_stopping) and num_beams > 1
    if num_beams == 1:
        options.length_penalty = None
    options.use_cache = not policy.reads_whole
    if policy.is_encoder_decoder:
        options.decoder_start_token_id = policy.start[0]  # else transformers puts its own before what is begun
        if len(policy.start) > 1:
            options.forced_bos_token_id = None  # it is among what is begun
    if options.forced_eos_token_id is not None:
        options.forced_eos_token_id = policy.end_id  # configurations name one where tokenizers have another
    mask = sources.mask.long()
    with evaluation_mode(policy.lm):
        if policy.is_encoder_decoder:
            inputs = policy.encoded(sources) | {"attention_mask": mask}
            written = _generate(policy, options, policy.starts(len(mask)), **inputs)
        elif policy.reads_whole:
            parts = [
                (rows, _generate(policy, options, sources.ids[rows][:, -int(mask[rows[0]].sum()) :]))
                for rows in equal_lengths(sources.mask)
            ]
            width = max(part.shape[1] for _, part in parts)
            written = torch.full((len(mask), width), policy.end_id, device=policy.device)
            for rows, part in parts:
                written[rows, : part.shape[1]] = part
        else:
            written = _generate(policy, options, sources.ids, attention_mask=mask)
    ends = (written == policy.end_id).long()
    return Padded(written, (ends.cumsum(-1) - ends) == 0)  # all up to the first end token


@torch.no_grad()
def write_texts(policy: SummaryPolicy, articles: Padded, max_length: int, num_beams: int = 1) -> list[str]:
    """The summary of each article as a user gets it, see `search_summaries`."""
    with evaluation_mode(policy.lm):
        return policy.texts(search_summaries(policy, policy.encode(articles), max_length, num_beams))


def _generate(policy: SummaryPolicy, options: GenerationConfig, begun: Tensor, **inputs: Any) -> Tensor:
    """What transformers' own search writes behind the ids `begun` (N, S)."""
    given: dict[str, Any] = {"decoder_input_ids" if policy.is_encoder_decoder else "input_ids": begun}
    if policy.is_encoder_decoder and options.use_cache:
        # Made by transformers for the configuration it would have as many layers as that tells, which may be wrong.
        given["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def without_tokenless(ids: Tensor, scores: Tensor) -> Tensor:
        possible = policy.possible(scores)
        return F.pad(possible, (0, scores.shape[1] - possible.shape[1]), value=-torch.inf)

    processors = LogitsProcessorList([without_tokenless])
    generate: Any = policy.lm.generate
    return generate(**given, **inputs, generation_config=options, logits_processor=processors)[:, begun.shape[1] :]


@exactly()
def check_search(policy: SummaryPolicy) -> None:
    """See that transformers' search reads texts as training does; some families' puts more into them.

    Raises:
        UserError: it writes what is not most probable.
    """
    ids = probe_ids(policy.lm)[:, :5]
    kept, policy.lm.generation_config = policy.lm.generation_config, GenerationConfig()
    try:
        with evaluation_mode(policy.lm):
            sources = policy.encode(Padded(ids, torch.ones_like(ids, dtype=torch.bool)))
            found = search_summaries(policy, sources, 3)
            logits = policy.possible(policy.logits(sources, found)[0])
    finally:
        policy.lm.generation_config = kept
    chosen = logits.gather(1, found.tokens[0, : len(logits), None])[:, 0][found.mask[0]]
    if not agree(chosen, logits.amax(-1)[found.mask[0]]):
        raise UserError(f"a {policy.lm.config.model_type} reads other texts in transformers' search than in training")
