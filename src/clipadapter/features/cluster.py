"""Ray as it is reached from this process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clipadapter.errors import InputError

PATIENCE = 10.0
"""Seconds in which a cluster must answer."""


@contextmanager
def connect_ray(ray: Any, workers: int | None = None) -> Iterator[bool]:
    """Ray as it runs already in this process, at RAY_ADDRESS, or on this machine; what is begun here ends here.

    Gives whether it was begun here, so that there are no other nodes.

    Args:
        ray: the module.
        workers: cores of a Ray that is begun on this machine; None for all.

    Raises:
        InputError: if the address can't be reached.
    """
    if ray.is_initialized():
        yield False
        return
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a Ray that is begun here reports to its makers
    own = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        _knock(address or "")
        ray.init(
            address=address or "local", ignore_reinit_error=True, log_to_driver=False, configure_logging=False, **own
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        place = f"at RAY_ADDRESS={address}" if address else "on this machine"
        advice = "do without Ray"
        if address:
            advice = "check the address and the cluster's token, or unset RAY_ADDRESS to use this machine"
        raise InputError(f"no Ray could be reached {place} ({error}): {advice}") from error
    try:
        yield not address
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See whether anybody listens at ``HOST:PORT`` or ``ray://HOST:PORT``; Ray itself tries for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
