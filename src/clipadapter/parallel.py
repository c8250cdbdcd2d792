"""Work in pieces on the threads of a CPU: how many pictures an image tower works on at a time, and who does what.

The maps of a convolutional tower fill memory, and those of a few pictures stay in the processor's cache where those of
a whole batch do not. A transformer's weights fill it, which more pictures share. Nothing here loads torch by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
MIN_MULTITHREADED_WORK = 50_000_000
"""Multiplications of a step, below which a second thread gains nothing."""
MIN_PARALLEL_TASK_WORK = 2_000_000
"""Multiplications of a task's products, below which tasks on several threads wait for each other's Python."""
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


def parallel_map(tasks: Sequence[Callable[[], T]], workers: int | None = None, *, work: int | None = None) -> list[T]:
    """Results of independent tasks in their order, computed on threads that each have a share of torch's threads.

    A task must not depend on the others, nor on torch's global generator. The share of a task is one thread where
    there are as many tasks as threads, so results depend on the number of threads as little as one matrix product does.

    Args:
        tasks: functions without arguments.
        workers: tasks at the same time, at most as many as torch has threads; None for as many as it has.
        work: multiplications of the small products of a task. Tasks whose products are too small for threads run one
            after the other on one thread, because their time is spent in Python. None if they are large.

    >>> parallel_map([lambda: 1, lambda: 2], workers=1)
    [1, 2]
    """
    import torch

    threads = torch.get_num_threads()
    workers = min(threads, len(tasks)) if workers is None else workers

    def run_with_share(task: Callable[[], T]) -> T:
        torch.set_num_threads(threads // workers)
        return task()

    if work is not None and len(tasks) > 1 and (workers < 2 or work < MIN_PARALLEL_TASK_WORK):
        with limit_threads(0):
            return [task() for task in tasks]
    if workers < 2:
        return [task() for task in tasks]
    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(run_with_share, tasks))
    finally:
        # The number is each thread's own, but a new thread begins with the one that was set last, in whichever.
        torch.set_num_threads(threads)


@contextmanager
def limit_threads(work: int) -> Iterator[None]:
    """Run small products on one thread: several threads would wait for each other, most of all beside other programs.

    Args:
        work: multiplications of one step. From 50 million on the number of threads stays as it is.
    """
    import torch

    before = torch.get_num_threads()
    if work < MIN_MULTITHREADED_WORK:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_row_batches(run: Callable[[NDArray[Any]], NDArray[Any]], rows: NDArray[Any], size: int) -> NDArray[Any]:
    """What a function of rows says of at most ``size`` at a time.

    >>> map_row_batches(lambda rows: rows + len(rows), np.zeros((3, 1)), 2).ravel()
    array([2., 2., 1.])
    """
    if len(rows) <= size:
        return run(rows)
    return np.concatenate([run(rows[i : i + size]) for i in range(0, len(rows), size)])
