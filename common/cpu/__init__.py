"""Kernels for machines without a GPU: the numbers of transformers' own modules in less time and memory."""

_enabled = True


def use_kernels(enabled: bool) -> None:
    """Whether the models of this process compute with them (`cpu_kernels`); call it before models are loaded."""
    global _enabled
    _enabled = enabled


def kernels_in_use() -> bool:
    """What `use_kernels` was told last; True before."""
    return _enabled
