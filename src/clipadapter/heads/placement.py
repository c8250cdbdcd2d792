"""Where a head computes: on the CPU, or on a device to which its tensors are copied for a fit or a prediction.

What a head has learned is on the CPU before and after. So a model that was fitted on a GPU is saved, copied, edited and
loaded as any other. docs/decisions/0041-devices.md gives the reasons.

Methods need no code of their own for this. While a head computes on a device, new tensors are created there, and random
numbers are drawn on the CPU and moved, so that each device gets the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clipadapter.devices import current_device, full_float32, head_device, set_current_device
from clipadapter.errors import InputError

if TYPE_CHECKING:
    from clipadapter.heads.base import Head

DRAWS = frozenset((torch.rand, torch.randn, torch.randint, torch.randperm))
FACTORIES = frozenset(
    (torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.linspace, torch.logspace)
    + (torch.ones, torch.scalar_tensor, torch.tensor, torch.tril_indices, torch.triu_indices, torch.zeros)
)
"""Functions that create a tensor, and take a device."""
EARLIER_HEADS = ("_previous", "_full_fit")
"""Attributes of a head in a fit: earlier heads, whose learned tensors it reads."""

AnyHead = TypeVar("AnyHead", bound="Head")


class _CreateOnDevice(TorchFunctionMode):
    """Creates tensors on a device where no other one is named; draws are made on the CPU, and moved."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("device") is None:
            if func in DRAWS:
                return func(*args, **{**kwargs, "device": "cpu"}).to(self.device)
            if func in FACTORIES:
                kwargs = {**kwargs, "device": self.device}
        return func(*args, **kwargs)


@contextmanager
def use_device(device: str) -> Iterator[None]:
    """Create tensors on a device in this thread, and compute products of float32 in full precision.

    Args:
        device: as `devices.check_device` returns it.

    Raises:
        InputError: if the device has too little memory.
    """
    if device == current_device():
        yield
        return
    try:
        with set_current_device(device), full_float32(device), _CreateOnDevice(device):
            yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"the memory of the device '{device}' is too small for this ({str(error).splitlines()[0]}): end other "
            "programs that use it, or let the head compute on the CPU by head.to('cpu')"
        ) from error


@contextmanager
def fit_on_device(head: Head) -> Iterator[None]:
    """Let a head change on its device: its learned tensors are there inside, and on the CPU after."""
    device = _device_of(head)
    if device == "cpu" == current_device():
        yield
        return
    earlier = {name: getattr(head, name) for name in EARLIER_HEADS}
    with use_device(device):
        vars(head).update(learned_tensors(head, device))
        vars(head).update({name: _copy_to(each, device) for name, each in earlier.items() if each is not None})
        try:
            yield
        finally:
            vars(head).update({name: each for name, each in earlier.items() if each is not None})
            vars(head).update(learned_tensors(head, "cpu"))


@contextmanager
def predict_on_device(head: AnyHead) -> Iterator[AnyHead]:
    """A head with the same learned tensors on its device, to predict with; the head itself does not change."""
    device = _device_of(head)
    if device == "cpu" == current_device():
        yield head
        return
    with use_device(device):
        yield _copy_to(head, device)


def copy_to_device(head: AnyHead) -> AnyHead:
    """A head to predict with many times: what it learned is on its device as long as the copy lives.

    Each prediction of the head itself copies it. On the CPU it is the head itself.
    """
    with predict_on_device(head) as placed:
        return placed


def learned_tensors(head: Head, device: str) -> dict[str, Tensor]:
    """The learned tensors of a head by name, on a device."""
    return {k: v.to(device) for k, v in vars(head).items() if k.endswith("_") and isinstance(v, Tensor)}


def _copy_to(head: AnyHead, device: str) -> AnyHead:
    other = object.__new__(type(head))  # copy.copy would check the device each time
    vars(other).update({**vars(head), **learned_tensors(head, device)})
    return other


def _device_of(head: Head) -> str:
    """The head's own device, or that of the head in whose fit this one is fitted.

    A head that trains through a text tower moves its tensors to that tower itself.
    """
    if head.needs_tower:
        return "cpu"
    return current_device() if head.device is None else head_device(head.device)
