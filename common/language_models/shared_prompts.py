"""Several replies to one prompt, of which the prompt is read once.

A decoder-only model reads the prompts, keeps their keys and values, and each reply goes on from those of its own
prompt. Nothing is approximated: a reply's tokens attend to what they would attend to in a sequence of their own, and
gradients reach the prompt through its keys and values. The work grows linearly in the tokens of the replies.
"""

import inspect
import logging
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.language_models.capabilities import exactly
from common.language_models.evaluation_mode import evaluation_mode

logger = logging.getLogger(__name__)

_PROBE_PROMPTS = ((1, 2, 3), (3, 1, 4, 1, 5, 9, 2))
_PROBE_REPLIES = ((2, 7, 1, 8), (6, 5), (1, 6, 1))
_PROBE_OWNERS = (0, 1, 1)
_PROBE_TOLERANCE = 1e-4  # of the largest number, in float32


def read_replies(
    backbone: PreTrainedModel, prompt_ids: Tensor, prompt_mask: Tensor, reply_ids: Tensor, owners: Tensor
) -> tuple[Tensor, Tensor]:
    """What a decoder-only model says behind the last token of each prompt and at each token of the replies.

    Args:
        backbone: with or without its LM head.
        prompt_ids, prompt_mask: (B, P), padded on the left; True at real tokens.
        reply_ids: (N, R), padded on the right; nothing real sees the padding.
        owners: (N,) the prompt of each reply.

    Returns:
        Logits (or last hidden states, of a model without an LM head) at the prompts' last tokens, (B, V or d), and at
        the replies', (N, R, V or d).
    """
    parameters = inspect.signature(backbone.forward).parameters
    lengths = prompt_mask.long().sum(-1)  # (B,)
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
    return _output(prompts)[:, -1], _output(replies)


@exactly()
def can_share_prompts(backbone: PreTrainedModel) -> bool:
    """Whether :func:`read_replies` gives what reading each reply behind its prompt gives: tried once, on a few tokens.

    Models whose memory is no cache of keys and values, or that do not take positions, fail it.
    """
    device = next(backbone.parameters()).device
    longest, widest = max(map(len, _PROBE_PROMPTS)), max(map(len, _PROBE_REPLIES))
    prompt_ids = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in _PROBE_PROMPTS], device=device)
    prompt_mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in _PROBE_PROMPTS], device=device)
    reply_ids = torch.tensor([[*ids, *[0] * (widest - len(ids))] for ids in _PROBE_REPLIES], device=device)
    owners = torch.tensor(_PROBE_OWNERS, device=device)
    try:
        with evaluation_mode(backbone):
            last, shared = read_replies(backbone, prompt_ids, prompt_mask.bool(), reply_ids, owners)
            for number, (ids, owner) in enumerate(zip(_PROBE_REPLIES, _PROBE_OWNERS, strict=True)):
                whole = torch.tensor([[*_PROBE_PROMPTS[owner], *ids]], device=device)
                alone = _output(backbone(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False))[0]
                tolerance = _PROBE_TOLERANCE if alone.dtype == torch.float32 else 0.02
                found = torch.cat([last[owner][None], shared[number, : len(ids)]])
                expected = alone[-len(ids) - 1 :]
                if not bool(((found - expected).abs().max() <= tolerance * expected.abs().max()).item()):
                    logger.info(
                        "prompts are read once a reply: read once a set, a %s differs", backbone.config.model_type
                    )
                    return False
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        # Any of these is how a family says that it has no such cache, positions or mask.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.info(
            "prompts are read once a reply: a %s cannot go on from a cache (%s)", backbone.config.model_type, reason
        )
        return False
    return True


def _output(outputs: Any) -> Tensor:
    logits = getattr(outputs, "logits", None)
    output: Tensor = outputs.last_hidden_state if logits is None else logits
    return output
