"""Whether the tables that options ask for can be held at all, found before the work begins."""

import os
from collections.abc import Mapping

import torch

from common.errors import UserError

_BYTES = 4  # of a number of float32


def check_memory(tables: Mapping[str, int], device: torch.device) -> None:
    """Refuse options of which one table alone is larger than the memory of the device.

    What fits may still be too much together with models and gradients; that is said when it happens.

    Args:
        tables: by the options that decide its size, in words: how many numbers the table has.

    Raises:
        UserError: naming the options of the largest table.
    """
    if not tables:
        return
    options, numbers = max(tables.items(), key=lambda item: item[1])
    there = memory_of(device)
    if numbers * _BYTES > there:
        raise UserError(
            f"{options}: a table of {numbers:.2g} numbers needs {numbers * _BYTES / 2**30:.3g} GiB, and "
            f"{'the machine' if device.type != 'cuda' else device} has {there / 2**30:.3g}"
        )


def memory_of(device: torch.device) -> int:
    """Bytes of memory, free or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
