"""A request with pictures: admission, reading and parsing its body, and waiting for its results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request

from clipadapter.serve.batching import Answer, BackendFailure, Job, Loader, QueueSlot, Unreadable
from clipadapter.serve.limits import BODY_GRACE_SECONDS, SMALL_BODY_BYTES, Limits, RequestRefused
from clipadapter.serve.models import ServedModel
from clipadapter.serve.state import RequestContext, ServerState, Upload

MAX_INLINE_BYTES = 64 << 10
"""Longer bodies are parsed in a thread."""
_Parsed = TypeVar("_Parsed")


class PredictionRequest:
    """A request with pictures, in the order of its steps.

    Its queue slot is taken only when the body is there, so that a slow body holds none. A full queue is nevertheless
    noticed before the body is read: see `check_queue`.

    Args:
        request: from FastAPI.
        timeout: seconds that its client waits, if that is less than the server's deadline.
    """

    def __init__(self, request: Request, timeout: float | None = None) -> None:
        self.request = request
        self.state: ServerState = request.app.state.server
        self.context: RequestContext = request.scope["clipadapter"]
        longest = self.state.limits.deadline
        self.seconds = longest if timeout is None else min(timeout, longest)
        self.deadline = self.context.started_at + self.seconds

    def check_queue(self, name: str | None = None) -> None:
        """Refuse a request that would get no slot, before its body is read.

        Raises:
            RequestRefused: if there is no such model, or its queue is full.
        """
        _, slot = self.take_slot(name)
        with slot:
            pass

    async def read_body(self) -> bytearray:
        """The whole body.

        Raises:
            RequestRefused: if it is too long, compressed, too slow, late, or there is no memory for it now.
        """
        limits, headers = self.state.limits, self.request.headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestRefused(415, "the body is packed by a Content-Encoding: send it as it is")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limits.max_bytes:
            raise _body_too_long(limits)
        body = bytearray()
        with self.state.uploads.add() as upload, upload.scope:
            self._set_deadline(upload)
            async for chunk in self.request.stream():
                self._count_bytes(len(chunk))
                body += chunk
                upload.size = len(body)
                self._set_deadline(upload)
        if upload.scope.cancelled_caught:
            raise self._cut_off(upload)
        return body

    def take_slot(self, name: str | None = None) -> tuple[ServedModel, QueueSlot]:
        """The model of a name, and a slot of its queue.

        Raises:
            RequestRefused: if there is no such model, or its queue is full.
        """
        model, slot = self.state.models.take_slot(name)
        self.context.model = model.name
        return model, slot

    async def parse(self, size: int, parse: Callable[..., _Parsed], *args: Any) -> _Parsed:
        """The value of a function that parses the body; a long body is parsed in the parser's thread.

        Args:
            size: of the body, in bytes.
            parse: the function.
            args: of the function.
        """
        if size <= MAX_INLINE_BYTES:
            return parse(*args)
        return await asyncio.get_running_loop().run_in_executor(self.state.parser, parse, *args)

    async def predict(
        self, slot: QueueSlot, loaders: Sequence[Loader], options: Mapping[str, Any]
    ) -> Sequence[Answer | Unreadable]:
        """Results of the pictures.

        Args:
            slot: of the model's queue.
            loaders: of the pictures.
            options: for `RuntimeModel.answer`.

        Raises:
            RequestRefused: if the queue or the places for slow pictures are full, a format is switched off, or the
                results are late.
            ClientDisconnect: if the client disconnected.
        """
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

    def _set_deadline(self, upload: Upload) -> None:
        due_at = upload.due_at(self.state.limits.min_rate, self.deadline)
        upload.scope.deadline = anyio.current_time() + due_at - time.monotonic()

    def _count_bytes(self, size: int) -> None:
        state, context, limits = self.state, self.context, self.state.limits
        context.body_bytes += size
        context.buffered_bytes += size
        state.buffered_bytes += size
        if context.body_bytes > limits.max_bytes:
            raise _body_too_long(limits)
        is_small = context.body_bytes <= SMALL_BODY_BYTES
        if state.buffered_bytes > limits.max_buffered_bytes * (2 if is_small else 1):
            text = "too many large requests are under way: try again soon"
            raise RequestRefused(503, text, reason="memory", retry_after=1)

    def _cut_off(self, upload: Upload) -> RequestRefused:
        limits = self.state.limits
        if upload.is_evicted:
            text = f"this upload was the slowest of {limits.max_bodies} and was stopped to make room: try again"
            return RequestRefused(408, text, reason="bodies", retry_after=1)
        if self._remaining_seconds() <= 0:
            text = f"the body did not come within {self.seconds:g} seconds"
            return RequestRefused(408, text, reason="deadline")
        return RequestRefused(
            408,
            f"the body came too slowly: {upload.size} bytes in {time.monotonic() - upload.started_at:.1f} seconds; "
            f"send {limits.min_rate:g} bytes a second at least, and never pause for {BODY_GRACE_SECONDS:g} seconds",
            reason="rate",
        )

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
