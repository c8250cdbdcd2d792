"""The base of all launchers, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from clipadapter.registry import Registry

MAX_ATTEMPTS = 3
"""How often a task is given out whose worker dies."""


@dataclass(frozen=True)
class Job:
    """One task and what it is known by.

    Args:
        number: its place in the plan.
        task: what the function gets: JSON.
    """

    number: int
    task: str


@dataclass(frozen=True)
class JobResult:
    """What came of a job.

    Args:
        job: it.
        result: what the function returned; None if every worker that tried it died.
        error: why there is no result.
    """

    job: Job
    result: list[str] | None
    error: str | None = None


class Launcher(ABC):
    """Runs one function on many tasks, in any order, and outlives a worker's death.

    Args:
        workers: how many at once; None for as many as fit.
        memory: bytes that one worker needs.
    """

    def __init__(self, workers: int | None = None, memory: int = 0) -> None:
        self.workers = workers
        self.memory = memory

    @abstractmethod
    def run(self, function: Callable[[str], list[str]], jobs: Sequence[Job]) -> Generator[JobResult, None, None]:
        """Outcomes as they come; closing the iterator stops the work.

        Args:
            function: importable by its name; text in, texts out.
            jobs: what to do.
        """


LAUNCHERS: Registry[Launcher] = Registry("launcher", "clipadapter.bench.launchers")
register_launcher = LAUNCHERS.register
list_launchers = LAUNCHERS.list
create_launcher = LAUNCHERS.create
