"""HTTP/1.1 connections with limits on what arrives before the app is called: heads, chunks, connections."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from clipadapter.serve.limits import Limits

MAX_HEAD_BYTES = 16 << 10
"""Of a request's line and headers; up to twice as many if they arrive at once."""
UNCHECKED_CHUNKS = 1000
MIN_CHUNK_BYTES = 256
"""On average, after the first ``UNCHECKED_CHUNKS`` chunks of a body: each costs the parser as much as a kilobyte."""
LINGER_SECONDS = 2.0
"""In which the rest of a refused body is read, so that its client reads the answer instead of a reset."""


class LimitedProtocol(H11Protocol):
    """A connection that is closed if a head is late, or after a body was refused."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        limits: Limits,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = ChunkLimitingParser()
        self._limits = limits
        self._header_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._idle_since = time.monotonic()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waits_for_client(self) -> bool:
        """Whether it is idle, or the body of its request is arriving."""
        return self.is_idle or self.conn.their_state is h11.SEND_BODY

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close another connection if there are too many, and wait for the first head."""
        if len(self.connections) >= self._limits.max_connections:
            self._make_room()
        super().connection_made(transport)  # type: ignore[arg-type]
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self._cancel(self._header_timer, self._linger_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass small pieces to the parser: it checks the length of a head only when it needs more bytes."""
        was_idle = self.is_idle
        for start in range(0, len(data), MAX_HEAD_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + MAX_HEAD_BYTES])
        if not self.is_idle:
            self._cancel(self._header_timer)
            self._header_timer = None
        elif was_idle and self._header_timer is None:
            self._start_header_timer()

    def on_response_complete(self) -> None:
        """Wait for the next head; for a short time only if the body of this request is still arriving."""
        self._idle_since = time.monotonic()
        if self.conn.their_state is h11.SEND_BODY and self._linger_timer is None:
            self._linger_timer = self.loop.call_later(LINGER_SECONDS, self._abort_if_lingering, self.cycle)
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """As uvicorn's; an answer that the client has not read by then is not sent."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self._limits.header_timeout, self._close_if_idle)

    def _close_if_idle(self) -> None:
        self._header_timer = None
        if self.is_idle and not self.transport.is_closing():
            self.transport.close()

    def _abort_if_lingering(self, cycle: Any) -> None:
        self._linger_timer = None
        if self.cycle is cycle and self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()

    def _make_room(self) -> None:
        """Close the longest idle connection; if none is idle, the one whose body has been arriving the longest."""
        waiting = [one for one in self.connections if isinstance(one, LimitedProtocol) and one.waits_for_client]
        if waiting:
            longest = min(waiting, key=lambda one: (not one.is_idle, one._idle_since))
            self.connections.discard(longest)
            longest.transport.abort()

    @staticmethod
    def _cancel(*timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()


class ChunkLimitingParser(h11.Connection):
    """The parser of h11, which refuses bodies in tiny chunks."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._chunk_count = self._byte_count = 0

    def next_event(self) -> Any:
        """As h11's."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunk_count = self._byte_count = 0
        elif isinstance(event, h11.Data):
            self._chunk_count += event.chunk_start
            self._byte_count += len(event.data)
            too_small = self._byte_count < MIN_CHUNK_BYTES * self._chunk_count
            if self._chunk_count > UNCHECKED_CHUNKS and too_small:
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        return event
