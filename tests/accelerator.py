"""A stand-in for a GPU: a device of torch that computes on the CPU and behaves towards the host as CUDA does.

Tensors on it raise when they meet one of the host in an operation, where CUDA would; and what would make the host wait
for a GPU is counted, with the line of this project that asked for it.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import rl4rec

NAME = "fake"
_COPIES = {"_to_copy", "copy_", "_copy_from"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_WAITING = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "masked_select",
    "multinomial",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
_TAKE_NUMBERS = {"fill", "fill_", "masked_fill", "masked_fill_"}  # of the host; and what computes element by element
_HERE = f"{Path(rl4rec.__file__).parent}/"


class MixedDevices(RuntimeError):
    """Tensors of the host and of the device met in one operation."""


class FakeTensor(torch.Tensor):
    """A tensor on the device, computed as the CPU tensor `inner`."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> FakeTensor:
        tensor: FakeTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, None)

    def __repr__(self, **_: Any) -> str:
        return f"FakeTensor({self.inner})"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        found: torch.Tensor = FakeTensor(self.inner.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            found = torch.nn.Parameter(found, requires_grad=self.requires_grad)
        memo[id(self)] = found  # tied weights stay one
        return found

    def tolist(self) -> Any:
        """Read from the device, which waits for it."""
        if FakeDevice.active is not None:
            FakeDevice.active.count("tolist")
        return self.inner.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """For safetensors, which sees by it and by `data_ptr` which tensors are one."""
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        """See `untyped_storage`."""
        return self.inner.data_ptr()

    def numpy(self, **_: Any) -> Any:
        """As CUDA: copy it to the host first."""
        raise MixedDevices(f"numpy of a tensor on the device ({_where()})")


class FakeDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on and moved to the device `fake:0`.

    Attributes:
        waits: how often the host would have waited, by (operation, line of this project).
    """

    active: FakeDevice | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.device = torch.device(NAME, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self)

    def count(self, operation: str) -> None:
        """Count one wait of the host."""
        self.waits[operation, _where()] += 1


@functools.cache
def register() -> None:
    """Make the device known to torch; once in a process, it cannot be undone."""
    _setup_privateuseone_for_python_backend(NAME)


@contextmanager
def fake_device() -> Iterator[FakeDevice]:
    """The device, while the block runs; modules that are moved keep their parameters, and so their ties."""
    register()
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(.., device=..)` makes it on the host and copies it
    try:
        with FakeDevice() as device:
            FakeDevice.active = device
            yield device
    finally:
        FakeDevice.active = None
        torch.__future__.set_swap_module_params_on_conversion(before)
        torch._C._set_only_lift_cpu_tensors(lifted)


def _run(func: Any, args: Any, kwargs: dict[str, Any], mode: FakeDevice | None) -> Any:
    device = mode or FakeDevice.active
    name: str = func._schema.name.split("::")[-1]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_device = any(isinstance(each, FakeTensor) for each in tensors)
    wanted = kwargs.get("device")
    placed = on_device if wanted is None else torch.device(wanted).type == NAME
    if name not in _COPIES:
        _refuse_mixtures(func, name, tensors, args)
    if device is not None and on_device | placed:
        _count_waits(device, name, tensors, args, kwargs, placed=placed)
    with torch.utils._python_dispatch._disable_current_modes():
        found = func(*tree_map(_inner, args), **{key: _inner(value) for key, value in kwargs.items()})
    written = [
        args[place] if place < len(args) else kwargs[argument.name]
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if written and func._schema.returns:  # an operation in place returns the tensor that it was given
        return written[0] if len(written) == 1 else tuple(written)
    return tree_map(_on_device, found) if placed else found


def _inner(value: Any) -> Any:
    """What computes on the CPU in place of the device."""
    if isinstance(value, FakeTensor):
        return value.inner
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    return tree_map(_inner, value) if isinstance(value, list | tuple) else value


def _on_device(value: Any) -> Any:
    plain = isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)
    return FakeTensor(value) if plain else value


def _refuse_mixtures(func: Any, name: str, tensors: list[torch.Tensor], args: Any) -> None:
    """As CUDA: of the host may be indices, and numbers (of no dimension) where an operation takes them."""
    numbers = name in _TAKE_NUMBERS or torch.Tag.pointwise in func.tags
    if name in _INDEXING and isinstance(args[0], FakeTensor):
        tensors, numbers = [each for each in (args[0], *args[2:3]) if isinstance(each, torch.Tensor)], True
    written = bool(func._schema.arguments) and func._schema.arguments[0].is_write
    kinds = {
        isinstance(each, FakeTensor)
        for place, each in enumerate(tensors)
        if each.dim() > 0 or isinstance(each, FakeTensor) or not numbers or (written and place == 0)
    }
    if len(kinds) == 2:
        raise MixedDevices(f"{name}: tensors of the host and of the device ({_where()})")


def _count_waits(
    device: FakeDevice, name: str, tensors: list[torch.Tensor], args: Any, kwargs: dict[str, Any], *, placed: bool
) -> None:
    if name in _COPIES:
        source = args[1] if name == "copy_" else args[0]
        target = isinstance(args[0], FakeTensor) if name == "copy_" else placed
        asked = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if isinstance(source, FakeTensor) != target and not (asked and target):
            device.count(name)  # to the host always: it wants to read
    elif name in _WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        device.count(name)
    elif name in _INDEXING:
        indices = [each for each in tree_leaves(args[1]) if isinstance(each, torch.Tensor)]
        if any(each.dtype in (torch.bool, torch.uint8) for each in indices):
            device.count(f"{name} by a mask")
        elif any(not isinstance(each, FakeTensor) for each in indices):
            device.count(f"{name} by rows of the host")


def _where() -> str:
    """The innermost line of this project."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_HERE):
            return f"{frame.f_code.co_filename.removeprefix(_HERE)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside of rl4rec"
