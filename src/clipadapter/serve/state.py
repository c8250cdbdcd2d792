"""State that requests share: models, bodies in memory, and whether the server stops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

from clipadapter.serve.limits import BODY_GRACE_SECONDS, Limits
from clipadapter.serve.models import ServedModels

INITIAL_BYTES = 16 << 10
"""Each body counts as having brought so many bytes when it begins: one that has just begun is not the slowest."""


class ServerState:
    """What all requests share.

    Args:
        models: that are served.

    Attributes:
        buffered_bytes: of all bodies in memory.
        uploads: bodies that are being received.
        parser: one thread, which parses large bodies: more threads would only wait for Python's lock, and so would the
            event loop.
        allowed_hosts: names in the header Host that are answered besides this machine's; None for all.
        is_stopping: the server was asked to stop.
    """

    def __init__(self, models: ServedModels) -> None:
        self.models = models
        self.buffered_bytes = 0
        self.uploads = Uploads(models.limits.max_bodies)
        self.parser = ThreadPoolExecutor(1, "clipadapter-bodies")
        self.allowed_hosts: frozenset[str] | None = None
        self.is_stopping = False

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
    """What the log and the metrics say about a request.

    Args:
        id: in logs and in the answer's header.
        started_at: on the clock of `time.monotonic`.
        body_bytes: received.
        buffered_bytes: of the body, as counted in the server's; 0 once the answer begins.
        model: its name; "" for none.
        pictures: in the request.
        unreadable: of these pictures.
        refusal_reason: one word, if the request was refused because of load or time.
    """

    id: str
    started_at: float = field(default_factory=time.monotonic)
    body_bytes: int = 0
    buffered_bytes: int = 0
    model: str = ""
    pictures: int = 0
    unreadable: int = 0
    refusal_reason: str = ""


class Uploads:
    """The bodies that are being received; for a new one there is always room, the slowest of the others is cut off.

    Args:
        limit: bodies that are received at a time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[Upload] = set()

    @contextmanager
    def add(self) -> Iterator[Upload]:
        """Add a body for as long as it is received."""
        if len(self._open) >= self._limit:
            self._evict_slowest()
        upload = Upload()
        self._open.add(upload)
        try:
            yield upload
        finally:
            self._open.discard(upload)

    def _evict_slowest(self) -> None:
        now = time.monotonic() + 1e-6  # a clock may not have moved since an upload began
        slowest = min(self._open, key=lambda upload: (upload.size + INITIAL_BYTES) / (now - upload.started_at))
        slowest.is_evicted = True
        slowest.scope.cancel()
        self._open.discard(slowest)


class Upload:
    """A body that is being received.

    Attributes:
        started_at: on the clock of `time.monotonic`.
        size: bytes received.
        scope: cancels the reading.
        is_evicted: it was cut off for another body.
    """

    def __init__(self) -> None:
        self.started_at = time.monotonic()
        self.size = 0
        self.scope = anyio.CancelScope()
        self.is_evicted = False

    def due_at(self, min_rate: float, deadline: float) -> float:
        """When it is cut off if no more bytes come, on the clock of `time.monotonic`."""
        due_by_rate = self.started_at + self.size / min_rate + BODY_GRACE_SECONDS
        return min(due_by_rate, time.monotonic() + BODY_GRACE_SECONDS, deadline)
