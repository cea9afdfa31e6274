"""Several processes, and mixed precision.

Every process knows the whole plan of a run: the batches, and the random numbers with which their summaries are sampled.
It works on its rows of each batch, divides its losses by the size of the whole batch, and the gradients are summed.
So the number of processes changes nothing but rounding, and a process without a row simply adds nothing.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import safetensors.torch
import torch
from torch import distributed

from common.errors import UserError
from common.training.runtime import choose_device

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def share(self, rows: Sequence[T]) -> list[T]:
        """This process's rows of a batch."""
        return list(rows[self.rank :: self.count])

    def total(self, *values: float) -> list[float]:
        """Sums over the processes."""
        if self.count == 1:
            return list(values)
        return [sum(column) for column in zip(*self.gather(values), strict=True)]

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        return max(self.gather(value))

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank: plain data, of which JSON makes tuples lists and keys of dicts texts."""
        if self.count == 1:
            return [value]
        return [json.loads(data) for data in self._exchange(json.dumps(value).encode())]

    def gather_tensors(self, tensors: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """The named tensors of every process, by rank, on the CPU. Names and shapes may differ between processes."""
        if self.count == 1:
            return [{name: tensor.detach().cpu() for name, tensor in tensors.items()}]
        plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        return [safetensors.torch.load(data) for data in self._exchange(safetensors.torch.save(plain))]

    def _exchange(self, data: bytes) -> list[bytes]:
        """The bytes of every process, by rank. They travel as they are: nothing that is received is unpickled."""
        from accelerate import PartialState

        device = PartialState().device
        length = torch.tensor([len(data)], device=device)
        lengths = [torch.empty_like(length) for _ in range(self.count)]
        distributed.all_gather(lengths, length)
        counts = [int(n) for n in torch.cat(lengths).tolist()]
        padded = torch.zeros(max(counts), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        everyone = [torch.empty(max(counts), dtype=torch.uint8, device=device) for _ in range(self.count)]
        distributed.all_gather(everyone, padded.to(device))
        return [part[:n].cpu().numpy().tobytes() for part, n in zip(everyone, counts, strict=True)]

    def from_main(self, value: T | None) -> T:
        """The main process's value, plain data as in `gather`."""
        return self.gather(value)[0]  # type: ignore[return-value]

    def on_main(self, work: Callable[[], T]) -> T:
        """Let the main process do something for all; where it finds a user's mistake, every process raises it."""
        outcome: tuple[T | None, str | None] | None = None
        if self.is_main:
            try:
                outcome = (work(), None)
            except UserError as error:
                outcome = (None, str(error))
        value, error_text = self.from_main(outcome)
        if error_text is not None:
            raise UserError(error_text)
        return value  # type: ignore[return-value]

    def gradients_of_main(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by the main process's, where all compute the same: models trained alike stay alike.

        On a GPU sums may come in another order in each process, and weights that differ by rounding would in time
        sample other tokens.
        """
        there = [p.grad for p in parameters if p.grad is not None] if self.count > 1 else []
        if there:
            flat = torch.cat([gradient.flatten() for gradient in there])
            distributed.broadcast(flat, src=0)
            for gradient, part in zip(there, flat.split([g.numel() for g in there]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; None only where no process has one."""
        if self.count == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        has_gradient = torch.tensor([p.grad is not None for p in trained], device=trained[0].device).int()
        distributed.all_reduce(has_gradient, distributed.ReduceOp.MAX)
        reduced = [p for p, there in zip(trained, has_gradient.tolist(), strict=True) if there]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in reduced])
        distributed.all_reduce(flat)
        for p, part in zip(reduced, flat.split([p.numel() for p in reduced]), strict=True):
            p.grad = part.view_as(p)


def start_processes(device: str) -> tuple[Processes, str]:
    """Join the other processes that `accelerate launch` (or torchrun) started, if any.

    Returns:
        The processes, and the name of the device of this one.

    Raises:
        UserError: a device was asked for by number, where each process gets its own, or it is not there.
    """
    from accelerate.utils import get_int_from_env

    if get_int_from_env(("WORLD_SIZE",), 1) == 1:
        if {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
            logger.warning(
                "accelerate was asked for several processes, but starts one on a machine without GPUs; "
                "accelerate launch --multi_gpu --num_processes=N starts them on any machine"
            )
        return Processes(), device
    from accelerate import PartialState

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device: '{device}' with several processes; allowed: auto, cpu, cuda")
    choose_device(device)
    # Without a GPU accelerate has to be told that CPUs are meant: unasked, each process would run as if it were alone.
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    wanted = get_int_from_env(("WORLD_SIZE",), 1)
    if state.num_processes != wanted:
        raise RuntimeError(f"{wanted} processes were started, but this one sees {state.num_processes}")
    return Processes(state.process_index, state.num_processes), str(state.device)


def end_processes() -> None:
    """Leave the group of processes, if there is one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


class Precision:
    """The arithmetic of forward and backward passes: float32, or a mixture with bfloat16 or float16.

    Args:
        mode: ``no``, ``bf16`` or ``fp16``.
        device: where the models are.

    Raises:
        UserError: float16 without CUDA.
    """

    def __init__(self, mode: str, device: torch.device):
        if mode == "fp16" and device.type != "cuda":
            raise UserError(f"mixed_precision: fp16 needs a CUDA device, not {device.type}; bf16 works everywhere")
        self.device = device
        self.dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mode]
        self.scaled = mode == "fp16"

    def autocast(self) -> AbstractContextManager[None]:
        """Context of every pass through a model."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)
