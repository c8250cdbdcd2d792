"""Runs fits on a Ray cluster, or on Ray on this machine.

Nodes that do not share the file system get features through Ray's object store. Each bundle is stored once, and nodes
without it fetch it.
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
from clipadapter.errors import InputError, require, require_installed
from clipadapter.features.cluster import connect_ray

QUEUED_TASKS_PER_CORE = 2
"""Tasks submitted per core of the cluster, so that no core waits and an autoscaler sees the demand; per GPU on GPUs."""
THREADS_PER_FIT = 1
"""Cores per fit: many parallel fits use a cluster better than a few fits with many threads."""


@register_launcher("ray")
class Ray(Launcher):
    """Runs fits as tasks of Ray, one core each: on the cluster that RAY_ADDRESS names, else on this machine.

    Every node needs this package in the same version. Features that a node lacks are stored in the cache folder of its
    user, below ``bundles``. With a GPU, each fit has one core and one GPU.
    """

    def check(self) -> None:
        """As `Launcher.check`."""
        require_installed("ray", "ray", "The launcher ray")
        if ":" in self.device:
            raise InputError(
                f"the launcher ray gives each fit a GPU of its node: give {self.device.partition(':')[0]} in place of "
                f"{self.device}"
            )

    def run(self, function: Callable[[str], list[str]], jobs: Sequence[Job]) -> Generator[JobResult, None, None]:
        """As `Launcher.run`.

        Raises:
            MissingExtraError: if Ray is not installed.
            InputError: if the cluster can't be reached, or its nodes lack this package.
        """
        ray = require("ray", "ray", "The launcher ray")
        if not jobs:
            return
        with connect_ray(ray, self.workers) as is_local:
            yield from _tasks(ray, self, function, jobs, travel=not is_local)


def _tasks(
    ray: Any, launcher: Launcher, function: Callable[[str], list[str]], jobs: Sequence[Job], travel: bool
) -> Generator[JobResult, None, None]:
    """Submit more tasks than there are cores, and yield results. A job whose worker died is submitted again."""
    # Ray's own retries are off: it never stops to retry tasks that are killed because memory ran out.
    gpus = 0 if launcher.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    if launcher.device != "cpu" and not gpus:
        raise InputError("no node of the Ray cluster has a GPU: start one with --num-gpus, or give the device cpu")
    needs = {"num_cpus": THREADS_PER_FIT, "num_gpus": min(gpus, 1), "memory": launcher.memory or None}
    perform = ray.remote(max_retries=0, **needs)(_perform)
    queue, tries = deque(jobs), Counter[int]()
    running: dict[Any, Job] = {}
    stored: dict[str, list[Any]] = {}
    try:
        while queue or running:
            slots = gpus or int(ray.cluster_resources().get("CPU", 1))
            max_running = launcher.workers or max(1, QUEUED_TASKS_PER_CORE * slots)
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
        for unfinished in running if ray.is_initialized() else ():  # else Ray would start again, only to cancel
            ray.cancel(unfinished, force=True)


def _cause(error: Any) -> BaseException:
    """The exception of the task itself."""
    cause: BaseException = error.cause
    if isinstance(cause, ModuleNotFoundError):
        return InputError(
            f"a node of the Ray cluster lacks '{cause.name}': install the same version of clipadapter on every node"
        )
    return cause


def get_bundle_folder(task: str) -> Path | None:
    """The folder of the bundle that a task names; None for a task that is no `FitSpec`."""
    try:
        return Path(FitSpec.model_validate_json(task).bundle)
    except ValidationError:
        return None


def _parcel(ray: Any, task: str, parcels: dict[str, list[Any]]) -> list[Any]:
    """References to the two files of a bundle in the object store, where the first call stores them.

    They are passed in a list, so that Ray does not fetch the files on nodes that have them.
    """
    folder = get_bundle_folder(task)
    if folder is None:
        return []
    if str(folder) not in parcels:
        parcels[str(folder)] = [ray.put((folder / name).read_bytes()) for name in (FACTS_FILE, ARRAYS_FILE)]
    return parcels[str(folder)]


def _perform(function: Callable[[str], list[str]], task: str, parcel: list[Any]) -> list[str]:
    """In a worker of Ray: fetch the features if the node lacks them, then call the function."""
    set_threads(THREADS_PER_FIT)
    folder = get_bundle_folder(task)
    if folder is not None and parcel and not (folder / FACTS_FILE).is_file():
        ray = require("ray", "ray", "The launcher ray")
        unpacked = unpack_bundle(folder.name, lambda: ray.get(parcel))
        task = FitSpec.model_validate_json(task).model_copy(update={"bundle": str(unpacked)}).model_dump_json()
    return function(task)


def unpack_bundle(name: str, fetch: Callable[[], Sequence[bytes]]) -> Path:
    """Write a bundle to the cache of this node, completely or not at all. Several workers may do so at the same time.

    Args:
        name: of the bundle's folder, a hash of its contents.
        fetch: returns the bytes of its two files; called if they are not in the cache.
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
        if not (folder / FACTS_FILE).is_file():  # another worker may have written it first
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder
