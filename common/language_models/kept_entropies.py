"""Entropies of a frozen language model over replies, computed once and kept on the disk.

They depend on the model and on the tokens that it reads, and on nothing else: not on a cut-off, an aggregation or a
seed. So a file holds those of one model, by a hash of its files, and in it each prompt's replies stand by a hash of
their tokens.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from common.errors import UserError
from common.reply_rewards import padded
from common.reply_surprise import reply_entropies
from common.training.files import write_bytes_atomic
from common.training.inputs import fingerprint

logger = logging.getLogger(__name__)

FOLDER = Path(HF_HOME, "token-guidance", "entropies")
_READ_AT_ONCE = 4  # replies


class KeptEntropies:
    """Entropies after each token of replies, see :func:`common.reply_surprise.reply_entropies`.

    Args:
        load: gives the frozen LM, when something is met that is not known.
        name: of it, as it is loaded; None: nothing is kept.
        folder: where files are kept.
    """

    def __init__(
        self, load: Callable[[], PreTrainedModel], name: str | None = None, folder: Path | None = None
    ) -> None:
        self._load = load
        files = {} if name is None else fingerprint(name)
        key = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
        self._path = (folder or FOLDER) / f"{key}.safetensors" if files else None
        self._known = {} if self._path is None else _read(self._path)
        self.computed = 0

    @cached_property
    def _model(self) -> PreTrainedModel:
        return self._load()

    def of(self, prompt_ids: list[int], replies: Sequence[list[int]]) -> Tensor:
        """Entropies (K, R) of the replies to a prompt, padded on the right, on the CPU."""
        key = hashlib.sha256(json.dumps([prompt_ids, list(replies)]).encode()).hexdigest()
        ids, mask = padded(replies)
        found = self._known.get(key)
        if found is None or found.shape != (int(mask.sum()),):
            device = self._model.device
            prompts, prompt_mask = padded([prompt_ids] * len(replies), device)
            masks = prompt_mask, mask.to(device)
            found = reply_entropies(self._model, prompts, ids.to(device), masks, _READ_AT_ONCE).cpu()[mask.bool()]
            self._known[key] = found
            self.computed += 1
        return torch.zeros(ids.shape).masked_scatter(mask.bool(), found)

    def write(self) -> None:
        """Keep what is new; without a place for it that is a line, and no error."""
        if self._path is None or not self.computed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._known = _read(self._path) | self._known  # other runs may have written since it was read
            write_bytes_atomic(self._path, save(self._known, {"sha256": _checksum(self._known)}))
        except (OSError, UserError) as error:
            logger.warning("the entropies of %d prompts' replies are not kept: %s", self.computed, error)


def _read(path: Path) -> dict[str, Tensor]:
    """What `KeptEntropies.write` wrote; nothing where there is no file, or one that is damaged."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            known = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            checksum = (file.metadata() or {}).get("sha256")
        if checksum == _checksum(known):
            return known
        reason = "another checksum than when it was written"
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error)
    logger.warning("entropies that were kept in %s cannot be used and are computed anew: %s", path, reason)
    return {}


def _checksum(known: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(known):
        digest.update(key.encode())
        digest.update(known[key].float().numpy().tobytes())
    return digest.hexdigest()
