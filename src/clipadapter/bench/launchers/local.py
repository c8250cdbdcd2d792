"""Fits in processes on this machine, as many as its memory and cores allow."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path

from clipadapter.bench.launchers.base import MAX_ATTEMPTS, Job, JobResult, Launcher, register_launcher
from clipadapter.bench.worker import set_threads
from clipadapter.parallel import count_cores

PROCESS_BYTES = 700 << 20
"""Bytes that Python, torch and a fit of usual size take, beside the features."""
MEMORY_FRACTION = 0.8
"""Of the free memory."""


@register_launcher("local")
class Local(Launcher):
    """Processes on this machine; one worker is this process itself.

    >>> list(Local(workers=1).run(lambda text: [text.upper()], [Job(0, "a")]))
    [JobResult(job=Job(number=0, task='a'), result=['A'], error=None)]
    """

    def run(self, function: Callable[[str], list[str]], jobs: Sequence[Job]) -> Generator[JobResult, None, None]:
        """As `Launcher.run`."""
        workers = self.count_workers(len(jobs))
        if workers > 1:
            yield from _pool(function, jobs, workers, max(1, count_cores() // workers))
            return
        for job in jobs:
            yield JobResult(job, function(job.task))

    def count_workers(self, jobs: int) -> int:
        """How many workers there will be: what was asked for, but no more than jobs, cores and memory allow."""
        count = min(self.workers or count_cores(), max(jobs, 1))
        if self.workers is not None:
            return count
        return max(1, min(count, int(MEMORY_FRACTION * free_memory() // (PROCESS_BYTES + self.memory))))


def free_memory() -> int:
    """Bytes of memory that are free; a guess of 4 GB where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 4 << 30


def _pool(
    function: Callable[[str], list[str]], jobs: Sequence[Job], workers: int, threads: int
) -> Generator[JobResult, None, None]:
    """Processes that are started anew when one of them died; a job whose worker died is given out again."""
    queue, tries = deque(jobs), Counter[int]()

    def can_submit() -> bool:
        """Whether the next job may be given out; no more are than are worked on, so that a death is held against few.

        The last attempt is made alone: one that dies always must not take others with it three times.
        """
        if any(tries[job.number] == MAX_ATTEMPTS - 1 for job in (queue[0], *running.values())):
            return not running
        return len(running) < workers

    while queue:
        context = multiprocessing.get_context("spawn")
        worker_end, parent_end = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(workers, context, initializer=_init_worker, initargs=(threads, worker_end))
        running: dict[Future[list[str]], Job] = {}
        results: list[JobResult] = []
        try:
            while queue or running or results:
                # Before what ended is told: to write it down takes a while, in which the workers go on.
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
            if queue or running:
                parent_end.close()  # workers leave at once, in the middle of a fit too
            pool.shutdown(cancel_futures=True)
            parent_end.close()
            worker_end.close()


def _requeue(jobs: Sequence[Job], queue: deque[Job], tries: Counter[int]) -> list[JobResult]:
    """Put jobs whose worker died back into the queue; those that were tried often enough have come to their end."""
    failures = []
    for job in jobs:
        tries[job.number] += 1
        if tries[job.number] < MAX_ATTEMPTS:
            queue.append(job)
        else:
            failures.append(JobResult(job, None, f"its process died {MAX_ATTEMPTS} times, as when memory runs out"))
    return failures


def _init_worker(threads: int, worker_end: Connection) -> None:
    """In a worker: Ctrl-C is the parent's to handle, and without a parent there is nothing to do.

    Args:
        threads: how many to compute on.
        worker_end: a pipe whose other end only the parent has. It ends when the parent closes it, or dies. An event
            is no alternative: one that a killed process waits for can never be set again.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        try:
            worker_end.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    # After all else that is done at the end: to unload torch would take a second more, for nothing.
    multiprocessing.util.Finalize(None, os._exit, args=(0,), exitpriority=-1)
    set_threads(threads)
