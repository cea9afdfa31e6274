"""What a run computes with: accelerate's `Accelerator` (device, processes, precision), and how its work is shared.

Every process knows the whole plan of a run: the batches, and the random numbers with which their summaries are sampled.
It works on its rows of each batch, divides its losses by the size of the whole batch, and the gradients are summed.
So the number of processes changes nothing but rounding, and a process without a row simply adds nothing.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, broadcast, get_int_from_env, patch_environment

from common.errors import UserError
from common.training.runtime import choose_device

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Engine:
    """The `Accelerator` of a run, and the sharing of its work. Made by `start_engine`.

    accelerate wraps a plain forward pass; a step of this method samples, scores, ranks and then differentiates. So the
    models stay as they are, and gradients are summed where a step asks for it.

    Attributes:
        accelerator: as accelerate has it.
        rank: number of this process, from 0.
        count: how many processes there are.
        device: of this process.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.device: torch.device = accelerator.device
        if accelerator.scaler is not None:
            # Its scale is made at its first use, which a process without a row would not have.
            accelerator.scaler.scale(torch.zeros((), device=self.device))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[None]:
        """Context of every pass through a model that is trained: its matrix products in the precision of the run."""
        return self.accelerator.autocast()

    def end(self) -> None:
        """End the trackers and leave the group of processes, if there are any."""
        self.accelerator.end_training()

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
        """The bytes of every process, by rank.

        They travel as they are: accelerate's gathering of objects would unpickle what it receives.
        """
        lengths = self.accelerator.gather(torch.tensor([len(data)], device=self.device)).tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        everyone = self.accelerator.gather(padded.to(self.device)).cpu().view(self.count, -1)
        return [part[:length].numpy().tobytes() for part, length in zip(everyone, lengths, strict=True)]

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
            flat = broadcast(torch.cat([gradient.flatten() for gradient in there]))
            for gradient, part in zip(there, flat.split([g.numel() for g in there]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; None only where no process has one."""
        if self.count == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        has_gradient = torch.tensor([p.grad is not None for p in trained], device=self.device).int()
        somewhere = self.accelerator.reduce(has_gradient, "max").tolist()
        reduced = [p for p, there in zip(trained, somewhere, strict=True) if there]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in reduced])
        flat = self.accelerator.reduce(flat, "sum")
        for p, part in zip(reduced, flat.split([p.numel() for p in reduced]), strict=True):
            p.grad = part.view_as(p)


def start_engine(device: str = "auto", mixed_precision: str = "no") -> Engine:
    """Make the run's `Accelerator`, which joins the other processes that `accelerate launch` or torchrun started.

    Args:
        device: see `choose_device`; with several processes accelerate deals out the GPUs.
        mixed_precision: ``no``, ``bf16`` or ``fp16``.

    Raises:
        UserError: the device is not there, or was asked for by number where each process gets its own; or it cannot
            compute in that precision.
    """
    wanted = get_int_from_env(("WORLD_SIZE",), 1)
    if wanted > 1 and device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device: '{device}' with several processes; allowed: auto, cpu, cuda")
    chosen = choose_device(device)
    if mixed_precision == "fp16" and chosen.type != "cuda":
        raise UserError(f"mixed_precision: fp16 needs a CUDA device, not {chosen.type}; bf16 works everywhere")
    own: dict[str, Any] = {}
    if wanted == 1:
        if {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
            logger.warning(
                "accelerate was asked for several processes, but starts one on a machine without GPUs; "
                "accelerate launch --multi_gpu --num_processes=N starts them on any machine"
            )
        own = {"ACCELERATE_TORCH_DEVICE": chosen, "LOCAL_RANK": -1}
    # accelerate keeps one state a Python process, and another run may have been in it.
    AcceleratorState._reset_state(reset_partial_state=True)
    with patch_environment(**own):
        try:
            accelerator = Accelerator(
                # Without a GPU accelerate has to be told that CPUs are meant: unasked, each process would be alone.
                cpu=chosen.type == "cpu",
                mixed_precision=mixed_precision,
                # A step adds up its batches itself, whatever the launcher said: see `honour_launcher`.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            )
        except ValueError as error:
            raise UserError(f"mixed_precision: {mixed_precision} on {chosen.type}: {error}") from None
    if accelerator.num_processes != wanted:
        raise RuntimeError(f"{wanted} processes were started, but this one sees {accelerator.num_processes}")
    return Engine(accelerator)
