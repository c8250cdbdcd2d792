"""Pictures of many requests run together.

Threads of a pool make squares of pictures; one thread a model takes those that are ready, and runs them at once. A
batch waits for more only while pictures are being unpacked: on an idle server nothing waits, on a busy one batches fill
while the one before runs.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import ImageError
from clipadapter.runtime import RuntimeModel
from clipadapter.serve.jobs import Answer, Bad, Failed, Job
from clipadapter.serve.limits import Limits, Refused
from clipadapter.serve.metrics import ModelMetrics

Square = NDArray[np.uint8]
Maker = Callable[[], Square]
"""Makes a square (s, s, 3), or raises ImageError or Slow."""
LONGEST_RETRY = 60
logger = logging.getLogger(__name__)


class Slow(Exception):
    """Raised by a maker whose picture takes long: it is made by the thread for these, so that others need not wait.

    Args:
        maker: what that thread runs.
    """

    def __init__(self, maker: Maker) -> None:
        super().__init__("made by another thread")
        self.maker = maker


@dataclass(eq=False)
class _Item:
    job: Job
    place: int
    square: Square
    ready: float = field(default_factory=time.monotonic)


class Place:
    """A place in the queue; a context that gives it back unless pictures took it."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._held = True

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *error: object) -> None:
        if self._held:
            self._batcher.release()

    def submit(self, makers: Sequence[Maker], asked: Mapping[str, Any], deadline: float) -> Job:
        """Hand in pictures.

        Args:
            makers: one a picture, run in a thread of the pool.
            asked: for `RuntimeModel.answers`.
            deadline: on the clock of `time.monotonic`; what has not run by then is dropped.

        Raises:
            Refused: if the queue can't hold them.
        """
        self._batcher.reserve(len(makers) - 1)
        self._held = False
        job = Job(len(makers), asked, deadline)
        self._batcher.start(job, makers)
        return job


class Batcher:
    """Runs the pictures of one model.

    Args:
        predictor: the model.
        limits: how large batches and the queue may be.
        metrics: of the model.
        pool: whose threads make squares.
        slow_pool: whose thread makes those of slow formats; the other pool if not given.
    """

    def __init__(
        self,
        predictor: RuntimeModel,
        limits: Limits,
        metrics: ModelMetrics,
        pool: Executor,
        slow_pool: Executor | None = None,
    ) -> None:
        self._slow_pool = slow_pool or pool
        self._predictor, self._limits, self._metrics, self._pool = predictor, limits, metrics, pool
        self._changed = threading.Condition()  # may be entered again by who is in it
        self._ready: deque[_Item] = deque()
        self._places = self._begun = self._making = 0
        self._since = self._rate = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="clipadapter-batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pictures that were taken in and are not answered."""
        return self._places

    def enter(self) -> Place | None:
        """Take a place; None if it is closed.

        Raises:
            Refused: if none is free, or those who wait will need all of the deadline.
        """
        with self._changed:
            if self._closed and not self._places:
                return None
            # Less than a batch is no queue; how long it takes is known badly after a pause.
            if self._places >= self._limits.max_batch and self._wait() > self._limits.deadline:
                raise self._full()
            self.reserve(1)
        return Place(self)

    def reserve(self, count: int) -> None:
        """Take places.

        Raises:
            Refused: if not as many are free.
        """
        with self._changed:
            if self._places + count > self._limits.queue:
                raise self._full()
            self._places += count

    def release(self) -> None:
        """Give a place back."""
        with self._changed:
            self._places -= 1
            self._changed.notify()

    def start(self, job: Job, makers: Sequence[Maker]) -> None:
        """Begin with the pictures of a job whose places are taken."""
        with self._changed:
            if not self._begun:
                self._since = time.monotonic()
            self._begun += len(makers)
            self._making += len(makers)
        for place, maker in enumerate(makers):
            self._pool.submit(self._make, job, place, maker)

    def close(self, wait: float = 0.0) -> None:
        """Take no more, and end when all that were taken in are answered.

        Args:
            wait: seconds to wait for that.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        if wait:
            self._thread.join(wait)

    def _wait(self) -> float:
        """Seconds in which those who wait will be answered."""
        return self._places / self._rate if self._rate else 0.0

    def _full(self) -> Refused:
        return Refused(
            503,
            f"{self._places} pictures wait already, which takes {self._wait():.1f} seconds; {self._limits.queue} may "
            f"wait, and for {self._limits.deadline:g} seconds: try again after the seconds of Retry-After",
            why="queue",
            retry=min(max(math.ceil(self._wait()), 1), LONGEST_RETRY),
        )

    def _make(self, job: Job, place: int, maker: Maker) -> None:
        square: Square | None = None
        result: Bad | Failed | None = None
        try:
            square = None if job.dead else maker()
        except Slow as slow:
            self._slow_pool.submit(self._make, job, place, slow.maker)
            return
        except ImageError as error:
            result = Bad(error.reason)
        except Exception:
            logger.exception("a picture could not be made a square")
            result = Failed()
        with self._changed:
            self._making -= 1
            if square is not None:
                self._ready.append(_Item(job, place, square))
            self._changed.notify()
        if square is None:
            self._settle(job, place, result)

    def _settle(self, job: Job, place: int, result: Answer | Bad | Failed | None) -> None:
        with self._changed:
            self._places -= 1
            self._begun -= 1
            job.results[place] = result
            job.left -= 1
            last = job.left == 0
            self._changed.notify()
        if last:
            job.finish()

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            alive = []
            for item in batch:
                if item.job.dead:
                    self._settle(item.job, item.place, None)
                else:
                    alive.append(item)
            if alive:
                self._run(alive)

    def _take(self) -> list[_Item] | None:
        """The next batch; None when closed and all is done."""
        with self._changed:
            while not self._ready:
                if self._closed and not self._places:
                    return None
                self._changed.wait()
            until = self._ready[0].ready + self._limits.max_wait
            while len(self._ready) < self._limits.max_batch and self._making:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return [self._ready.popleft() for _ in range(min(len(self._ready), self._limits.max_batch))]

    def _run(self, batch: list[_Item]) -> None:
        began = time.perf_counter()
        try:
            outputs = self._predictor.run(np.stack([item.square for item in batch]))
            for asked, rows in _by_wish(batch):
                part = outputs if len(rows) == len(batch) else outputs.rows(cast(Any, np.array(rows)))
                answers = self._predictor.answers(part, **asked)
                for place, row in enumerate(rows):
                    self._settle(batch[row].job, batch[row].place, Answer(part, answers, place))
        except Exception:
            logger.exception("a batch of %d pictures failed", len(batch))
            for item in batch:
                if item.job.results[item.place] is None:
                    self._settle(item.job, item.place, Failed())
        self._metrics.ran(len(batch), time.perf_counter() - began)
        self._measure(len(batch))

    def _measure(self, count: int) -> None:
        """Keep in mind how many are answered a second while there is something to do, unpacking and all."""
        with self._changed:
            now = time.monotonic()
            seen = count / max(now - self._since, 1e-6)
            self._rate = (self._rate + seen) / 2 if self._rate else seen
            self._since = now


def _by_wish(batch: list[_Item]) -> list[tuple[dict[str, Any], list[int]]]:
    """Rows of the batch by what is asked for."""
    found: dict[tuple[tuple[str, Any], ...], list[int]] = {}
    for row, item in enumerate(batch):
        found.setdefault(tuple(sorted(item.job.asked.items())), []).append(row)
    return [(dict(key), rows) for key, rows in found.items()]
