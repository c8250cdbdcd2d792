"""The pictures of one request, and what becomes of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipadapter.runtime import Outputs
from clipadapter.uncertainty import Answers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a batch said of one picture.

    Args:
        outputs: of the graph, for the batch.
        answers: what to say of the batch.
        row: of the picture.
    """

    outputs: Outputs
    answers: Answers
    row: int


@dataclass(frozen=True)
class Bad:
    """A picture that can't be read, and why."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """A picture on which the backend failed."""


class Job:
    """The pictures of one request.

    Args:
        size: how many.
        asked: for `RuntimeModel.answers`.
        deadline: on the clock of `time.monotonic`.

    Attributes:
        results: one a picture, None until it is there, and for good if it was dropped.
        done: of the running event loop; its result is set when all pictures are settled.
    """

    def __init__(self, size: int, asked: Mapping[str, Any], deadline: float) -> None:
        self.asked = dict(asked)
        self.deadline = deadline
        self.results: list[Answer | Bad | Failed | None] = [None] * size
        self.left = size
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._given_up = False

    @property
    def dead(self) -> bool:
        """Whether nobody waits for it."""
        return self._given_up or time.monotonic() > self.deadline

    def give_up(self) -> None:
        """Drop what has not run."""
        self._given_up = True

    def finish(self) -> None:
        """Wake who waits; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._resolve)
        except RuntimeError:  # the loop was closed: the server was told not to wait
            logger.debug("a job ended after its event loop")

    def _resolve(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
