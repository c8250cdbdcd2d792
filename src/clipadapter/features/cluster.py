"""The connection of this process to Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clipadapter.errors import InputError

CONNECT_TIMEOUT_SECONDS = 10.0


@contextmanager
def connect_ray(ray: Any, workers: int | None = None) -> Iterator[bool]:
    """A connection to the Ray that runs in this process, at RAY_ADDRESS, or is started on this machine.

    A connection that is opened here is closed at the end. The value of the context is whether Ray was started on this
    machine, so that there are no other nodes.

    Args:
        ray: the module ``ray``.
        workers: cores of a Ray that is started on this machine; None for all.

    Raises:
        InputError: if the address can't be reached.
    """
    if ray.is_initialized():
        yield False
        return
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray sends usage statistics to its developers
    local_options = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        _check_reachable(address or "")
        ray.init(
            address=address or "local",
            ignore_reinit_error=True,
            log_to_driver=False,
            configure_logging=False,
            **local_options,
        )
    except Exception as error:  # a node that does not start in time is a plain one of Ray
        location = f"at RAY_ADDRESS={address}" if address else "on this machine"
        advice = "call again when the machine is less busy, or do without Ray"
        if address:
            advice = (
                "check the address; a cluster that asks for a token needs RAY_AUTH_MODE=token and its file "
                "~/.ray/auth_token on every node; unset RAY_ADDRESS to use this machine"
            )
        raise InputError(f"no Ray could be reached {location} ({error}): {advice}") from error
    try:
        yield not address
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Connect to ``HOST:PORT`` or ``ray://HOST:PORT`` once: Ray itself tries for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_SECONDS).close()
