"""Runs the app until it is told to end, and lets what was begun be answered."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from clipadapter.errors import InputError
from clipadapter.serve.logs import tell
from clipadapter.serve.visits import House

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: more than the 60 of common proxies, which else meet a closed one."""
ROOM = 5
"""Seconds beyond the deadline of the last request until it is cut off."""


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
        """As uvicorn's, after the grace."""
        tell("leaving", waiting=sum(self._house.models.get(name).batcher.waiting for name in self._house.models.names))
        for _ in range(math.ceil(10 * self._grace)):
            if not self.force_exit:
                await asyncio.sleep(0.1)
        await super().shutdown(sockets)
        tell("left")


def run(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8000,
    grace: float = 0.0,
    opened: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what was begun.

    Args:
        app: of `create_app`.
        host: address to listen at.
        port: 0 takes a free one, which the log tells.
        grace: seconds in which it still answers after the signal, though it says that it is not ready.
        opened: is told the address once it listens.

    Raises:
        InputError: if the address can't be had.
    """
    house: House = app.state.house
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
            lifespan="on",
            ws="none",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=math.ceil(house.limits.deadline) + ROOM,
        )
        Server(config, house, grace, opened).run([listening])
