"""A GPU that is not there: tensors carry a pretended device, the arithmetic is done on the CPU.

Within `PretendedDevice()`, ``device="cuda:0"`` gives tensors that say they are there. As on a real GPU

* a call that takes tensors of two devices is an error (a CPU number among operands and CPU indices are none),
* a generator must be of the device of what it draws,
* whatever the CPU has to wait for is a synchronisation: it is counted, with the line of the project that caused it.

What C++ makes out of sight (gradients, tensors that autograd keeps) has no device until it meets a tensor that has one.
Kernels, streams, memory and the numbers of a GPU's own arithmetic are not simulated.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("chat_task", "common", "prompt_task", "sum_task")

# The CPU waits for the device in these, by their last name; some only with certain arguments, see `_waits`.
WAITING = {
    "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__", "nonzero",
    "argwhere", "unique", "unique_consecutive", "_unique2", "unique_dim", "masked_select", "equal", "allclose",
    "is_nonzero", "bincount", "histc", "cpu", "__repr__", "__format__",
}  # fmt: skip
INDEXING = {"__getitem__", "__setitem__", "index_put_", "index_put", "index"}
ACROSS = {"copy_", "to", "cpu", "cuda", "type_as", "__set__", "_has_compatible_shallow_copy_type"}


class MixedDevices(AssertionError):
    """A call that a GPU would refuse."""


def device_of(tensor: torch.Tensor) -> torch.device | None:
    """Where a tensor pretends to be; None where it has not been said."""
    return getattr(tensor, "_pretended", None)


class PretendedDevice(TorchFunctionMode):
    """The mode. `waits` counts synchronisations by the line of the project from which they came.

    `pinned` is how often memory was pinned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.pinned = 0

    @property
    def count(self) -> int:
        return self.waits.total()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = getattr(getattr(func, "__self__", None), "__name__", "")
        if name == "__get__":
            return self._attribute(func, owner, args)
        if name == "__set__":
            return self._set(func, owner, args)
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        found = {device_of(tensor) for tensor in tensors} - {None}
        target, args, kwargs = self._target(name, args, kwargs, tensors)
        self._check(func, name, args, tensors, found)
        place = target or (DEVICE if DEVICE in found else CPU)
        if any(isinstance(v, torch.Generator) and v.device.type != place.type for v in (*args, *kwargs.values())):
            raise MixedDevices(f"{name} on {place} with a generator of another device, at {_line()}")
        if DEVICE in found and self._waits(name, args, kwargs, target):
            self.waits[_line()] += 1
        if name == "pin_memory":
            self.pinned += 1
            return args[0]
        result = func(*args, **kwargs)
        if target is not None:
            if any(result is tensor for tensor in tensors) and device_of(result) not in (target, None):
                result = result.clone()  # as a copy between two memories is
            return _tag(result, target, force=True)
        result_place = self._result_device(name, args, found)
        return tree_map(lambda value: _tag(value, result_place), result)

    def _attribute(self, func: Any, owner: str, args: Any) -> Any:
        tensor = args[0]
        own = device_of(tensor)
        if owner == "device" and own is not None:
            return own
        if owner in ("is_cuda", "is_cpu") and own is not None:
            return own.type == owner[3:]
        result = func(*args)
        return _tag(result, own) if isinstance(result, torch.Tensor) and own is not None else result

    def _set(self, func: Any, owner: str, args: Any) -> Any:
        tensor, value = args[0], args[1] if len(args) > 1 else None
        if isinstance(value, torch.Tensor):
            own, other = device_of(tensor), device_of(value)
            if owner == "data":
                _tag(tensor, other, force=True)
            elif owner == "grad" and own is not None and other is not None and own != other:
                raise MixedDevices(f"a gradient on {other} for a weight on {own}, at {_line()}")
        return func(*args)

    def _target(
        self, name: str, args: Any, kwargs: dict[str, Any], tensors: list[torch.Tensor]
    ) -> tuple[torch.device | None, Any, dict[str, Any]]:
        """The device that a call names, and its arguments with the CPU in the place of the pretended one."""
        target = None
        if name == "to" and len(args) > 1 and isinstance(args[1], torch.Tensor):
            target = device_of(args[1])
        if name == "cpu":
            target = CPU
        if name == "cuda":
            return DEVICE, (args[0],), {}

        def replaced(value: Any) -> Any:
            nonlocal target
            if isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu")):
                device = torch.device(value)
                if device.type == "cuda":
                    target = DEVICE
                    return CPU
                if device.type == "cpu":
                    target = CPU
            return value

        if name in ("to", "new_tensor") or "device" in kwargs:
            args = tuple(replaced(value) for value in args)
            kwargs = {key: replaced(value) if key == "device" else value for key, value in kwargs.items()}
        if not tensors and target is None and kwargs.get("device") is None:
            target = CPU
        return target, args, kwargs

    def _check(self, func: Any, name: str, args: Any, tensors: list[torch.Tensor], found: set[Any]) -> None:
        if len(found) < 2 or name in ACROSS:
            return
        if name in INDEXING:
            if device_of(args[0]) == DEVICE:
                return  # CPU indices and numbers are taken there
        elif all(device_of(tensor) == DEVICE or tensor.dim() == 0 for tensor in tensors):
            return
        raise MixedDevices(f"{resolve_name(func) or name} of tensors on {sorted(map(str, found))}, at {_line()}")

    def _waits(self, name: str, args: Any, kwargs: dict[str, Any], target: torch.device | None) -> bool:
        if name in WAITING:
            return device_of(args[0]) == DEVICE if isinstance(args[0], torch.Tensor) else True
        if name == "to":
            return target == CPU and device_of(args[0]) == DEVICE
        if name == "copy_":
            return device_of(args[0]) == CPU and device_of(args[1]) == DEVICE
        if name in INDEXING and len(args) > 1:
            indices = args[1] if isinstance(args[1], tuple | list) else (args[1],)
            masks = [i for i in indices if isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)]
            scalars = [i for i in indices if isinstance(i, torch.Tensor) and i.dim() == 0 and device_of(i) == DEVICE]
            return bool(scalars) or (bool(masks) and not (name == "__setitem__" and _is_fill(args)))
        if name == "where":
            return len(args) + len(kwargs) == 1
        if name == "repeat_interleave":
            repeats = args[1] if len(args) > 1 else kwargs.get("repeats", args[0])
            return isinstance(repeats, torch.Tensor) and kwargs.get("output_size") is None
        return False

    def _result_device(self, name: str, args: Any, found: set[Any]) -> torch.device | None:
        if name in INDEXING:
            return device_of(args[0])
        if DEVICE in found:
            return DEVICE
        return next(iter(found), None)


def _is_fill(args: Any) -> bool:
    """``x[mask] = number``, which is a masked fill and waits for nothing."""
    return len(args) > 2 and (not isinstance(args[2], torch.Tensor) or args[2].dim() == 0)


def _tag(value: Any, place: torch.device | None, force: bool = False) -> Any:
    is_free = isinstance(value, torch.Tensor) and (force or device_of(value) is None)
    if is_free and place is not None and value.device.type != "meta":
        value._pretended = place
    return value


def _line() -> str:
    """The innermost line of the project that is being executed."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PRODUCT:
            return f"{path.relative_to(ROOT)}:{frame.lineno} {frame.line}"
    return "elsewhere"


def _grouped(group: Callable[..., Any]) -> Callable[..., Any]:
    """Optimizers and clipping sort tensors by device in C++, which knows the CPU alone."""

    def call(*args: Any) -> Any:
        renamed = {}
        for (device, dtype), (lists, indices) in group(*args).items():
            places = {device_of(tensor) for tensor in lists[0] if tensor is not None}
            if len(places - {None}) > 1:
                raise MixedDevices(f"an optimizer step over tensors on {places}")
            renamed[(next(iter(places - {None}), device), dtype)] = (lists, indices)
        return renamed

    return call


def _parameter(new: Callable[..., Any]) -> Callable[..., Any]:
    """Weights are where the tensor is that they are made of; C++ makes them unseen."""

    def make(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        return _tag(new(cls, data, requires_grad), None if data is None else device_of(data))

    return make


@contextmanager
def pretended_device() -> Iterator[PretendedDevice]:
    """A machine with one GPU."""
    patches: list[Any] = [
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(torch.cuda, "device_count", lambda: 1),
        mock.patch.object(torch.cuda, "set_device", lambda device: None),
        mock.patch.object(torch.cuda, "current_device", lambda: 0),
        mock.patch.object(torch.cuda, "get_device_name", lambda device=None: "a pretended GPU"),
        mock.patch.object(torch.cuda, "get_device_properties", lambda device=None: mock.Mock(total_memory=2**36)),
        mock.patch.object(torch.cuda, "max_memory_allocated", lambda device=None: 0),
        mock.patch.object(torch.cuda, "get_rng_state_all", list),
        mock.patch.object(torch.cuda, "manual_seed_all", lambda seed: None),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: False),
        mock.patch.object(torch.nn.Parameter, "__new__", _parameter(torch.nn.Parameter.__new__)),
        mock.patch.object(
            torch._C, "_group_tensors_by_device_and_dtype", _grouped(torch._C._group_tensors_by_device_and_dtype)
        ),
    ]
    mode = PretendedDevice()
    for patch in patches:
        patch.start()
    try:
        with mode:
            yield mode
    finally:
        for patch in reversed(patches):
            patch.stop()
