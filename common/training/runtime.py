"""The one place that decides device, threads and seeds, and that reads and restores random state."""

import logging
import os
import random
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from common.training.random_keys import Purpose, keyed_generator, seed_global

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MATMUL_PRECISIONS = ("highest", "high", "medium")
"""float32 itself; TF32 or three products of bfloat16; one of bfloat16: what CUDA's cores make of them."""


@dataclass(frozen=True)
class Runtime:
    """Where a run computes and the seed from which all its randomness comes."""

    device: torch.device
    seed: int

    def generator(self, purpose: Purpose) -> torch.Generator:
        """A CPU generator for one purpose of the run.

        Sampling always draws on the CPU generator, so that the device changes nothing but rounding.
        """
        return keyed_generator(purpose, self.seed)


def choose_device(name: str) -> torch.device:
    """Resolve ``auto`` (CUDA, then MPS, then CPU) or check that the device asked for exists."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: '{name}' is not a device; allowed: auto, cpu, cuda, cuda:N, mps") from None
    available: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": lambda: torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
    }
    if device.type not in available or not available[device.type]():
        raise UserError(f"device: '{name}' is not available on this machine; 'auto' takes the best there is")
    return device


def start_runtime(
    seed: int, device: str = "auto", num_threads: int | None = None, matmul_precision: str | None = None
) -> Runtime:
    """Seed every generator, set the CPU threads and choose the device. Call before any model is made.

    Args:
        seed: one number from which python, numpy and torch are seeded.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        num_threads: CPU threads of torch; None leaves what torch or OMP_NUM_THREADS chose.
        matmul_precision: of `MATMUL_PRECISIONS`, for matrix products of float32; None: high on CUDA, else highest.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # libraries that still draw from numpy's global generator
    seed_global(Purpose.INITIAL_WEIGHTS, seed)
    chosen = choose_device(device)
    torch.set_float32_matmul_precision(matmul_precision or ("high" if chosen.type == "cuda" else "highest"))
    logger.info("device %s, seed %d", hardware(chosen), seed)
    return Runtime(chosen, seed)


def describe(name: str, *parts: torch.nn.Module) -> None:
    """Log what a model is made of and how much of it is trained."""
    weights = {id(p): p for part in parts for p in part.parameters()}.values()
    trained = sum(p.numel() for p in weights if p.requires_grad)
    kinds = " + ".join(type(part).__name__ for part in parts)
    logger.info("%s: %s, %d weights, %d of them trained", name, kinds, sum(p.numel() for p in weights), trained)


def random_state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The global random state as (tensors, JSON): torch on CPU, CUDA and MPS, python, numpy."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return tensors, {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
    }


def restore_random_state(tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Undo `random_state`."""
    torch.set_rng_state(tensors["torch"])
    for name, value in tensors.items():
        if name.startswith("cuda.") and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(value, int(name[5:]))
    if "mps" in tensors and torch.backends.mps.is_available():
        torch.mps.set_rng_state(tensors["mps"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


def peak_memory_mib(device: torch.device | None = None) -> dict[str, float]:
    """Peak memory of this process in MiB: resident (``cpu``) and, on CUDA, allocated (``cuda``)."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB on Linux
    peak = {"cpu": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}
    if device is not None and device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device) / 2**20
    return peak


def hardware(device: torch.device) -> str:
    """One line that says what a run ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {os.cpu_count()} cores"
