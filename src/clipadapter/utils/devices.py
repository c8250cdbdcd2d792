"""Devices: which names there are, whether this machine has one, and what is computed on it.

A device has the name that torch gives it, such as "cuda:1". Towers run on any of them. Heads compute on the CPU.
Importing this module does not import torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

from clipadapter.errors import InputError, brief

DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices. A number can follow, as in "cuda:1"; "auto" is the GPU of this machine, or else the CPU."""


def check_device(device: str) -> str:
    """The same name, if this machine has the device; for "auto" that of the first GPU that torch finds, or "cpu"."""
    if device == "cpu":
        return device
    import torch

    if device == "auto":
        found = {"cuda": torch.cuda, "mps": torch.mps, "xpu": torch.xpu}
        return next((kind for kind, module in found.items() if module.is_available()), "cpu")
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"no device is called {brief(device)}: give {', '.join(DEVICES)} or auto, or one of several such as "
            "cuda:1. cuda is a GPU of NVIDIA or AMD"
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"the device '{device}' can't be used on this machine: torch {torch.__version__} was installed without "
            "CUDA, or finds no GPU or no driver for it. 'nvidia-smi' should list the GPU; install the build of torch "
            "for it (https://pytorch.org/get-started/locally), or give cpu or auto"
        )
    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        count = f"; it has {torch.cuda.device_count()} of cuda, counted from 0" if kind == "cuda" else ""
        is_absent = isinstance(error, NotImplementedError)  # whose text lists all backends of torch
        reason = f"torch {torch.__version__} has no {kind}" if is_absent else str(error).split("\n")[0]
        raise InputError(
            f"the device '{device}' can't be used on this machine ({reason}){count}: give cpu or auto"
        ) from error
    return device


def count_gpus(device: str) -> int:
    """How many GPUs of this machine a device stands for: all for "cuda", one for "cuda:1", none for "cpu"."""
    if device != "cuda":
        return int(device != "cpu")
    import torch

    return torch.cuda.device_count()


def describe_device(device: str) -> str:
    """Name what something computes on, for records: "cpu", or the kind of device and the name of the card.

    Two cards of one name are the same device, since results and times do not depend on the number of the card.

    >>> describe_device("cpu"), describe_device("mps")
    ('cpu', 'mps')
    """
    kind = device.partition(":")[0]
    if kind != "cuda":
        return kind
    import torch

    return f"cuda, {torch.cuda.get_device_name(device)}"


class SharedChange:
    """A change of this process, such as of a setting, that lasts as long as any thread needs it."""

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self._change = change  # makes the change, and returns the function that takes it back
        self._lock, self._users = threading.Lock(), 0

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Make the change, unless another thread has made it."""
        with self._lock:
            if not self._users:
                self._take_back = self._change()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._take_back()


def full_float32(device: str) -> AbstractContextManager[None]:
    """Compute products of float32 on a GPU with all their digits, as the CPU does.

    TF32 has 10 bits of each factor. By torch's defaults convolutions use it, and a program can switch it on for
    matrix products too. torch has one such setting per process.
    """
    return _tf32_off.needed() if device.startswith("cuda") else nullcontext()


def _switch_tf32_off() -> Callable[[], None]:
    """Set what decides about TF32, and return what restores it.

    torch 2.9 has new settings beside the older ones. It refuses to read an older one that contradicts them, so both are
    set. To set an older one changes the new ones, so these come after it.
    """
    import torch

    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    settings: list[Any] = [(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")]
    settings.append(_attribute(cudnn, "allow_tf32", False))
    if hasattr(matmul, "fp32_precision"):
        new = (matmul, backends.mkldnn.matmul, cudnn.conv, cudnn.rnn)
        settings += [_attribute(each, "fp32_precision", "ieee") for each in new]
    before = []
    for setting in settings:
        with suppress(RuntimeError):  # an older one that contradicts the new ones of this program
            before.append((*setting, setting[0]()))
    for _, write, value, _ in before:
        write(value)

    def restore() -> None:
        for read, write, _, value in before:
            if read() != value:  # one that inherits its value keeps doing so
                write(value)

    return restore


def _attribute(owner: Any, name: str, value: Any) -> tuple[Any, Any, Any]:
    """What reads an attribute, what sets it, and the value to set."""
    return partial(getattr, owner, name), partial(setattr, owner, name), value


_tf32_off = SharedChange(_switch_tf32_off)
