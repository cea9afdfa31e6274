"""Attention masks in the form in which transformers takes them as they stand.

It looks at every mask of two dimensions whether that hides anything, for which the CPU waits for a GPU. One of four
dimensions it hands to the attention as it is.
"""

import logging

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.language_models.attention import SHARED_SOURCE
from common.language_models.capabilities import agree, exactly, probe_ids, takes, without_cache
from common.language_models.evaluation_mode import evaluation_mode

logger = logging.getLogger(__name__)


class Masks:
    """Makes the masks of one model: of a source for an encoder-decoder, of what is before each token for the others."""

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._causal = not model.config.is_encoder_decoder
        self._ready: bool | None = None

    def __call__(self, mask: Tensor, queries: int = 1, hides: bool = True) -> Tensor | None:
        """The argument ``attention_mask``.

        Args:
            mask: (N, S), True at real tokens.
            queries: how many of the last tokens are read; an encoder-decoder reads all, whatever is said.
            hides: whether any token is hidden, as far as is known: attention is faster without a mask.

        Returns:
            (N, S) integers on a CPU and for models that take nothing else, (N, 1, 1 or queries, S) True where a token
            is seen, or None where an encoder-decoder sees everything.
        """
        if mask.device.type == "cpu" or not self._is_taken():
            return mask.long()
        if not hides and (not self._causal or queries > 1):
            return mask.long() if self._causal else None
        return self._prepared(mask, queries)

    def _prepared(self, mask: Tensor, queries: int) -> Tensor:
        seen = mask.bool()[:, None, None]
        if not self._causal or queries == 1:
            return seen
        width = mask.shape[1]
        return seen & torch.ones(queries, width, dtype=torch.bool, device=mask.device).tril(width - queries)

    def _is_taken(self) -> bool:
        """Whether the model reads the same with a mask of four dimensions: asked the first time it matters."""
        if self._ready is None:
            self._ready = self._sees_everything() and self._reads_alike()
        return self._ready

    def _sees_everything(self) -> bool:
        """Whether attention wants True where a token is seen, and every layer sees all that the mask allows."""
        kinds, windows = {"full_attention"}, []
        for config in (self._model.config, self._model.config.get_text_config()):
            kinds |= {*(getattr(config, "layer_types", None) or ())}
            windows.append(getattr(config, "sliding_window", None))
        takes_bool = self._model.config._attn_implementation in ("sdpa", SHARED_SOURCE)
        return takes_bool and kinds == {"full_attention"} and not any(windows)

    @exactly()
    def _reads_alike(self) -> bool:
        model, ids = self._model, probe_ids(self._model).view(2, 5)
        mask = torch.ones_like(ids)
        mask[1, slice(2) if self._causal else slice(3, None)] = 0
        inputs = {"input_ids": ids} | ({} if self._causal else {"decoder_input_ids": ids})
        if self._causal and takes(model, "position_ids"):
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        kept = mask.unsqueeze(-1) if self._causal else torch.ones_like(mask).unsqueeze(-1)

        def read(given: Tensor | None) -> Tensor:
            said: Tensor = model(**inputs, attention_mask=given, **without_cache(model))[0]
            return said * kept

        try:
            with evaluation_mode(model), torch.autocast(ids.device.type, enabled=False):
                alike = agree(read(self._prepared(mask, ids.shape[1])), read(mask))
                return alike and (self._causal or agree(read(None), read(torch.ones_like(mask))))
        except Exception as error:  # a model that takes no such mask may raise anything
            logger.debug("asked a model: %s: %s", type(error).__name__, error)
            return False
