"""A request with pictures: admission, reading and parsing its body, and waiting for its results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request

from clipadapter.serve.batching import Answer, BackendFailure, Job, Loader, QueueSlot, Unreadable
from clipadapter.serve.body import Pictures, read_pictures
from clipadapter.serve.limits import SMALL_BODY_BYTES, Limits, RequestRefused
from clipadapter.serve.models import ServedModel, ServedModels


@dataclass(eq=False)
class ServerState:
    """What all requests share."""

    models: ServedModels
    buffered_bytes: int = 0  # of all bodies in memory
    # Names in the header Host that are answered besides this machine's; None for all
    allowed_hosts: frozenset[str] | None = None
    is_stopping: bool = False  # the server was asked to stop

    @property
    def limits(self) -> Limits:
        """Limits of a request."""
        return self.models.limits

    def release_body(self, context: RequestContext) -> None:
        """Stop to count a request's body as buffered."""
        self.buffered_bytes -= context.buffered_bytes
        context.buffered_bytes = 0


@dataclass
class RequestContext:
    """What the log and the metrics say about a request."""

    id: str  # in logs and in the answer's header
    started_at: float = field(default_factory=time.monotonic)  # on the clock of `time.monotonic`
    body_bytes: int = 0  # received
    buffered_bytes: int = 0  # of the body, as counted in the server's; 0 once the answer begins
    model: str = ""  # its name; "" for none
    pictures: int = 0  # in the request
    unreadable: int = 0  # of these pictures
    refusal_reason: str = ""  # one word, if the request was refused because of load or time


class PredictionRequest:
    """A request with pictures, in the order of its steps.

    Its queue slot is taken only when the body is there, so that a slow body holds none. A full queue is nevertheless
    noticed before the body is read: see `check_queue`.
    """

    def __init__(self, request: Request, timeout: float | None = None) -> None:
        self.request = request
        self.state: ServerState = request.app.state.server
        self.context: RequestContext = request.scope["clipadapter"]
        longest = self.state.limits.deadline
        self.seconds = longest if timeout is None else min(timeout, longest)
        self.deadline = self.context.started_at + self.seconds

    def check_queue(self, name: str | None = None) -> None:
        """Refuse a request that would get no slot, before its body is read."""
        _, slot = self.take_slot(name)
        with slot:
            pass

    async def read_pictures(self) -> Pictures:
        """What the body asks for."""
        limits, headers = self.state.limits, self.request.headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestRefused(415, "the body is packed by a Content-Encoding: send it as it is")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limits.max_bytes:
            raise _body_too_long(limits)
        with anyio.move_on_after(self._remaining_seconds()):
            return await read_pictures(headers, self._count_chunks(), limits)
        raise RequestRefused(408, f"the body did not come within {self.seconds:g} seconds", reason="deadline")

    def take_slot(self, name: str | None = None) -> tuple[ServedModel, QueueSlot]:
        """The model of a name, and a slot of its queue."""
        model, slot = self.state.models.take_slot(name)
        self.context.model = model.name
        return model, slot

    async def predict(
        self, slot: QueueSlot, loaders: Sequence[Loader], options: Mapping[str, Any]
    ) -> Sequence[Answer | Unreadable]:
        """Results of the pictures."""
        job = slot.submit(loaders, options, self.deadline)
        try:
            await self._wait(job)
        finally:
            job.abandon()
        if job.refusal is not None:
            raise job.refusal
        results: list[Answer | Unreadable] = []
        for result in job.results:
            if isinstance(result, BackendFailure):
                raise RuntimeError("the backend failed on this request's pictures; the log says how")
            if result is None:
                raise RequestRefused(
                    504,
                    f"no answer within {self.seconds:g} seconds: send fewer pictures, or fewer requests at a time",
                    reason="deadline",
                )
            results.append(result)
        self.context.unreadable = sum(isinstance(result, Unreadable) for result in results)
        return results

    async def _count_chunks(self) -> AsyncGenerator[bytes, None]:
        state, context, limits = self.state, self.context, self.state.limits
        async for chunk in self.request.stream():
            context.body_bytes += len(chunk)
            context.buffered_bytes += len(chunk)
            state.buffered_bytes += len(chunk)
            if context.body_bytes > limits.max_bytes:
                raise _body_too_long(limits)
            is_small = context.body_bytes <= SMALL_BODY_BYTES
            if state.buffered_bytes > limits.max_buffered_bytes * (2 if is_small else 1):
                text = "too many large requests are under way: try again soon"
                raise RequestRefused(503, text, reason="memory", retry_after=1)
            yield chunk

    def _remaining_seconds(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    async def _wait(self, job: Job) -> None:
        """Wait until the job is done, its deadline is over, or the client has disconnected."""
        disconnected = asyncio.ensure_future(self._wait_for_disconnect())
        try:
            await asyncio.wait(
                {job.done, disconnected}, timeout=self._remaining_seconds(), return_when=asyncio.FIRST_COMPLETED
            )
            if disconnected.done() and not job.done.done():
                raise ClientDisconnect
        finally:
            disconnected.cancel()
            with suppress(asyncio.CancelledError):
                await disconnected

    async def _wait_for_disconnect(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


def _body_too_long(limits: Limits) -> RequestRefused:
    text = f"the body may have {limits.max_bytes} bytes: send fewer pictures at a time, or smaller ones"
    return RequestRefused(413, text)
