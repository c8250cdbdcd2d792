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
from multiprocessing.context import SpawnContext
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from tqdm import tqdm

from clipadapter.bench.worker import set_gpu, set_threads
from clipadapter.utils.devices import count_gpus
from clipadapter.utils.parallel import count_cores

PROCESS_BYTES = 700 << 20
"""Bytes of Python, torch and a fit of typical size, besides the features."""
MEMORY_FRACTION = 0.8
"""How much of the free memory is used."""


MAX_ATTEMPTS = 3
"""How often a job is tried whose worker dies."""


@dataclass(frozen=True)
class Job:
    """One task of a launcher.

    Args:
        number: its position in the plan.
        task: the argument of the function, as JSON.
    """

    number: int
    task: str


@dataclass(frozen=True)
class JobResult:
    """The result of a job.

    Args:
        job: the job.
        result: what the function returned; None if every worker that tried it died.
        error: the reason if there is no result.
    """

    job: Job
    result: list[str] | None
    error: str | None = None


class Launcher:
    """Runs one function on many tasks, in any order, in processes on this machine. It survives the death of a worker.

    A single worker is this process.

    Args:
        workers: number of workers; None for as many as cores and memory allow.
        memory: bytes that one worker needs.
        device: where fits compute, such as "cpu" or "cuda". With a GPU there is one worker per GPU by default.

    >>> list(Launcher(workers=1).run(lambda text: [text.upper()], [Job(0, "a")]))
    [JobResult(job=Job(number=0, task='a'), result=['A'], error=None)]
    """

    def __init__(self, workers: int | None = None, memory: int = 0, device: str = "cpu") -> None:
        self.workers = workers
        self.memory = memory
        self.device = device

    def run(self, function: Callable[[str], list[str]], jobs: Sequence[Job]) -> Generator[JobResult, None, None]:
        """Yield results as they are finished; closing the iterator stops the work.

        Args:
            function: importable by its name; it takes a text and returns texts.
            jobs: the jobs.
        """
        workers = self.count_workers(len(jobs))
        if workers > 1:
            yield from _pool(function, jobs, workers, max(1, count_cores() // workers), list_gpus(self.device))
            return
        for job in jobs:
            yield JobResult(job, function(job.task))

    def count_workers(self, jobs: int) -> int:
        """The number of workers: as requested, or as many as jobs, memory, and GPUs or else cores allow."""
        count = min(self.workers or count_gpus(self.device) or count_cores(), max(jobs, 1))
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
    """The GPUs that workers share, as CUDA_VISIBLE_DEVICES names them; none if the name of the device says which one.

    >>> list_gpus("cuda:1")
    []
    """
    count = count_gpus(device)
    if count < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in visible.split(",")][:count] if visible else [str(i) for i in range(count)]


def _pool(
    function: Callable[[str], list[str]], jobs: Sequence[Job], workers: int, threads: int, gpus: Sequence[str]
) -> Generator[JobResult, None, None]:
    """Run jobs in a pool of processes. The pool is started again if a worker dies, and its jobs are tried again.

    Each worker gets the next of ``gpus``, from the first one again if there are more workers.
    """
    queue, tries = deque(jobs), Counter[int]()

    def can_submit() -> bool:
        """Whether the next job may be submitted.

        At most one job per worker is submitted: if a worker dies, each submitted job counts a failed attempt. The last
        attempt of a job is made alone, so that a job whose worker always dies does not fail others three times.
        """
        if any(tries[job.number] == MAX_ATTEMPTS - 1 for job in (queue[0], *running.values())):
            return not running
        return len(running) < workers

    while queue:
        context = multiprocessing.get_context("spawn")
        worker_end, parent_end = context.Pipe(duplex=False)
        initargs = threads, worker_end, _assign_gpus(gpus, workers, context)
        pool = ProcessPoolExecutor(workers, context, initializer=_init_worker, initargs=initargs)
        running: dict[Future[list[str]], Job] = {}
        results: list[JobResult] = []
        try:
            while queue or running or results:
                # Before results are yielded: the caller writes them, and the workers continue meanwhile.
                while queue and can_submit():
                    job = queue.popleft()
                    running[pool.submit(function, job.task)] = job
                while results:
                    yield results.pop()
                if running:
                    future = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
                    job = running.pop(future)
                    results.append(JobResult(job, future.result()))
        except BrokenProcessPool:
            yield from [*results, *_requeue([job, *running.values()], queue, tries)]
        finally:
            # Workers exit at once, also during a fit; unloading torch would take each of them another second.
            parent_end.close()
            pool.shutdown(cancel_futures=True)
            worker_end.close()


def _assign_gpus(gpus: Sequence[str], workers: int, context: SpawnContext) -> SimpleQueue[str] | None:
    """A queue from which each worker takes a GPU; None without GPUs to share."""
    if not gpus:
        return None
    free_gpus = context.SimpleQueue()
    for i in range(workers):
        free_gpus.put(gpus[i % len(gpus)])
    return free_gpus


def _requeue(jobs: Sequence[Job], queue: deque[Job], tries: Counter[int]) -> list[JobResult]:
    """Put jobs whose worker died back into the queue; return the failure of those tried `MAX_ATTEMPTS` times."""
    failures = []
    for job in jobs:
        tries[job.number] += 1
        if tries[job.number] < MAX_ATTEMPTS:
            queue.append(job)
        else:
            failures.append(JobResult(job, None, f"its process died {MAX_ATTEMPTS} times, as when memory runs out"))
    return failures


def _init_worker(threads: int, worker_end: Connection, free_gpus: SimpleQueue[str] | None) -> None:
    """Prepare a worker process: only the parent handles Ctrl-C, and a worker without a parent exits.

    Args:
        threads: number of threads to compute with.
        worker_end: a pipe whose other end only the parent has. It ends when the parent closes it, or dies. An event
            is no alternative: one that a killed process waits for can never be set again.
        free_gpus: as many GPUs as there are workers; None if workers need not share several.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        try:
            worker_end.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    set_threads(threads)
    gc.freeze()  # what is imported by now is never garbage, and need not be searched
    # tqdm's own lock is a semaphore between processes, which would be left behind when Ctrl-C ends the worker.
    tqdm.set_lock(threading.RLock())
    if free_gpus is not None:
        set_gpu(free_gpus.get())
