"""Runs the app until it is told to end, and lets what was begun be answered."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import math
import signal
import socket
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from clipadapter.errors import InputError
from clipadapter.serve.connections import LimitedProtocol
from clipadapter.serve.logs import tell
from clipadapter.serve.middleware import LOCALHOST, host_name
from clipadapter.serve.prediction_request import House

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: more than the 60 of common proxies, which else meet a closed one."""
ROOM = 5
"""Seconds beyond the deadline of the last request until it is cut off."""
LAST_REQUEST_SECONDS = 1.0
"""In which connections that are kept may send one more request after the signal; its answer ends them."""


class Server(uvicorn.Server):
    """As uvicorn's, but a signal ends it with success, after all that was begun.

    Args:
        config: of uvicorn.
        house: of the app.
        grace: seconds in which it still answers, though it says that it is not ready.
        opened: is told the address once it listens.
    """

    def __init__(
        self, config: uvicorn.Config, house: House, grace: float = 0.0, opened: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(config)
        self._house, self._grace, self._opened = house, grace, opened

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second Ctrl-C ends at once."""
        self._house.leaving = True
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; tells where it listens."""
        await super().startup(sockets)
        if self.started:
            names = [one.getsockname() for server in self.servers for one in server.sockets]
            for host, port, *_ in names:
                url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
                tell("listening", url=url)
                if self._opened is not None:
                    self._opened(url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, after the grace, and after connections that are kept had time for one more request."""
        tell("leaving", waiting=sum(self._house.models.get(name).batcher.waiting for name in self._house.models.names))
        await self._wait(self._grace, lambda: True)
        # Whoever is told `Connection: close` asks no more; who was not told may be asking at this moment.
        await self._wait(LAST_REQUEST_SECONDS, lambda: bool(self.server_state.connections))
        await super().shutdown(sockets)
        tell("left")

    async def _wait(self, seconds: float, needed: Callable[[], bool]) -> None:
        """Go on as long as it is needed, at most these seconds."""
        for _ in range(math.ceil(10 * seconds)):
            if self.force_exit or not needed():
                return
            await asyncio.sleep(0.1)


def run(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8000,
    grace: float = 0.0,
    opened: Callable[[str], None] | None = None,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what was begun.

    Where only this machine can connect, the header Host must name it, by an address or as localhost: else a page of any
    name could be made to lead here, and read the answers (DNS rebinding).

    Args:
        app: of `create_app`.
        host: address to listen at.
        port: 0 takes a free one, which the log tells.
        grace: seconds in which it still answers after the signal, though it says that it is not ready.
        opened: is told the address once it listens.
        allowed_hosts: further names in the header Host that are answered, "*" for all; if some are given, Host is
            looked at at every address.

    Raises:
        InputError: if the address can't be had.
    """
    house: House = app.state.house
    house.hosts = _hosts(host, allowed_hosts)
    limits = house.limits
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only for sockets that are TCP by name asyncio turns off the delay that answers in two parts would have.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"can't listen at {host}:{port}: {reason}; give another --host or --port") from error
        config = uvicorn.Config(
            app,
            # By name, since uvicorn takes other parsers where they are installed, and none has this one's limits.
            http=cast(Any, functools.partial(LimitedProtocol, limits=limits)),
            lifespan="on",
            ws="none",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=math.ceil(limits.deadline) + ROOM,
        )
        Server(config, house, grace, opened).run([listening])


def _hosts(host: str, allowed: Sequence[str]) -> frozenset[str] | None:
    """Names that are answered at an address beside this machine's; None for all."""
    if "*" in allowed or (not allowed and not _is_loopback(host)):
        return None
    return frozenset(host_name(name) for name in allowed)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == LOCALHOST
