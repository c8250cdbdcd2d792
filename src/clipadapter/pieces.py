"""How many pictures an image tower works on at a time, on a CPU.

The maps of a convolutional tower fill memory, and those of a few pictures stay in the processor's cache where those of
a whole batch do not. A transformer's weights fill it, which more pictures share. Nothing here loads torch by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

A_THREAD = 2
"""Pictures for each thread, in a convolutional tower."""
CONVOLUTIONS = 8
"""A tower with more of them is convolutional; a transformer has one, or a few in front."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_convolutional(network: nn.Module) -> bool:
    """Whether maps are what its pictures fill memory with.

    >>> import torch
    >>> is_convolutional(torch.nn.Conv2d(3, 8, 3))
    False
    """
    from torch import nn

    return sum(isinstance(module, nn.Conv2d) for module in network.modules()) > CONVOLUTIONS


def in_pieces(run: Callable[[Tensor], Tensor], network: nn.Module, pixels: Tensor) -> Tensor:
    """What a tower of torch says of pictures, so many at a time as suit it.

    Args:
        run: the tower, which gives a row a picture.
        network: its layers.
        pixels: (n, ...) where it is, n at least 1.

    Returns:
        (n, d).
    """
    import torch

    size = A_THREAD * torch.get_num_threads()
    if pixels.device.type != "cpu" or len(pixels) <= size or not is_convolutional(network):
        return run(pixels)
    return torch.cat([run(piece) for piece in pixels.split(size)])


def rows_in_pieces(run: Callable[[NDArray[Any]], NDArray[Any]], rows: NDArray[Any], size: int) -> NDArray[Any]:
    """What a function of rows says of at most ``size`` at a time.

    >>> rows_in_pieces(lambda rows: rows + len(rows), np.zeros((3, 1)), 2).ravel()
    array([2., 2., 1.])
    """
    if len(rows) <= size:
        return run(rows)
    return np.concatenate([run(rows[i : i + size]) for i in range(0, len(rows), size)])
