"""State that requests share: models, bodies in memory, and whether the server stops."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from clipadapter.serve.limits import Limits
from clipadapter.serve.models import ServedModels


class ServerState:
    """What all requests share.

    Attributes:
        buffered_bytes: of all bodies in memory.
        allowed_hosts: names in the header Host that are answered besides this machine's; None for all.
        is_stopping: the server was asked to stop.
    """

    def __init__(self, models: ServedModels) -> None:
        self.models = models
        self.buffered_bytes = 0
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
    """What the log and the metrics say about a request."""

    id: str  # in logs and in the answer's header
    started_at: float = field(default_factory=time.monotonic)  # on the clock of `time.monotonic`
    body_bytes: int = 0  # received
    buffered_bytes: int = 0  # of the body, as counted in the server's; 0 once the answer begins
    model: str = ""  # its name; "" for none
    pictures: int = 0  # in the request
    unreadable: int = 0  # of these pictures
    refusal_reason: str = ""  # one word, if the request was refused because of load or time
