"""A second device for tests on machines without a GPU, which computes on the CPU and refuses what a GPU refuses.

Inside `simulated_device` tensors of the device "meta" have numbers. Each is a wrapper around a tensor on the CPU, as
torch's own `FakeTensor` is one around a tensor without numbers. An operation unwraps them and wraps its result. It
raises the error that CUDA raises if

- it gets tensors of both devices. CUDA allows numbers (tensors without axes) and rows numbers on the CPU, as here;
- it draws random numbers by a generator of the CPU;
- it multiplies matrices of integers, or solves least squares of matrices without full rank.

Such a tensor has no ``.numpy()``. What this can't show: speed, rounding, what a kernel of CUDA lacks otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "meta"
"""The name of the device. torch opens no driver for it, and runs the backward pass in the same thread."""
aten = torch.ops.aten
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
"""Operations that take row numbers on the CPU, for a tensor of any device."""
MATRIX_PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.addmm_, aten.baddbmm, aten.mv, aten.dot, aten.addmv)
WITH_DATA = (torch.tensor, torch.as_tensor, torch.asarray)
"""Functions that torch does not run by operations if they are to create a tensor on this device."""


class DeviceTensor(Tensor):
    """A tensor of the simulated device; ``cpu`` has its numbers."""

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> "DeviceTensor":
        shape, strides, offset = on_cpu.shape, on_cpu.stride(), on_cpu.storage_offset()
        return Tensor._make_wrapper_subclass(cls, shape, strides, offset, dtype=on_cpu.dtype, device=DEVICE)

    def __init__(self, on_cpu: Tensor) -> None:
        self.on_cpu = on_cpu

    def tolist(self) -> object:
        """The numbers; torch has no such method of wrappers."""
        return self.on_cpu.tolist()

    def __repr__(self) -> str:
        return f"{self.on_cpu!r} on {DEVICE}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Data(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in WITH_DATA and kwargs.get("device") is not None and torch.device(kwargs["device"]).type == DEVICE:
            needs_gradient = kwargs.get("requires_grad", False)
            created = func(
                *args, **{**kwargs, "device": "cpu", "requires_grad": False} if func is torch.tensor else kwargs
            )
            return created.to(DEVICE).requires_grad_(needs_gradient)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list):
            args = args[0], torch.tensor(args[1], dtype=torch.int64), *args[2:]
        if func is Tensor.new_tensor and isinstance(args[0], DeviceTensor) and "device" not in kwargs:
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(DEVICE)
        return func(*args, **kwargs)


def _run(func, args, kwargs):
    if _is_composite(func):
        with _Operations():  # in inference mode torch does not divide such an operation into its parts before
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    found: list[object] = []
    args_on_cpu = _map_leaves(args, lambda leaf: _to_cpu(leaf, found))
    kwargs_on_cpu = {name: _map_leaves(value, lambda leaf: _to_cpu(leaf, found)) for name, value in kwargs.items()}
    is_there, device = DeviceTensor in found, kwargs.get("device")
    is_result_there = is_there if device is None else torch.device(device).type == DEVICE
    if is_there or is_result_there:
        _refuse(func.overloadpacket, args, found)
    if device is not None:
        kwargs_on_cpu["device"] = "cpu"
    result = func(*args_on_cpu, **kwargs_on_cpu)
    if not is_result_there:
        return result
    kind = _alias(func)
    if kind == "in place":
        return args[0]
    # A view is used in a gradient if its tensor is.
    with torch.inference_mode(args[0].is_inference()) if kind == "view" and is_there else nullcontext():
        return _map_leaves(result, lambda leaf: DeviceTensor(leaf) if isinstance(leaf, Tensor) else leaf)


def _map_leaves(value, function):
    if isinstance(value, (list, tuple)):
        return type(value)(_map_leaves(each, function) for each in value)
    return function(value)


def _to_cpu(leaf, found):
    """What the CPU computes with; notes the types of tensors with axes, and of generators."""
    if isinstance(leaf, DeviceTensor):
        found.append(DeviceTensor)
        return leaf.on_cpu
    assert not isinstance(leaf, Tensor) or leaf.device.type == "cpu", "this tensor has no numbers"
    if isinstance(leaf, torch.Generator) or (isinstance(leaf, Tensor) and leaf.ndim):
        found.append(type(leaf))
    return leaf


def _refuse(operation, args, found):
    """Raise what CUDA raises."""
    if torch.Generator in found:
        raise RuntimeError(f"Expected a '{DEVICE}' device type for generator but found 'cpu'")
    if DeviceTensor not in found:
        return
    is_cpu_indexed = operation in INDEXING and not isinstance(args[0], DeviceTensor)
    is_mixed = any(kind is not DeviceTensor for kind in found)
    if is_cpu_indexed or (is_mixed and operation not in (*INDEXING, aten.copy_, aten._to_copy)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found two devices in {operation}")
    if operation in MATRIX_PRODUCTS and not args[0].is_floating_point():
        raise RuntimeError(f'"addmm_cuda" not implemented for {args[0].dtype}')
    if operation is aten.linalg_lstsq:
        raise RuntimeError("linalg.lstsq: on CUDA it needs matrices of full rank")


@cache
def _is_composite(func):
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@cache
def _alias(func):
    """Whether the operation returns its first tensor "in place", a "view" of it, or a new tensor: ""."""
    aliases = [returned.alias_info for returned in func._schema.returns]
    if not aliases or aliases[0] is None:
        return ""
    return "in place" if aliases[0].is_write else "view"


@contextmanager
def simulated_device() -> Iterator[str]:
    """The name of a device that this machine has inside."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # in place torch changes the wrapper only
    try:
        with _Operations(), _Data():
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
