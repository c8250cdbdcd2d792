"""What a request may bring, and how much of it is taken in at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from clipadapter.errors import ClipAdapterError, InputError

BODY_GRACE_SECONDS = 3.0
"""In which nothing of a body need come: the time that a mobile network may pause."""


@dataclass(frozen=True)
class Limits:
    """What is refused, and when.

    Args:
        max_bytes: of a request's body; counted while it comes in, whatever its header says.
        max_pixels: of a picture; larger ones are refused before they are unpacked.
        max_pictures: of a request.
        max_batch: pictures that run at once.
        max_wait: seconds that a picture waits at most for others that are being unpacked.
        queue: pictures of a model that were taken in and are not answered; more are refused with 503.
        deadline: seconds from a request's first byte to its answer; later it is dropped with 504.
        max_bodies: that come in at a time; for one more the slowest is cut off, or if none is slow, that one refused.
        min_rate: bytes a second that a body must come with, after ``BODY_GRACE_SECONDS``.
        head_timeout: seconds in which the head of a request must have come, from a connection's begin or the head's
            first byte on.
        max_connections: open at a time; for one more the one that has been idle longest is closed.

    Raises:
        InputError: if one is not above zero, or a request could bring more pictures than the queue holds.

    >>> Limits(max_pictures=8, queue=4)
    Traceback (most recent call last):
    ...
    clipadapter.errors.InputError: a request may bring 8 pictures, but the queue holds 4: ...
    """

    max_bytes: int = 32 << 20
    max_pixels: int = 50_000_000
    max_pictures: int = 64
    max_batch: int = 8
    max_wait: float = 0.005
    queue: int = 256
    deadline: float = 10.0
    max_bodies: int = 256
    min_rate: float = 16 << 10
    head_timeout: float = 10.0
    max_connections: int = 800

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            if not 0 < value < math.inf and not (part.name == "max_wait" and value == 0):
                raise InputError(f"{part.name} must be a number above zero, but is {value}")
        if self.max_pictures > self.queue:
            raise InputError(
                f"a request may bring {self.max_pictures} pictures, but the queue holds {self.queue}: "
                "allow fewer or make it longer"
            )

    @property
    def max_held(self) -> int:
        """Bytes of bodies of all requests that are in memory at a time."""
        return 8 * self.max_bytes


class Refused(ClipAdapterError):
    """A request that gets no answer but a reason.

    Args:
        status: of HTTP.
        text: what was wrong, what came, what to do.
        why: one word for the metrics; "" for a mistake of the client.
        retry: seconds after which it may be tried again; None if that would not help.
    """

    def __init__(self, status: int, text: str, why: str = "", retry: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.why = why
        self.retry = retry
