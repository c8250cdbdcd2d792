"""One request on its way: its body is counted while it is read, and its answer is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request

from clipadapter.serve.batching import Maker, Place
from clipadapter.serve.jobs import Answer, Bad, Failed, Job
from clipadapter.serve.limits import Limits, Refused
from clipadapter.serve.models import Model, Models

GONE = 499
"""Status in logs and metrics of a request whose client went away; nobody sees it."""


@dataclass
class Visit:
    """What is known of a request.

    Args:
        id: names it in logs and in the answer's header.
        began: on the clock of `time.monotonic`.
        held: bytes of its body, counted in the house's until it ends.
        model: that it asks; "" for none.
        pictures: that it brought.
        bad: of them, that can't be read.
        why: one word, if it was refused for no mistake of its own.
    """

    id: str
    began: float = field(default_factory=time.monotonic)
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
        leaving: the server was told to end.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self.held = 0
        self.leaving = False

    @property
    def limits(self) -> Limits:
        """What a request may bring."""
        return self.models.limits


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

    def enter(self, name: str | None = None) -> tuple[Model, Place]:
        """The model that is asked, and a place in its queue; before the body is read.

        Raises:
            Refused: if there is no such model, or its queue is full.
        """
        model, place = self.house.models.enter(name)
        self.visit.model = model.name
        return model, place

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes in.

        Raises:
            Refused: if it is too long, packed, or there is no room for it now.
        """
        limits, visit, headers = self.house.limits, self.visit, self.request.headers
        too_long = Refused(
            413, f"the body may have {limits.max_bytes} bytes: send fewer pictures at a time, or smaller ones"
        )
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "the body is packed by a Content-Encoding: send it as it is")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limits.max_bytes:
            raise too_long
        async for chunk in self.request.stream():
            visit.held += len(chunk)
            self.house.held += len(chunk)
            if visit.held > limits.max_bytes:
                raise too_long
            if self.house.held > limits.max_held:
                raise Refused(503, "too many large requests are under way: try again soon", why="memory", retry=1)
            yield chunk

    async def body(self) -> bytes:
        """All of it.

        Raises:
            Refused: as `chunks`, or if it did not come in time.
        """
        pieces: list[bytes] = []
        await self.within(self._collect(pieces))
        return b"".join(pieces)

    async def within(self, work: Any) -> Any:
        """What an awaitable that reads the body gives, if it does in time.

        Raises:
            Refused: if not.
        """
        try:
            with anyio.fail_after(self.left()):
                return await work
        except TimeoutError as error:
            raise Refused(408, f"the body did not come within {self.seconds:g} seconds", why="deadline") from error

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
                raise RuntimeError("the engine failed on this request's pictures; the log says how")
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

    async def _collect(self, pieces: list[bytes]) -> None:
        async for chunk in self.chunks():
            pieces.append(chunk)
