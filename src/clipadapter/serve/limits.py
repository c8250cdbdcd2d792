"""Limits of a request, and the error that refuses one."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from clipadapter.data.images import FORMAT_NAMES
from clipadapter.errors import ClipAdapterError, InputError

BUFFERED_BODIES = 8
"""Number of bodies of the largest size that may be in memory together; small bodies have as much memory again."""
SMALL_BODY_BYTES = 1 << 20  # a few usual photographs: large bodies, however many come, leave room for them
SERVER_FAILED = "the server failed on this request; its log says how"


@dataclass(frozen=True)
class Limits:
    """What is refused, and when.

    >>> Limits(max_pictures=8, queue=4)
    Traceback (most recent call last):
    ...
    clipadapter.errors.InputError: a request may bring 8 pictures, but the queue holds 4: ...
    """

    max_bytes: int = 32 << 20  # of a request's body, counted while it is received, whatever the header says
    max_pixels: int = 50_000_000  # of a picture: larger ones are refused before they are decoded
    max_pictures: int = 64  # largest number of pictures of a request
    max_batch: int = 8  # largest number of pictures that run in one batch
    # Largest number of pictures of a model that were accepted and have no result yet. More are refused with 503.
    # Pictures that are slow to decode do not count: ``max_pictures`` of them may wait besides
    queue: int = 256
    # Seconds from a request's first byte to its answer; a request that takes longer is answered with 504, or with 408
    # if its body is not there by then
    deadline: float = 10.0
    # Seconds in which the headers of a request must arrive, from the start of a connection or their first byte
    header_timeout: float = 10.0
    # Largest number of connections that are open at a time. For one more the longest idle one is closed; if none is
    # idle, the one whose body has been arriving for the longest time
    max_connections: int = 800
    formats: tuple[str, ...] | None = None  # of pictures that are accepted, of `data.images.FORMAT_NAMES`; None for all

    def __post_init__(self) -> None:
        wrong = [name for name in self.formats or () if name not in FORMAT_NAMES]
        if wrong or self.formats == ():
            came = f"are {', '.join(map(repr, wrong))}" if wrong else "name none"
            raise InputError(f"the formats {came}: give some of {', '.join(FORMAT_NAMES)}")
        for limit in fields(self):
            value = getattr(self, limit.name)
            if limit.name != "formats" and not 0 < value < math.inf:
                raise InputError(f"{limit.name} must be a number above zero, but is {value}")
        if self.max_pictures > self.queue:
            raise InputError(
                f"a request may bring {self.max_pictures} pictures, but the queue holds {self.queue}: "
                "allow fewer or make it longer"
            )


class RequestRefused(ClipAdapterError):
    """A request that is answered with an error."""

    def __init__(self, status: int, text: str, reason: str = "", retry_after: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
