"""Micro-batching: pictures of many requests run together.

Threads of a pool load pictures into squares. One thread per model takes the squares that are ready and runs them as one
batch. A batch waits for more squares only while pictures are being loaded: on an idle server nothing waits, on a busy
one a batch fills while the previous one runs. Requests take turns, so that one picture never waits for all of a long
request.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import ImageError
from clipadapter.runtime import Predictor
from clipadapter.serve.limits import SERVER_FAILED, Limits, RequestRefused
from clipadapter.serve.logs import Metrics
from clipadapter.uncertainty import Answers

Square = NDArray[np.uint8]
Loader = Callable[[], "Square | Loader"]
"""Returns a square (s, s, 3), or for a picture that is slow to decode another loader, so that other pictures need not
wait for it. Raises ImageError or RequestRefused."""
Result = tuple[Answers, int] | ImageError
"""Of a picture: the answers for the batch that it ran in, and its row; or why it can't be read."""
MAX_RETRY_SECONDS = 60
MAX_WAIT_SECONDS = 0.005  # that a picture waits for others that are being loaded
logger = logging.getLogger(__name__)


class Batcher:
    """Runs the pictures of one model."""

    def __init__(
        self, predictor: Predictor, limits: Limits, metrics: Metrics, name: str, pool: Executor, slow_pool: Executor
    ) -> None:
        self._predictor, self._limits, self._pool, self._slow_pool = predictor, limits, pool, slow_pool
        self._batch_pictures = metrics.batch_pictures.labels(name)
        self._batch_seconds = metrics.batch_seconds.labels(name)
        self._changed = threading.Condition()  # reentrant: `submit` holds it and calls `check_room`
        self._queue: deque[_QueuedSquare] = deque()
        self._jobs: set[Job] = set()  # those with pictures in the queue
        self._slots_taken = self._loading = self._departed = 0
        # Slow pictures without a result. They have places of their own, as many as one request may bring, so that other
        # pictures always find theirs
        self.slow_pending = 0
        self._rate_since = self._pictures_per_second = 0.0
        self._is_closed = False
        self._thread: threading.Thread | None = None  # until the batcher is closed and no picture is pending

    @property
    def pending(self) -> int:
        """Pictures that were accepted and have no result yet."""
        return self._slots_taken + self.slow_pending

    def check_room(self, count: int = 1) -> None:
        """Refuse a request with so many pictures if the queue has no room for them in time.

        One of several pictures leaves a quarter of the queue free, unless it is alone.
        """
        with self._changed:
            kept_free = self._limits.queue // 4 if count > 1 and self._jobs else 0
            seconds = self._estimate_wait(count)
            if self._slots_taken + count <= self._limits.queue - kept_free and seconds <= self._limits.deadline:
                return
            raise RequestRefused(
                503,
                f"the server is busy: {self._slots_taken} pictures wait, and yours would wait about {seconds:.1f} "
                f"seconds. At most {self._limits.queue} may wait, {self._limits.deadline:g} seconds each, and a "
                "request of several leaves a quarter of these places. Try again after the seconds of Retry-After",
                reason="queue",
                retry_after=min(max(math.ceil(seconds), 1), MAX_RETRY_SECONDS),
            )

    def submit(self, loaders: Sequence[Loader], options: Mapping[str, Any], deadline: float) -> Job:
        """Submit pictures; those that have not run by the deadline, on the clock of `time.monotonic`, are dropped.

        A batcher that is closed still runs them, if a request found its model just before another one replaced it.
        """
        job = Job(loaders, options, deadline)
        with self._changed:
            self.check_room(len(loaders))
            if not self._jobs:
                self._rate_since, self._departed = time.monotonic(), 0
            self._slots_taken += len(loaders)
            self._jobs.add(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run_batches, name="clipadapter-batches", daemon=True)
                self._thread.start()
        self._load_more(job)
        return job

    def close(self, timeout: float = 0.0) -> None:
        """End the thread when all accepted pictures have a result; wait ``timeout`` seconds for that."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and timeout:
            thread.join(timeout)

    def _estimate_wait(self, count: int) -> float:
        """Seconds until so many pictures of a new request can run, at the measured rate.

        Each other request takes as many turns in the meantime, and its share is under way already. Two batches are no
        queue: the rate is also that of a server with little to do, and then too low.
        """
        turns = count - 1 + self._share()
        before = sum(min(job.queued, turns) for job in self._jobs)
        if before <= 2 * self._limits.max_batch or not self._pictures_per_second:
            return 0.0
        return before / self._pictures_per_second

    def _share(self) -> int:
        """Pictures of a request that are loaded and run at a time; two batches of a request that is alone."""
        return max(1, 2 * self._limits.max_batch // max(1, len(self._jobs)))

    def _load_more(self, job: Job) -> None:
        """Load as many pictures of a request as its share."""
        with self._changed:
            count = min(len(job.waiting), self._share() - (job.queued - len(job.waiting)))
            pictures = [job.waiting.popleft() for _ in range(count)]
            self._loading += len(pictures)
        with suppress(RuntimeError):  # the pool is closed: the server was stopped without waiting
            for index, loader in pictures:
                self._pool.submit(self._load, job, index, loader)

    def _leave_queue(self, job: Job) -> None:
        """Give the slot of a picture back; the caller holds the lock."""
        self._slots_taken -= 1
        job.queued -= 1
        if not job.queued:
            self._jobs.discard(job)
        self._changed.notify()

    def _load_slowly(self, job: Job, index: int, loader: Loader) -> None:
        """Give a picture's slot of the queue back for a place among the slow ones, if there is one."""
        with self._changed:
            if self.slow_pending >= self._limits.max_pictures:
                raise RequestRefused(
                    503,
                    f"{self.slow_pending} pictures that are slow to decode wait: at most {self._limits.max_pictures} "
                    "may. Slow are JPEG 2000, AVIF, HEIC and pictures above 13 megapixels, as JPEG above 26. Send "
                    "smaller JPEG files, or try again after the seconds of Retry-After",
                    reason="slow",
                    retry_after=min(math.ceil(self._limits.deadline), MAX_RETRY_SECONDS),
                )
            self.slow_pending += 1
            job.slow.add(index)
            self._loading -= 1
            self._departed += 1
            self._leave_queue(job)
        with suppress(RuntimeError):  # as in `_load_more`
            self._slow_pool.submit(self._load, job, index, loader)
        self._load_more(job)

    def _load(self, job: Job, index: int, loader: Loader) -> None:
        """Load one picture, in a thread of a pool."""
        square: Square | None = None
        failure: ImageError | RequestRefused | None = None
        try:
            loaded = None if job.is_abandoned else loader()
            if callable(loaded):
                self._load_slowly(job, index, loaded)
                return
            square = loaded
        except ImageError as error:
            failure = error.without_traceback()
        except RequestRefused as refusal:
            failure = refusal
        except Exception:
            logger.exception("a picture could not be loaded")
            failure = RequestRefused(500, SERVER_FAILED)
        with self._changed:
            self._loading -= index not in job.slow
            if square is not None:
                self._queue.append(_QueuedSquare(job, index, square))
            self._changed.notify()
        if square is None:
            self._set_result(job, index, failure)

    def _set_result(self, job: Job, index: int, result: Result | RequestRefused | None) -> None:
        """Note the result of a picture; None if it was dropped. A refusal is that of the whole request."""
        if isinstance(result, RequestRefused):
            job.refuse(result)
        with self._changed:
            if index in job.slow:
                self.slow_pending -= 1
                self._changed.notify()
            else:
                self._departed += result is not None  # one that was dropped took no time
                self._leave_queue(job)
            job.results[index] = None if isinstance(result, RequestRefused) else result
            job.unfinished -= 1
            is_last = job.unfinished == 0
        if is_last:
            job.notify()
        else:
            self._load_more(job)

    def _run_batches(self) -> None:
        while (batch := self._next_batch()) is not None:
            wanted = []
            for item in batch:
                if item.job.is_abandoned:
                    self._set_result(item.job, item.index, None)
                else:
                    wanted.append(item)
            if wanted:
                self._run_batch(wanted)

    def _next_batch(self) -> list[_QueuedSquare] | None:
        """The next batch; None if the batcher is closed and no picture is pending, so that its thread ends."""
        with self._changed:
            while not self._queue:
                if self._is_closed and not self.pending:
                    self._thread = None
                    return None
                self._changed.wait()
            # The first square bounds the wait: later ones must not prolong it.
            end = self._queue[0].queued_at + MAX_WAIT_SECONDS
            while len(self._queue) < self._limits.max_batch and self._loading:
                remaining = end - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
            return [self._queue.popleft() for _ in range(min(len(self._queue), self._limits.max_batch))]

    def _run_batch(self, batch: list[_QueuedSquare]) -> None:
        started = time.perf_counter()
        rows_by_options: dict[tuple[tuple[str, Any], ...], list[int]] = {}
        for row, item in enumerate(batch):  # decisions are computed for one set of options at a time
            rows_by_options.setdefault(item.job.options, []).append(row)
        try:
            outputs = self._predictor.run(np.stack([item.square for item in batch]))
            for options, rows in rows_by_options.items():
                group = outputs if len(rows) == len(batch) else outputs.rows(cast(Any, np.array(rows)))
                answers = self._predictor.answer(group, **dict(options))
                for group_row, row in enumerate(rows):
                    self._set_result(batch[row].job, batch[row].index, (answers, group_row))
        except Exception:
            logger.exception("a batch of %d pictures failed", len(batch))
            for item in batch:
                if item.job.results[item.index] is None:
                    self._set_result(item.job, item.index, RequestRefused(500, SERVER_FAILED))
        self._batch_pictures.observe(len(batch))
        self._batch_seconds.observe(time.perf_counter() - started)
        if any(item.index not in item.job.slow for item in batch):
            self._update_rate()

    def _update_rate(self) -> None:
        """Update the rate at which pictures leave the queue, from which the wait is estimated.

        Those that are slow or unreadable count too, since they had a place in it.
        """
        with self._changed:
            now = time.monotonic()
            rate = self._departed / max(now - self._rate_since, 1e-6)
            self._departed = 0
            # Half of the weight for the last batch: the estimate follows a change of load within a few batches.
            self._pictures_per_second = (self._pictures_per_second + rate) / 2 if self._pictures_per_second else rate
            self._rate_since = now


class Job:
    """The pictures of one request, made in the event loop that waits for them."""

    def __init__(self, loaders: Sequence[Loader], options: Mapping[str, Any], deadline: float) -> None:
        self.options, self._deadline = tuple(sorted(options.items())), deadline
        # One per picture; None until it is known, and if the picture was dropped
        self.results: list[Result | None] = [None] * len(loaders)
        self.waiting = deque(enumerate(loaders))  # index and loader of the pictures whose turn has not come
        self.unfinished = len(loaders)  # pictures that wait for their result
        self.queued = len(loaders)  # pictures that have a slot of the queue
        self.slow: set[int] = set()  # indices of the pictures that are slow to decode
        self.refusal: Exception | None = None  # why there is no answer
        self._loop = asyncio.get_running_loop()
        self.done = asyncio.Event()  # set when no picture is unfinished, or the job is refused

    @property
    def is_abandoned(self) -> bool:
        """Whether no client waits for it any more."""
        return time.monotonic() > self._deadline

    def abandon(self) -> None:
        """Drop the pictures that have not run."""
        self._deadline = -math.inf

    def refuse(self, refusal: Exception) -> None:
        """Drop the pictures that have not run, and end the wait at once; may be called from any thread."""
        self.refusal = refusal
        self.abandon()
        self.notify()

    def notify(self) -> None:
        """Set `done`; may be called from any thread."""
        with suppress(RuntimeError):  # the loop is closed: the server was stopped without waiting
            self._loop.call_soon_threadsafe(self.done.set)


@dataclass(eq=False)
class _QueuedSquare:
    job: Job
    index: int
    square: Square
    queued_at: float = field(default_factory=time.monotonic)
