"""Runs fits in processes on this machine: as many as memory and cores allow, or one for each GPU."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from clipadapter.utils.devices import count_gpus
from clipadapter.utils.parallel import count_cores

PROCESS_BYTES = 700 << 20  # bytes of Python, torch and a fit of typical size, besides the features
MEMORY_FRACTION = 0.8  # how much of the free memory is used
MAX_ATTEMPTS = 3  # how often a task is tried whose worker dies
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerDiedError(Exception):
    """Every worker that tried a task died."""


@dataclass
class Launcher:
    """Runs one function on many tasks in processes on this machine. It survives the death of a worker.

    A single worker is this process.

    >>> list(Launcher(workers=1).run(str.upper, ["a"]))
    [(0, 'A')]
    """

    workers: int | None = None  # None: as many as cores and memory allow
    memory: int = 0  # bytes that one worker needs
    device: str = "cpu"  # where fits compute; with a GPU there is one worker per GPU by default

    def run(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Generator[tuple[int, Result | WorkerDiedError], None, None]:
        """Yield the position of a task and its result as they are finished; closing the iterator stops the work."""
        workers = self.count_workers(len(tasks))
        if workers > 1:
            yield from _pool(function, tasks, workers, max(1, count_cores() // workers), list_gpus(self.device))
            return
        for i, task in enumerate(tasks):
            yield i, function(task)

    def count_workers(self, tasks: int) -> int:
        """The number of workers: as requested, or as many as tasks, memory, and GPUs or else cores allow."""
        count = min(self.workers or count_gpus(self.device) or count_cores(), max(tasks, 1))
        if self.workers is not None:
            return count
        return max(1, min(count, int(MEMORY_FRACTION * free_memory() // (PROCESS_BYTES + self.memory))))


def free_memory() -> int:
    """Bytes of free memory; 4 GB if the system does not report it."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 4 << 30


def list_gpus(device: str) -> list[str]:
    """The GPUs that workers share, as CUDA_VISIBLE_DEVICES names them; none if the device's name says which one."""
    count = count_gpus(device)
    if count < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in visible.split(",")][:count] if visible else [str(i) for i in range(count)]


def _pool(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, threads: int, gpus: Sequence[str]
) -> Generator[tuple[int, Result | WorkerDiedError], None, None]:
    """Run tasks in a pool of processes, which is started again if a worker dies, and tries its tasks again."""
    queue, tries = deque(range(len(tasks))), Counter[int]()

    def can_submit() -> bool:
        """Whether the next task may be submitted: one per worker, and alone for its last attempt."""
        # If a worker dies, each submitted task counts a failed attempt. Made alone, the last attempt of a task whose
        # worker always dies does not fail others three times.
        if any(tries[i] == MAX_ATTEMPTS - 1 for i in (queue[0], *running.values())):
            return not running
        return len(running) < workers

    while queue:
        context = multiprocessing.get_context("spawn")
        worker_end, parent_end = context.Pipe(duplex=False)
        free_gpus: SimpleQueue[str] = context.SimpleQueue()  # from which each worker takes one
        for i in range(workers if gpus else 0):
            free_gpus.put(gpus[i % len(gpus)])
        initargs = threads, worker_end, free_gpus if gpus else None
        pool = ProcessPoolExecutor(workers, context, initializer=_init_worker, initargs=initargs)
        running: dict[Future[Result], int] = {}
        results: list[tuple[int, Result | WorkerDiedError]] = []
        try:
            while queue or running or results:
                # Before results are yielded: the caller writes them, and the workers continue meanwhile.
                while queue and can_submit():
                    i = queue.popleft()
                    running[pool.submit(function, tasks[i])] = i
                while results:
                    yield results.pop()
                if running:
                    future = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
                    i = running.pop(future)
                    results.append((i, future.result()))
        except BrokenProcessPool:
            yield from results
            lost = [i, *running.values()]
            tries.update(lost)
            queue.extend(task for task in lost if tries[task] < MAX_ATTEMPTS)
            reason = f"its process died {MAX_ATTEMPTS} times, as when memory runs out"
            yield from ((task, WorkerDiedError(reason)) for task in lost if tries[task] >= MAX_ATTEMPTS)
        finally:
            # Workers exit at once, also during a fit; unloading torch would take each of them another second.
            parent_end.close()
            pool.shutdown(cancel_futures=True)
            worker_end.close()


def _init_worker(threads: int, worker_end: Connection, free_gpus: SimpleQueue[str] | None) -> None:
    """Prepare a worker process: only the parent handles Ctrl-C, and a worker without a parent exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        # The parent alone has the other end of the pipe, which ends when it closes it, or dies. An event is no
        # alternative: one that a killed process waits for can never be set again.
        try:
            worker_end.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))  # which are read when torch is imported
    import torch

    torch.set_num_threads(threads)
    gc.freeze()  # what is imported by now is never garbage, and need not be searched
    # tqdm's own lock is a semaphore between processes, which would be left behind when Ctrl-C ends the worker.
    tqdm.set_lock(threading.RLock())
    if free_gpus is not None:
        # The process sees one GPU, which it calls "cuda"; `torch.cuda.set_device` would do so for one thread only.
        os.environ["CUDA_VISIBLE_DEVICES"] = free_gpus.get()
