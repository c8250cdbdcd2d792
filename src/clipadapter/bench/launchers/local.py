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

from clipadapter.bench.launchers.base import ATTEMPTS, Job, Launcher, Outcome, register_launcher
from clipadapter.bench.worker import set_threads
from clipadapter.parallel import count_cores

PROCESS = 700 << 20
"""Bytes that Python, torch and a fit of usual size take, beside the features."""
SHARE = 0.8
"""Of the free memory."""


@register_launcher("local")
class Local(Launcher):
    """Processes on this machine; one worker is this process itself.

    >>> list(Local(workers=1).run(lambda text: [text.upper()], [Job(0, "a")]))
    [Outcome(job=Job(number=0, task='a'), result=['A'], error=None)]
    """

    def run(self, function: Callable[[str], list[str]], jobs: Sequence[Job]) -> Generator[Outcome, None, None]:
        """As `Launcher.run`."""
        workers = self.fitting(len(jobs))
        if workers > 1:
            yield from _pool(function, jobs, workers, max(1, count_cores() // workers))
            return
        for job in jobs:
            yield Outcome(job, function(job.task))

    def fitting(self, jobs: int) -> int:
        """How many workers there will be: what was asked for, but no more than jobs, cores and memory allow."""
        wanted = min(self.workers or count_cores(), max(jobs, 1))
        if self.workers is not None:
            return wanted
        return max(1, min(wanted, int(SHARE * free_memory() // (PROCESS + self.memory))))


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
) -> Generator[Outcome, None, None]:
    """Processes that are started anew when one of them died; a job whose worker died is given out again."""
    left, tries = deque(jobs), Counter[int]()

    def room() -> bool:
        """Whether the next job may be given out; no more are than are worked on, so that a death is held against few.

        The last attempt is made alone: one that dies always must not take others with it three times.
        """
        if any(tries[job.number] == ATTEMPTS - 1 for job in (left[0], *given.values())):
            return not given
        return len(given) < workers

    while left:
        context = multiprocessing.get_context("spawn")
        held, life = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(threads, held))
        given: dict[Future[list[str]], Job] = {}
        ended: list[Outcome] = []
        try:
            while left or given or ended:
                # Before what ended is told: to write it down takes a while, in which the workers go on.
                while left and room():
                    job = left.popleft()
                    given[pool.submit(function, job.task)] = job
                while ended:
                    yield ended.pop()
                if given:
                    future = next(iter(wait(given, return_when=FIRST_COMPLETED).done))
                    job = given.pop(future)
                    ended.append(Outcome(job, future.result()))
        except BrokenProcessPool:
            yield from [*ended, *_lost([job, *given.values()], left, tries)]
        finally:
            if left or given:
                life.close()  # workers leave at once, in the middle of a fit too
            pool.shutdown(cancel_futures=True)
            life.close()
            held.close()


def _lost(jobs: Sequence[Job], left: deque[Job], tries: Counter[int]) -> list[Outcome]:
    """Put jobs whose worker died back into the queue; those that were tried often enough have come to their end."""
    ended = []
    for job in jobs:
        tries[job.number] += 1
        if tries[job.number] < ATTEMPTS:
            left.append(job)
        else:
            ended.append(Outcome(job, None, f"its process died {ATTEMPTS} times, as when memory runs out"))
    return ended


def _start(threads: int, held: Connection) -> None:
    """In a worker: Ctrl-C is the parent's to handle, and without a parent there is nothing to do.

    Args:
        threads: how many to compute on.
        held: a pipe whose other end the parent alone has: it ends when the parent closes it, or dies. An event would
            do as well, but one that a killed process waits for can never be set again.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        try:
            held.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    # After all else that is done at the end: to unload torch would take a second more, for nothing.
    multiprocessing.util.Finalize(None, os._exit, args=(0,), exitpriority=-1)
    set_threads(threads)
