"""Engines of processes that are not there, and of precisions that a CPU is not asked for."""

import torch

from common.training.engine import Engine, start_engine


def pretended(rank: int, count: int) -> Engine:
    """One that takes its process for number `rank` of `count`; it cannot talk to the others."""
    engine = start_engine("cpu")
    engine.rank, engine.count = rank, count
    return engine


def scaled() -> Engine:
    """Autocast and loss scaling as of fp16, without the CUDA device that it asks for."""
    accelerator = start_engine("cpu").accelerator
    accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu"), True
    accelerator.state._mixed_precision = "fp16"
    return Engine(accelerator)
