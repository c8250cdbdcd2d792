"""Work in pieces on the threads of a CPU: how many pictures an image tower works on at a time, and who does what.

The maps of a convolutional tower fill memory, and those of a few pictures stay in the processor's cache where those of
a whole batch do not. A transformer's weights fill it, which more pictures share. Nothing here loads torch by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

PICTURES_PER_THREAD = 2
"""Pictures for each thread, in a convolutional tower."""
MAX_PARALLEL_BATCHES = 8
"""Pieces at the same time: with more, threads wait for each other's Python."""
CONVOLUTIONS = 8
"""A tower with more of them is convolutional; a transformer has one, or a few in front."""

T = TypeVar("T")


def count_cores() -> int:
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


def run_in_batches(run: Callable[[Tensor], Tensor], network: nn.Module, pixels: Tensor) -> Tensor:
    """What a tower of torch says of pictures, without a gradient, worked on as suits it.

    A convolutional tower on a CPU takes a few at a time, each thread its own: threads that work on the same layer would
    wait for one that has to leave its core to those that read pictures.

    Args:
        run: the tower, which gives a row a picture.
        network: its layers.
        pixels: (n, ...) where it is, n at least 1.

    Returns:
        (n, d).
    """
    import torch

    threads = torch.get_num_threads()
    workers = min(threads, MAX_PARALLEL_BATCHES)
    pieces = pixels.split(PICTURES_PER_THREAD * (threads // workers))
    if pixels.device.type != "cpu" or len(pieces) == 1 or not is_convolutional(network):
        return run(pixels)

    def one(piece: Tensor) -> Tensor:
        with torch.inference_mode():  # holds for one thread
            return run(piece)

    return torch.cat(parallel_map([partial(one, piece) for piece in pieces], workers))


def parallel_map(tasks: Sequence[Callable[[], T]], workers: int) -> list[T]:
    """Results of independent tasks in their order, on threads that have each its share of those of torch.

    Args:
        tasks: what is to be done.
        workers: how many at the same time, at most as many as torch has threads.

    >>> parallel_map([lambda: 1, lambda: 2], workers=1)
    [1, 2]
    """
    import torch

    threads = torch.get_num_threads()

    def with_its_share(task: Callable[[], T]) -> T:
        torch.set_num_threads(threads // workers)
        return task()

    if workers < 2:
        return [task() for task in tasks]
    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(with_its_share, tasks))
    finally:
        # The number is each thread's own, but a new thread begins with the one that was set last, in whichever.
        torch.set_num_threads(threads)


def map_row_batches(run: Callable[[NDArray[Any]], NDArray[Any]], rows: NDArray[Any], size: int) -> NDArray[Any]:
    """What a function of rows says of at most ``size`` at a time.

    >>> map_row_batches(lambda rows: rows + len(rows), np.zeros((3, 1)), 2).ravel()
    array([2., 2., 1.])
    """
    if len(rows) <= size:
        return run(rows)
    return np.concatenate([run(rows[i : i + size]) for i in range(0, len(rows), size)])
