"""The optimizer step that all trainers share: gradients summed, clipped, and left out where they are not finite."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch

from common.errors import UserError
from common.training.engine import Engine
from common.transfers import fetch

logger = logging.getLogger(__name__)

MOST_SKIPPED_IN_A_ROW = 10


class Stepper:
    """Backward passes and optimizer steps of one model.

    A step whose gradient is not finite is left out and counted. In float16 a loss is multiplied by a scale that keeps
    small gradients above zero: it is halved at each overflow and doubled after 2000 steps without one
    (`torch.amp.GradScaler`). An overflow at a scale above 1 may be the scale's doing and is how it is found; one
    without a scale, or at a scale of at most 1, is the model's: it is said, and so many in a row
    (`MOST_SKIPPED_IN_A_ROW`) stop the run.

    Args:
        name: ``reward`` or ``policy``, for messages.
        clip_norm: largest gradient norm, or None.
        engine: of the run.
        optimizer: over the trained parameters; may be replaced.
        alike: every process computes the whole step, and its gradients are those of the main one instead of a sum.

    Attributes:
        skipped: steps that were left out so far.
    """

    def __init__(
        self,
        name: str,
        clip_norm: float | None,
        engine: Engine,
        optimizer: torch.optim.Optimizer | None = None,
        alike: bool = False,
    ):
        self.name = name
        self.clip_norm = math.inf if clip_norm is None else clip_norm
        self.engine = engine
        self.alike = alike
        self.optimizer = optimizer
        self.skipped = 0
        self._in_a_row = 0

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a part of the step's loss."""
        self.engine.accelerator.backward(loss)

    def step(self, *figures: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
        """Bring the gradients of the processes together, clip and step.

        Returns:
            The norm before clipping, and `figures` on the CPU: the one transfer of a step.

        Raises:
            UserError: the gradient was not finite for too many steps in a row.
        """
        assert self.optimizer is not None
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.alike:
            self.engine.gradients_of_main(parameters)
        else:
            self.engine.sum_gradients(parameters)
        accelerator, scaler = self.engine.accelerator, self.engine.accelerator.scaler
        accelerator.unscale_gradients(self.optimizer)
        norm, *fetched = fetch(accelerator.clip_grad_norm_(parameters, self.clip_norm), *figures)
        finite = math.isfinite(norm.item())
        scale = 1.0 if finite or scaler is None else scaler.get_scale()
        if finite:
            self._in_a_row = 0
            self.optimizer.step()
        if scaler is not None:
            scaler.update()
        self.optimizer.zero_grad()
        if not finite:
            self._skip(scale)
        return norm.item(), fetched

    def _skip(self, scale: float) -> None:
        self.skipped += 1
        if scale > 1:
            logger.info("%s learning: the gradient overflows at a loss scale of %g; it is halved", self.name, scale)
            return
        self._in_a_row += 1
        if self._in_a_row == 1:
            logger.warning("%s learning: the gradient is not finite; the step is left out", self.name)
        if self._in_a_row == MOST_SKIPPED_IN_A_ROW:
            rate = "learning_rate" if self.name == "policy" else "rew_learning_rate"
            raise UserError(
                f"{self.name} learning: the gradient was not finite for {self._in_a_row} steps in a row; "
                f"a lower {rate} may help"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, as JSON."""
        scaler = self.engine.accelerator.scaler
        found = None if scaler is None else scaler.state_dict()
        return {"skipped": self.skipped, "in_a_row": self._in_a_row, "scaler": found}

    def load_state(self, values: Mapping[str, Any]) -> None:
        """Undo `state`."""
        self.skipped, self._in_a_row = values["skipped"], values["in_a_row"]
        scaler = self.engine.accelerator.scaler
        if scaler is not None and values["scaler"] is not None:
            scaler.load_state_dict(values["scaler"])
