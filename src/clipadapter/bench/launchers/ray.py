"""Fits on a Ray cluster, or on a Ray of this machine alone.

Features reach nodes that do not share the file system through Ray's object store: once a bundle, asked for by the nodes
that lack it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clipadapter.bench.bundle_files import ARRAYS_FILE, FACTS_FILE
from clipadapter.bench.launchers.base import MAX_ATTEMPTS, Job, JobResult, Launcher, register_launcher
from clipadapter.bench.plan import FitSpec
from clipadapter.bench.worker import set_threads
from clipadapter.cache import default_cache_dir
from clipadapter.errors import InputError, require
from clipadapter.features.cluster import connect_ray

QUEUED_TASKS_PER_CORE = 2
"""Tasks given out for each core of the cluster, so that no core waits and an autoscaler sees what is wanted."""
THREADS_PER_FIT = 1
"""Cores of a fit: many fits side by side use a cluster better than a few that spread out."""


@register_launcher("ray")
class Ray(Launcher):
    """Tasks of Ray, one core each: on the cluster that RAY_ADDRESS names, else on this machine.

    Every node needs this package in the same version. What a node lacks of the features goes to its user's cache
    folder, below ``bundles``.
    """

    def run(self, function: Callable[[str], list[str]], jobs: Sequence[Job]) -> Generator[JobResult, None, None]:
        """As `Launcher.run`.

        Raises:
            MissingExtraError: if Ray is not installed.
            InputError: if the cluster can't be reached, or its nodes lack this package.
        """
        ray = require("ray", "ray", "The launcher ray")
        if not jobs:
            return
        with connect_ray(ray, self.workers) as alone:
            yield from _tasks(ray, self, function, jobs, travel=not alone)


def _tasks(
    ray: Any, launcher: Launcher, function: Callable[[str], list[str]], jobs: Sequence[Job], travel: bool
) -> Generator[JobResult, None, None]:
    """Give tasks out, a few ahead of the cores, and take what comes; a job whose worker or node died goes out again."""
    # Ray's own retries are off: it retries without end what is killed for want of memory.
    perform = ray.remote(num_cpus=THREADS_PER_FIT, max_retries=0, memory=launcher.memory or None)(_perform)
    queue, tries = deque(jobs), Counter[int]()
    running: dict[Any, Job] = {}
    stored: dict[str, list[Any]] = {}
    try:
        while queue or running:
            max_running = launcher.workers or max(1, QUEUED_TASKS_PER_CORE * int(ray.cluster_resources().get("CPU", 1)))
            while queue and len(running) < max_running:
                job = queue.popleft()
                parcel = _parcel(ray, job.task, stored) if travel else []
                running[perform.remote(function, job.task, parcel)] = job
            for reference in ray.wait(list(running), num_returns=1)[0]:
                job = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise _cause(error) from error
                except ray.exceptions.RayError as error:
                    tries[job.number] += 1
                    if tries[job.number] < MAX_ATTEMPTS:
                        queue.append(job)
                        continue
                    first = str(error).strip().split("\n")[0]
                    yield JobResult(job, None, f"its process or node died {MAX_ATTEMPTS} times, the last time: {first}")
                    continue
                yield JobResult(job, result)
    finally:
        for unfinished in running if ray.is_initialized() else ():  # else Ray begins anew, only to cancel
            ray.cancel(unfinished, force=True)


def _cause(error: Any) -> BaseException:
    """What went wrong in the task itself."""
    cause: BaseException = error.cause
    if isinstance(cause, ModuleNotFoundError):
        return InputError(
            f"a node of the Ray cluster lacks '{cause.name}': install the same version of clipadapter on every node"
        )
    return cause


def get_bundle_folder(task: str) -> Path | None:
    """The bundle's folder that a task names; None if the task is none of the bench's."""
    try:
        return Path(FitSpec.model_validate_json(task).bundle)
    except ValidationError:
        return None


def _parcel(ray: Any, task: str, parcels: dict[str, list[Any]]) -> list[Any]:
    """References to a bundle's two files in the object store, put there when it is met first.

    They travel in a list, so that Ray does not unpack them where nobody asks for them.
    """
    folder = get_bundle_folder(task)
    if folder is None:
        return []
    if str(folder) not in parcels:
        parcels[str(folder)] = [ray.put((folder / name).read_bytes()) for name in (FACTS_FILE, ARRAYS_FILE)]
    return parcels[str(folder)]


def _perform(function: Callable[[str], list[str]], task: str, parcel: list[Any]) -> list[str]:
    """In a worker of Ray: make sure that the features are there, then call the function."""
    set_threads(THREADS_PER_FIT)
    folder = get_bundle_folder(task)
    if folder is not None and parcel and not (folder / FACTS_FILE).is_file():
        ray = require("ray", "ray", "The launcher ray")
        unpacked = unpack_bundle(folder.name, lambda: ray.get(parcel))
        task = FitSpec.model_validate_json(task).model_copy(update={"bundle": str(unpacked)}).model_dump_json()
    return function(task)


def unpack_bundle(name: str, fetch: Callable[[], Sequence[bytes]]) -> Path:
    """A bundle in this node's cache, whole or not at all; several workers may unpack one at once.

    Args:
        name: of the bundle's folder, which stands for all that is in it.
        fetch: gives the bytes of its two files; called if they are not there yet.
    """
    folder = default_cache_dir() / "bundles" / Path(name).name
    if (folder / FACTS_FILE).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for file, data in zip((FACTS_FILE, ARRAYS_FILE), fetch(), strict=True):
            (fresh / file).write_bytes(data)
        fresh.replace(folder)
    except OSError:
        if not (folder / FACTS_FILE).is_file():  # another worker may have been faster
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder
