"""The base of all launchers, and their registry."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from clipadapter.errors import InputError
from clipadapter.registry import Registry

MAX_ATTEMPTS = 3
"""How often a job is tried whose worker dies."""


@dataclass(frozen=True)
class Job:
    """One task of a launcher.

    Args:
        number: its position in the plan.
        task: the argument of the function, as JSON.
    """

    number: int
    task: str


@dataclass(frozen=True)
class JobResult:
    """The result of a job.

    Args:
        job: the job.
        result: what the function returned; None if every worker that tried it died.
        error: the reason if there is no result.
    """

    job: Job
    result: list[str] | None
    error: str | None = None


class Launcher(ABC):
    """Runs one function on many tasks, in any order. It survives the death of a worker.

    Args:
        workers: number of workers; None for as many as cores and memory allow.
        memory: bytes that one worker needs.
        device: where fits compute, such as "cpu" or "cuda". With a GPU there is one worker per GPU by default.
    """

    def __init__(self, workers: int | None = None, memory: int = 0, device: str = "cpu") -> None:
        self.workers = workers
        self.memory = memory
        self.device = device

    def check(self) -> None:  # noqa: B027 - the local launcher needs nothing
        """Refuse to run on a machine that lacks a library, or a device that the launcher can't use.

        Raises:
            MissingExtraError: if a library is missing.
            InputError: if it can't use the device.
        """

    @abstractmethod
    def run(self, function: Callable[[str], list[str]], jobs: Sequence[Job]) -> Generator[JobResult, None, None]:
        """Yield results as they are finished; closing the iterator stops the work.

        Args:
            function: importable by its name; it takes a text and returns texts.
            jobs: the jobs.
        """


LAUNCHERS: Registry[Launcher] = Registry("launcher", "clipadapter.bench.launchers")
register_launcher = LAUNCHERS.register
list_launchers = LAUNCHERS.list


def create_launcher(name: str, workers: int | None = None, memory: int = 0, device: str = "cpu") -> Launcher:
    """A new launcher by name. The arguments are those of `Launcher`.

    Raises:
        UnknownNameError: if no launcher has this name.
        InputError: if the class, such as that of a plug-in, does not take these arguments.
    """
    cls = LAUNCHERS.info(name).cls
    try:
        inspect.signature(cls).bind(workers=workers, memory=memory, device=device)
    except TypeError as error:
        raise InputError(
            f"launcher '{name}': {cls.__module__}.{cls.__qualname__} can't be created with workers, memory and device "
            f"({error}): its constructor must take these three, and pass them to that of Launcher"
        ) from error
    return cls(workers=workers, memory=memory, device=device)
