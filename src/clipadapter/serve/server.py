"""Runs the app until it is asked to stop, and lets requests that have begun finish.

Its HTTP/1.1 connections have limits on what arrives before the app is called: heads, chunks, connections.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import math
import signal
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from clipadapter.errors import InputError
from clipadapter.serve.limits import Limits
from clipadapter.serve.logs import log_event
from clipadapter.serve.middleware import LOCALHOST, host_name, is_address
from clipadapter.serve.prediction_request import ServerState

KEEP_ALIVE_SECONDS = 75
"""An idle connection is kept longer than the 60 seconds of common proxies, which else use a closed one."""
SHUTDOWN_MARGIN_SECONDS = 5  # beyond the deadline of the last request, until it is cut off
LAST_REQUEST_SECONDS = 1.0
"""After the signal, in which idle connections may send one more request; its answer closes them."""
POLL_SECONDS = 0.1
MAX_HEAD_BYTES = 16 << 10  # of a request's line and headers; up to twice as many if they arrive at once
UNCHECKED_CHUNKS = 1000
MIN_CHUNK_BYTES = 256
"""On average, after the first ``UNCHECKED_CHUNKS`` chunks of a body: each costs the parser as much as a kilobyte."""
LINGER_SECONDS = 2.0
"""In which the rest of a refused body is read, so that its client reads the answer instead of a reset."""


def run(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8000,
    grace: float = 0.0,
    on_listening: Callable[[str], None] | None = None,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Serve until SIGTERM or Ctrl-C, then let requests that have begun finish.

    Where only this machine can connect, the header Host must name it, by an address or as localhost. Else a web page
    could let its own name lead here and read the answers (DNS rebinding).

    Args:
        app: of `create_app`.
        host: address to listen at.
        port: 0 takes a free one, which the log names.
        grace: seconds in which requests are still answered after the signal, though the server is not ready.
        on_listening: called with the URL once the server listens.
        allowed_hosts: further names in the header Host that are answered, "*" for all; if some are given, Host is
            checked at every address.

    Raises:
        InputError: if the server can't listen at the address.
    """
    state: ServerState = app.state.server
    is_loopback = host == LOCALHOST or (is_address(host) and ipaddress.ip_address(host).is_loopback)
    if "*" not in allowed_hosts and (allowed_hosts or is_loopback):
        state.allowed_hosts = frozenset(map(host_name, allowed_hosts))
    limits = state.models.limits
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # IPPROTO_TCP by name: asyncio sets TCP_NODELAY only then, and an answer in two packets would wait 40 ms without it.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"can't listen at {host}:{port}: {reason}; give another --host or --port") from error
        config = uvicorn.Config(
            app,
            # Named, since uvicorn else takes httptools where that is installed, which has none of these limits.
            http=cast(Any, functools.partial(LimitedProtocol, limits=limits)),
            lifespan="on",
            ws="none",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(limits.deadline) + SHUTDOWN_MARGIN_SECONDS,
        )
        Server(config, state, grace, on_listening).run([listening])


class Server(uvicorn.Server):
    """As uvicorn's, but a signal ends it with exit status 0, after all requests that have begun."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, grace: float, on_listening: Callable[[str], None] | None
    ) -> None:
        super().__init__(config)
        self._state, self._grace, self._on_listening = state, grace, on_listening

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second Ctrl-C stops at once."""
        self._state.is_stopping = True
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; then reports the URL at which it listens."""
        await super().startup(sockets)
        if self.started:
            host, port, *_ = self.servers[0].sockets[0].getsockname()
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            log_event("listening", url=url)
            if self._on_listening is not None:
                self._on_listening(url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, after the grace, and after idle connections had time for one more request."""
        models = self._state.models
        log_event("stopping", waiting=sum(models.get(name).batcher.pending for name in models.names))
        await self._wait_while(lambda: True, self._grace)
        # A client that has read `Connection: close` sends no more; another one may be sending at this moment.
        await self._wait_while(lambda: bool(self.server_state.connections), LAST_REQUEST_SECONDS)
        await super().shutdown(sockets)
        log_event("stopped")

    async def _wait_while(self, condition: Callable[[], bool], seconds: float) -> None:
        for _ in range(math.ceil(seconds / POLL_SECONDS)):
            if self.force_exit or not condition():
                return
            await asyncio.sleep(POLL_SECONDS)


# ---- Connections ----


class LimitedProtocol(H11Protocol):
    """A connection that is closed if a head is late, or after a body was refused."""

    def __init__(self, *args: Any, limits: Limits, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = ChunkLimitingParser(h11.SERVER, MAX_HEAD_BYTES)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None  # closes the connection; None while a request is answered
        self._idle_since = time.monotonic()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_lingering(self) -> bool:
        """Whether a request was answered whose body is still arriving."""
        return self.is_idle and self.conn.their_state is h11.SEND_BODY

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close another connection if there are too many, and wait for the first head."""
        if len(self.connections) >= self._limits.max_connections:
            self._make_room()
        super().connection_made(transport)  # type: ignore[arg-type]
        self._set_timer(self._limits.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timer."""
        self._set_timer(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass small pieces to the parser: it checks the length of a head only when it needs more bytes."""
        was_lingering = self.is_lingering
        for start in range(0, len(data), MAX_HEAD_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + MAX_HEAD_BYTES])
        if not self.is_idle:
            self._set_timer(None)
        elif not self.is_lingering and (was_lingering or self._timer is None):
            self._set_timer(self._limits.header_timeout)

    def on_response_complete(self) -> None:
        """Wait for the next head; for a short time only if the body of this request is still arriving."""
        self._idle_since = time.monotonic()
        if self.is_lingering:
            self._set_timer(LINGER_SECONDS)
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """As uvicorn's; an answer that the client has not read by then is not sent."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _set_timer(self, seconds: float | None) -> None:
        """Close the connection after so many seconds, also if the client has not read an answer; None: do not."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _make_room(self) -> None:
        """Close the longest idle connection; if none is idle, the one whose body has been arriving the longest."""
        others = [one for one in self.connections if isinstance(one, LimitedProtocol)]
        waiting = [one for one in others if one.is_idle or one.conn.their_state is h11.SEND_BODY]
        if waiting:
            longest = min(waiting, key=lambda one: (not one.is_idle, one._idle_since))
            self.connections.discard(longest)
            longest.transport.abort()


class ChunkLimitingParser(h11.Connection):
    """The parser of h11, which refuses bodies in tiny chunks."""

    _chunk_count = _byte_count = 0  # of the body that is arriving

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
