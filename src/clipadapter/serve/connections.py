"""HTTP/1.1 with limits on what comes before an app is asked: heads, chunks, connections."""

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
"""Of a request's line and headers; up to twice as many if they come at once."""
FREE_CHUNKS = 1000
MIN_CHUNK_BYTES = 256
"""On average, after the first ``FREE_CHUNKS`` chunks of a body: each costs the parser as much as a kilobyte."""
LINGER_SECONDS = 2.0
"""In which what is left of a refused body is read, so that its client can read why."""


class _Parser(h11.Connection):
    """The parser, which refuses bodies in tiny chunks."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._chunks = self._bytes = 0

    def next_event(self) -> Any:
        """As the parser's.

        Raises:
            RemoteProtocolError: if a body comes in too small chunks.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > FREE_CHUNKS and self._bytes < MIN_CHUNK_BYTES * self._chunks:
                raise h11.RemoteProtocolError("the body comes in too small chunks")
        return event


class LimitedProtocol(H11Protocol):
    """A connection whose head must come in time, and which ends when its body is refused.

    Args:
        config: of uvicorn.
        server_state: of uvicorn; the connections of the server.
        app_state: of uvicorn.
        limits: of the server.
        _loop: that runs it.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        limits: Limits,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = _Parser()
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._idle_since = time.monotonic()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Make room for the connection, and wait for its first head."""
        if len(self.connections) >= self._limits.max_connections:
            self._close_idlest()
        super().connection_made(transport)  # type: ignore[arg-type]
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the timers."""
        self._stop(self._head_timer, self._linger_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Give the parser a little at a time: it judges the length of a head only when it asks for more."""
        idle = self.is_idle
        for start in range(0, len(data), MAX_HEAD_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + MAX_HEAD_BYTES])
        if not self.is_idle:
            self._stop(self._head_timer)
            self._head_timer = None
        elif idle and self._head_timer is None:
            self._start_head_timer()

    def on_response_complete(self) -> None:
        """Wait for the next head; if the body of this one is still coming, not for long."""
        self._idle_since = time.monotonic()
        if self.conn.their_state is h11.SEND_BODY and self._linger_timer is None:
            self._linger_timer = self.loop.call_later(LINGER_SECONDS, self._end_lingering, self.cycle)
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """As uvicorn's; what was not fetched by then is not sent."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.head_timeout, self._end_waiting)

    def _end_waiting(self) -> None:
        self._head_timer = None
        if self.is_idle and not self.transport.is_closing():
            self.transport.close()

    def _end_lingering(self, cycle: Any) -> None:
        self._linger_timer = None
        if self.cycle is cycle and self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()

    def _close_idlest(self) -> None:
        idle = [one for one in self.connections if isinstance(one, LimitedProtocol) and one.is_idle]
        if idle:
            idlest = min(idle, key=lambda one: one._idle_since)
            self.connections.discard(idlest)
            idlest.transport.abort()

    @staticmethod
    def _stop(*timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()
