"""Whether the tables that options ask for can be held at all, found before the work begins."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from common.errors import UserError

_BYTES = 4  # of a number of float32
_OWN_GROUPS = Path("/proc/self/cgroup")  # on Linux: lines number:controllers:path, without controllers in version 2
_GROUPS = Path("/sys/fs/cgroup")


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
    """Bytes of memory, free or not; no more than a container is allowed."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_container_limits()])


def _container_limits() -> Iterator[int]:
    """The bytes that the control groups of this process allow, theirs and those of all above them.

    A container may see its own group as the topmost one, whatever path the host calls it by.
    """
    try:
        groups = [line.split(":", 2) for line in _OWN_GROUPS.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for _, controllers, path in groups:
        if controllers == "":
            top, name = _GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = _GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            try:
                limit = (folder / name).read_text(encoding="utf-8").strip()
            except OSError:
                limit = "max"  # of no limit; the file is also missing in the topmost group of version 2
            if limit.isdigit():
                yield int(limit)
            if folder == top:
                break
