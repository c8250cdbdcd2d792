"""Work in batches on the threads of a CPU, and the number of threads that small products use.

The feature maps of a convolutional tower take most memory: those of a few pictures fit into the processor's cache,
those of a whole batch do not. In a transformer the weights take most memory, and large batches share them. Importing
this module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from clipadapter.utils.devices import full_float32

if TYPE_CHECKING:
    from torch import Tensor, nn

PICTURES_PER_THREAD = 2  # pictures per thread and batch of a convolutional tower
MAX_PARALLEL_BATCHES = 8  # batches at the same time. With more, threads wait for Python's global lock.
MIN_MULTITHREADED_WORK = 50_000_000  # multiplications of a step below which a second thread gains nothing
MIN_PARALLEL_TASK_WORK = 2_000_000
"""Multiplications of a task's products below which several threads mostly wait for Python's global lock."""
MAX_TRANSFORMER_CONVOLUTIONS = 8
"""Most convolutions of a transformer, before its first block. A tower with more is convolutional."""

T = TypeVar("T")


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_convolutional(network: nn.Module) -> bool:
    """Whether a network is convolutional, so that feature maps take most of its memory."""
    from torch import nn

    return sum(isinstance(module, nn.Conv2d) for module in network.modules()) > MAX_TRANSFORMER_CONVOLUTIONS


def run_in_batches(run: Callable[[Tensor], Tensor], network: nn.Module, pixels: Tensor) -> Tensor:
    """Run a torch tower without gradients, in batches of the size that suits it."""
    import torch

    # On a CPU a convolutional tower gets small batches, one per thread. Threads that shared one layer would wait
    # whenever the threads that read pictures take the core of one of them.
    threads = torch.get_num_threads()
    workers = min(threads, MAX_PARALLEL_BATCHES)
    batches = pixels.split(PICTURES_PER_THREAD * (threads // workers))
    if pixels.device.type != "cpu" or len(batches) == 1 or not is_convolutional(network):
        with full_float32(pixels.device.type):
            return run(pixels)

    def run_batch(batch: Tensor) -> Tensor:
        with torch.inference_mode():  # the mode is set per thread
            return run(batch)

    return torch.cat(parallel_map([partial(run_batch, batch) for batch in batches], workers))


def parallel_map(tasks: Sequence[Callable[[], T]], workers: int | None = None, *, work: int | None = None) -> list[T]:
    """Run independent tasks on threads that divide torch's threads among them; results in the order of the tasks.

    A task must depend neither on the others nor on torch's global generator. With as many tasks as threads, each task
    has one thread. So results depend on the number of threads as little as one matrix product does.

    ``work`` is the number of multiplications of the products of a task. Tasks with small products spend their time in
    Python, so they run one after the other on one thread. None: the products are large.
    """
    import torch

    threads = torch.get_num_threads()
    workers = min(threads, len(tasks)) if workers is None else workers

    def run_with_fewer_threads(task: Callable[[], T]) -> T:
        torch.set_num_threads(threads // workers)
        return task()

    if work is not None and len(tasks) > 1 and (workers < 2 or work < MIN_PARALLEL_TASK_WORK):
        with limit_threads(0):
            return [task() for task in tasks]
    if workers < 2:
        return [task() for task in tasks]
    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(run_with_fewer_threads, tasks))
    finally:
        # The number is set per thread, but a new thread starts with the number that any thread set last.
        torch.set_num_threads(threads)


@contextmanager
def limit_threads(work: int) -> Iterator[None]:
    """Run steps of few multiplications on one thread: that is faster, above all on a busy machine."""
    import torch

    before = torch.get_num_threads()
    if work < MIN_MULTITHREADED_WORK:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
