"""One request on its way: its body is counted while it is read, and its answer is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request

from clipadapter.serve.batching import Maker, Place
from clipadapter.serve.jobs import Answer, Bad, Failed, Job
from clipadapter.serve.limits import BODY_GRACE_SECONDS, Limits, Refused
from clipadapter.serve.models import Model, Models

GONE = 499
"""Status in logs and metrics of a request whose client went away; nobody sees it."""
INLINE_BYTES = 64 << 10
"""Longer bodies are taken apart in a thread."""
SLOW_SECONDS = 1.0
"""After which a body may have to go for another."""
_Read = TypeVar("_Read")


@dataclass
class Visit:
    """What is known of a request.

    Args:
        id: names it in logs and in the answer's header.
        began: on the clock of `time.monotonic`.
        body_bytes: of its body that came.
        held: of them, counted in the house's; none once the answer begins.
        model: that it asks; "" for none.
        pictures: that it brought.
        bad: of them, that can't be read.
        why: one word, if it was refused for no mistake of its own.
    """

    id: str
    began: float = field(default_factory=time.monotonic)
    body_bytes: int = 0
    held: int = 0
    model: str = ""
    pictures: int = 0
    bad: int = 0
    why: str = ""


class House:
    """What all requests share.

    Args:
        models: that are served.

    Attributes:
        held: bytes of all bodies in memory.
        uploads: bodies that come in.
        parser: one thread, which takes large bodies apart: more would wait for Python's lock, and so would the loop.
        hosts: names in the header Host that are answered beside this machine's; None for all.
        leaving: the server was told to end.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self.held = 0
        self.uploads = Uploads(models.limits.max_bodies)
        self.parser = ThreadPoolExecutor(1, "clipadapter-bodies")
        self.hosts: frozenset[str] | None = None
        self.leaving = False

    @property
    def limits(self) -> Limits:
        """What a request may bring."""
        return self.models.limits

    def free(self, visit: Visit) -> None:
        """Count a request's body no more."""
        self.held -= visit.held
        visit.held = 0


class Upload:
    """A body that comes in.

    Attributes:
        began: on the clock of `time.monotonic`.
        size: bytes that came.
        scope: ends it.
        evicted: it had to go for another.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.size = 0
        self.scope = anyio.CancelScope()
        self.evicted = False

    def due(self, min_rate: float, deadline: float) -> float:
        """When it is cut off if nothing more comes, on the clock of `time.monotonic`."""
        rate = self.began + self.size / min_rate + BODY_GRACE_SECONDS
        return min(rate, time.monotonic() + BODY_GRACE_SECONDS, deadline)


class Uploads:
    """Bodies that come in; there is always room for one more if one of them is slow.

    Args:
        most: that come in at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Upload] = set()

    @contextmanager
    def one(self) -> Iterator[Upload]:
        """A body, as long as it comes in.

        Raises:
            Refused: if there are too many, none of which is slow.
        """
        if len(self._open) >= self._most:
            self._evict()
        upload = Upload()
        self._open.add(upload)
        try:
            yield upload
        finally:
            self._open.discard(upload)

    def _evict(self) -> None:
        """Cut off the slowest of those that had some time."""
        now = time.monotonic()
        slow = [one for one in self._open if now - one.began >= SLOW_SECONDS]
        if not slow:
            raise Refused(503, f"{self._most} bodies come in already: try again soon", why="bodies", retry=1)
        slowest = min(slow, key=lambda one: one.size / (now - one.began))
        slowest.evicted = True
        slowest.scope.cancel()
        self._open.discard(slowest)


class Guest:
    """A request that brings pictures.

    Args:
        request: as FastAPI hands it over.
        timeout: seconds that its client waits, if that is less than the server's deadline.
    """

    def __init__(self, request: Request, timeout: float | None = None) -> None:
        self.request = request
        self.house: House = request.app.state.house
        self.visit: Visit = request.scope["clipadapter"]
        longest = self.house.limits.deadline
        self.seconds = longest if timeout is None else min(timeout, longest)
        self.deadline = self.visit.began + self.seconds

    def check_room(self, name: str | None = None) -> None:
        """Refuse what would find no place, before its body is read.

        Raises:
            Refused: if there is no such model, or its queue is full.
        """
        _, place = self.enter(name)
        with place:
            pass

    def enter(self, name: str | None = None) -> tuple[Model, Place]:
        """The model that is asked, and a place in its queue; once the body is there, so that slow ones hold none.

        Raises:
            Refused: if there is no such model, or its queue is full.
        """
        model, place = self.house.models.enter(name)
        self.visit.model = model.name
        return model, place

    async def body(self) -> bytearray:
        """All of the body.

        Raises:
            Refused: if it is too long, packed, too slow, did not come in time, or there is no room for it now.
        """
        limits, headers = self.house.limits, self.request.headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "the body is packed by a Content-Encoding: send it as it is")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limits.max_bytes:
            raise _too_long(limits)
        body = bytearray()
        with self.house.uploads.one() as upload, upload.scope:
            self._set_deadline(upload)
            async for chunk in self.request.stream():
                self._count(len(chunk))
                body += chunk
                upload.size = len(body)
                self._set_deadline(upload)
        if upload.scope.cancelled_caught:
            raise self._cut_off(upload)
        return body

    def _set_deadline(self, upload: Upload) -> None:
        due = upload.due(self.house.limits.min_rate, self.deadline)
        upload.scope.deadline = anyio.current_time() + due - time.monotonic()

    def _count(self, size: int) -> None:
        house, visit, limits = self.house, self.visit, self.house.limits
        visit.body_bytes += size
        visit.held += size
        house.held += size
        if visit.body_bytes > limits.max_bytes:
            raise _too_long(limits)
        if house.held > limits.max_held:
            raise Refused(503, "too many large requests are under way: try again soon", why="memory", retry=1)

    def _cut_off(self, upload: Upload) -> Refused:
        limits = self.house.limits
        if upload.evicted:
            return Refused(
                408, f"the body came slowest of {limits.max_bodies}, and others wait: try again", why="bodies", retry=1
            )
        if self.left() <= 0:
            return Refused(408, f"the body did not come within {self.seconds:g} seconds", why="deadline")
        return Refused(
            408,
            f"the body came too slowly: {upload.size} bytes in {time.monotonic() - upload.began:.1f} seconds; send "
            f"{limits.min_rate:g} bytes a second at least, and never pause for {BODY_GRACE_SECONDS:g} seconds",
            why="rate",
        )

    async def parse(self, size: int, read: Callable[..., _Read], *args: Any) -> _Read:
        """What a function makes of the body: of a long one in the parser's thread.

        Args:
            size: of the body, in bytes.
            read: the function.
            args: for it.
        """
        if size <= INLINE_BYTES:
            return read(*args)
        return await asyncio.get_running_loop().run_in_executor(self.house.parser, read, *args)

    def left(self) -> float:
        """Seconds to the deadline."""
        return max(0.0, self.deadline - time.monotonic())

    async def answers(self, place: Place, makers: Sequence[Maker], asked: Mapping[str, Any]) -> Sequence[Answer | Bad]:
        """What is said of the pictures.

        Args:
            place: in the queue of the model.
            makers: of their squares.
            asked: for `RuntimeModel.answers`.

        Raises:
            Refused: if the queue is full, or they are not answered in time.
            ClientDisconnect: if the client went away.
        """
        job = place.submit(makers, asked, self.deadline)
        try:
            await self._wait(job)
        finally:
            job.give_up()
        found: list[Answer | Bad] = []
        for result in job.results:
            if isinstance(result, Failed):
                raise RuntimeError("the backend failed on this request's pictures; the log says how")
            if result is None:
                raise Refused(
                    504,
                    f"no answer within {self.seconds:g} seconds: send fewer pictures, or fewer requests at a time",
                    why="deadline",
                )
            found.append(result)
        self.visit.bad = sum(isinstance(result, Bad) for result in found)
        return found

    async def _wait(self, job: Job) -> None:
        """Until the job is done, its time is up, or the client is gone."""
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({job.done, gone}, timeout=self.left(), return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not job.done.done():
                raise ClientDisconnect
        finally:
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone

    async def _gone(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


def _too_long(limits: Limits) -> Refused:
    return Refused(413, f"the body may have {limits.max_bytes} bytes: send fewer pictures at a time, or smaller ones")
