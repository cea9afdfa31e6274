"""Learning-rate plateau schedule, early stopping and best weights: one object that sees each validation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class PlateauSettings:
    """The published rule for both models of the method.

    Attributes:
        factor: the learning rate is multiplied by this ...
        patience: ... once more than this many validations in a row brought no gain.
        floor: the rate never falls below this.
        stop_after: training stops after this many validations in a row without a gain.
        threshold: relative gain that counts as one.
        higher_is_better: whether the validation figure is a score or a loss.
    """

    factor: float = 0.8
    patience: int = 2
    floor: float = 1e-6
    stop_after: int = 7
    threshold: float = 1e-4
    higher_is_better: bool = False


class Plateau:
    """Follows a validation figure for one model and one optimizer.

    A gain is judged by ``(value - best) > threshold * |best|`` (sign turned for a loss), which is right for
    negative figures too, where ``value > best * (1 + threshold)`` calls a loss of quality a gain.
    """

    def __init__(self, settings: PlateauSettings, optimizer: torch.optim.Optimizer, model: nn.Module):
        self.settings = settings
        self.optimizer = optimizer
        self.model = model
        self.best: float | None = None
        self.best_step: int | None = None
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.without_gain = 0
        self.since_reduction = 0

    @property
    def countdown(self) -> int:
        """Validations without a gain that are left before training stops."""
        return self.settings.stop_after - self.without_gain

    @property
    def should_stop(self) -> bool:
        return self.countdown <= 0

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def is_gain(self, value: float) -> bool:
        """Whether `value` beats the best so far by more than the threshold. NaN and infinity never do."""
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        difference = value - self.best if self.settings.higher_is_better else self.best - value
        return difference > self.settings.threshold * abs(self.best)

    def update(self, value: float, step: int) -> bool:
        """Take note of a validation figure; keep the weights if it is a gain, else count towards rate and stop."""
        if self.is_gain(value):
            self.best, self.best_step = value, step
            self.best_weights = {name: p.detach().clone() for name, p in trainable_weights(self.model).items()}
            self.without_gain = self.since_reduction = 0
            return True
        self.without_gain += 1
        self.since_reduction += 1
        if self.since_reduction > self.settings.patience:
            self.since_reduction = 0
            for group in self.optimizer.param_groups:
                group["lr"] = min(group["lr"], max(group["lr"] * self.settings.factor, self.settings.floor))
        return False

    def restore_best(self) -> bool:
        """Put the best weights back into the model. False where no validation took place: the last ones stay."""
        if self.best_weights is None:
            return False
        weights = trainable_weights(self.model)
        with torch.no_grad():
            for name, value in self.best_weights.items():
                weights[name].copy_(value)
        return True

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a checkpoint must hold, as (tensors, JSON)."""
        numbers = {k: getattr(self, k) for k in ("best", "best_step", "without_gain", "since_reduction")}
        return dict(self.best_weights or {}), numbers | {"has_weights": self.best_weights is not None}

    def load_state(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> None:
        """Undo `state`."""
        for key in ("best", "best_step", "without_gain", "since_reduction"):
            setattr(self, key, numbers[key])
        device = next(self.model.parameters()).device
        self.best_weights = {k: v.to(device) for k, v in tensors.items()} if numbers["has_weights"] else None


def trainable_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that training changes, by name: all that has to be kept or saved of a model."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
