"""Features of very many pictures, on the nodes of a Ray cluster."""

from __future__ import annotations

import posixpath
import time
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipadapter.data.images import get_max_pixels, set_max_pixels
from clipadapter.encoders import create_encoder
from clipadapter.errors import ClipAdapterError, DataError, FingerprintError, InputError, require
from clipadapter.features.cluster import connect_ray
from clipadapter.features.collection import StorageError, WorkUnit, divide_collection, is_file, open_filesystem
from clipadapter.features.shards import (
    ShardPlan,
    count_pictures,
    create_folder,
    encode_pictures,
    list_shards,
    make_plan,
    remove_abandoned_parts,
    shard_name,
    write_plan,
    write_shard,
)

MAX_ATTEMPTS = 3
"""How often a shard is tried whose worker or node dies, the first time included."""
STORAGE_RETRY_SECONDS = (1.0, 4.0)
"""Waits before a shard is tried again whose storage does not answer."""
REMOTE_READERS = 16
"""Threads of an actor that read from a storage that is no local disk: they wait for answers most of the time."""
CLUSTER_CHECK_SECONDS = 5.0
"""How often the number of nodes is looked up, so that nodes that join later work too; also the wait after an actor died
while it opened, since its node may fail again."""
MAX_SECONDS_WITHOUT_WORKERS = 300.0
"""After this time without any worker, the call ends. An autoscaler needs minutes to start a node."""


@dataclass(frozen=True)
class ShardReport:
    """The result of `extract_with_ray`.

    Args:
        shards: how many files there are now.
        reused: how many of them existed before.
        pictures: pictures of the other files.
        unreadable: how many of these pictures could not be read; their rows say why.
    """

    shards: int
    reused: int
    pictures: int
    unreadable: int


def extract_with_ray(
    source: str | Path,
    encoder: str,
    out: str | Path,
    *,
    filesystem: Any = None,
    workers: int | None = None,
    cores: int = 1,
    gpus: float = 0,
    batch_size: int = 32,
    shard_size: int = 10_000,
) -> ShardReport:
    """Extract the features of a collection with a pool of Ray actors, into a folder of Parquet files.

    Existing files are not written again, so an interrupted call can be repeated. `read_feature_shards` and
    `import_shards` read the folder.

    Args:
        source: a path or URI that every node can read: class folders as for `load_dataset`, WebDataset archives
            (``.tar``, with classes in ``.cls``), or Parquet tables with a column ``path`` or ``bytes``, and optionally
            ``label`` and ``split``. An archive or a row group of a table becomes one file.
        encoder: URI of the encoder; with several blocks of features such as ``lite[final,inner]``.
        out: folder, a path or URI that every node can write.
        filesystem: file system of pyarrow or fsspec, if the source is a path in it.
        workers: number of actors; None for as many as fit into the cluster.
        cores: cores of an actor; as many threads read pictures, and 16 or more from other storages than local disks.
        gpus: GPUs of an actor; with them the encoder runs on CUDA.
        batch_size: pictures encoded at a time.
        shard_size: pictures per file, if they come from folders.

    Raises:
        MissingExtraError: if Ray is not installed.
        DataError: if there are no pictures, or a folder can't be read or written.
        InputError: if an argument is out of range, or Ray can't be reached.
    """
    ray = require("ray", "ray", "Extraction with Ray")
    if min(batch_size, shard_size, cores, 1 if workers is None else workers) < 1 or gpus < 0:
        raise InputError("batch_size, shard_size, cores and workers must be 1 or more, and gpus 0 or more")
    source_system, path = open_filesystem(source, filesystem)
    target_system, folder = open_filesystem(out)
    units = divide_collection(source_system, path, shard_size)
    create_folder(target_system, folder)  # before the encoder is opened, so that a wrong one is refused at once
    remove_abandoned_parts(target_system, folder)
    plan = _make_plan(encoder, units)
    write_plan(target_system, folder, plan)
    existing = list_shards(target_system, folder)
    missing = [unit for unit, name in zip(units, plan.shards, strict=True) if name not in existing]
    n_shards = len(units)
    del units  # a shard that is written needs no memory any more
    if not missing:
        return ShardReport(n_shards, n_shards, 0, 0)
    plan = plan.model_copy(update={"shards": []})
    job = RayJob(plan, source_system, target_system, folder, batch_size, cores, "cuda" if gpus else "cpu")
    n_missing = len(missing)
    with connect_ray(ray, None if workers is None else workers * cores):
        pictures, unreadable = _WriterPool(ray, job, missing, workers, gpus).run()
    return ShardReport(n_shards, n_shards - n_missing, pictures, unreadable)


def _make_plan(encoder: str, units: Iterable[WorkUnit]) -> ShardPlan:
    """The plan of all files. The encoder is opened for its fingerprint and freed, since a driver may run for days."""
    opened = create_encoder(encoder)
    return make_plan(encoder, opened, [shard_name(unit, opened.info.fingerprint) for unit in units])


@dataclass(frozen=True)
class RayJob:
    """The arguments of every actor.

    Args:
        plan: the encoder; without the list of files, which an actor does not need.
        source: file system of the pictures.
        target: file system of the shards.
        folder: folder of the shards.
        batch_size: pictures encoded at a time.
        cores: cores of an actor.
        device: device of the encoder.
        max_pixels: limit of `set_max_pixels` in the process that started.
    """

    plan: ShardPlan
    source: Any
    target: Any
    folder: str
    batch_size: int
    cores: int
    device: str
    max_pixels: int = field(default_factory=get_max_pixels)


class ShardWriter:
    """Opens the encoder once, then writes a file for each unit that it receives.

    Args:
        job: encoder, file systems and batch size.

    Raises:
        FingerprintError: if the encoder of this node differs from the one that the files are named after.
    """

    def __init__(self, job: RayJob) -> None:
        import torch

        torch.set_num_threads(job.cores)
        set_max_pixels(job.max_pixels)
        self.job, self.encoder = job, create_encoder(job.plan.encoder, job.device)
        if self.encoder.info.fingerprint != job.plan.fingerprint:
            raise FingerprintError(
                f"the encoder '{job.plan.encoder}' of this node is not the one of the node that started: "
                "install the same versions and weights on every node"
            )
        self.n_readers = job.cores if job.source.type_name == "local" else max(job.cores, REMOTE_READERS)
        # The same threads for all shards: glibc keeps 40 MB of freed pixels for each thread, and new ones at each shard
        # took new memory each time, up to 700 MB.
        self.readers = ThreadPoolExecutor(self.n_readers, thread_name_prefix="clipadapter-read")

    def write_unit(self, unit: WorkUnit) -> tuple[int, int]:
        """Write one file, unless another worker wrote it before it died, or another call meanwhile.

        Returns:
            The number of its pictures, and of unreadable ones.

        Raises:
            DataError: if the file can't be written, or exists and is damaged.
        """
        job = self.job
        path = posixpath.join(job.folder, shard_name(unit, job.plan.fingerprint))
        if is_file(job.target, path):
            return count_pictures(job.target, path)
        pictures = unit.images(job.source)
        rows = list(encode_pictures(self.encoder, pictures, self.readers, job.batch_size, 2 * self.n_readers))
        write_shard(job.target, path, rows, job.plan)
        return len(rows), sum(row.error is not None for row in rows)


class _ShardActor:
    """A `ShardWriter` in a process of Ray. It is opened by a method, so that the caller sees the error itself."""

    def open(self, job: RayJob) -> None:
        self.writer = ShardWriter(job)

    def write(self, unit: WorkUnit) -> tuple[int, int]:
        for seconds in STORAGE_RETRY_SECONDS:
            try:
                return self.writer.write_unit(unit)
            except StorageError:
                time.sleep(seconds)
        return self.writer.write_unit(unit)


@dataclass(frozen=True)
class _Call:
    """A running call of an actor.

    Args:
        actor: the handle of the actor.
        unit: what it writes; None while it opens the encoder.
    """

    actor: Any
    unit: WorkUnit | None


class _WriterPool:
    """Actors that write one shard at a time each. A shard goes to the first actor that is free.

    Ray Data is not used: when a node dies, its map over an actor pool ends with the first call that finds the actor
    gone, and it assigns shards to actors before these are free.

    Args:
        ray: the module ``ray``.
        job: arguments of every actor.
        units: the shards to write.
        workers: number of actors; None for as many as fit into the cluster at any time.
        gpus: GPUs of an actor.
    """

    def __init__(self, ray: Any, job: RayJob, units: Iterable[WorkUnit], workers: int | None, gpus: float) -> None:
        self.ray, self.job, self.workers, self.gpus = ray, job, workers, gpus
        self.queue, self.attempts = deque(units), Counter[WorkUnit]()
        self.calls: dict[Any, _Call] = {}
        # Ray's own restarts are off: a restarted actor waits for resources with the shard that it was given.
        self.actor_class = ray.remote(_ShardActor).options(
            num_cpus=job.cores, num_gpus=gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        self.shared_job = ray.put(job)
        self.opening_failures, self.next_start = 0, 0.0

    def run(self) -> tuple[int, int]:
        """Write all shards.

        Returns:
            The number of pictures, and of unreadable ones.

        Raises:
            InputError: if an actor fits on no node.
            DataError: if a shard can't be written.
        """
        ray, pictures, unreadable = self.ray, 0, 0
        wanted, checked, last_worked = self._count_wanted(), time.monotonic(), time.monotonic()
        if wanted < 1:
            raise InputError(f"{self._describe_cluster()}: request fewer per actor")
        try:
            while self.queue or any(call.unit for call in self.calls.values()):
                if time.monotonic() - checked > CLUSTER_CHECK_SECONDS:
                    wanted, checked = self._count_wanted(), time.monotonic()
                while self._may_start() and len(self.calls) < min(wanted, len(self.queue) + self._count_writing()):
                    self._start_actor()
                if self._count_writing():
                    last_worked = time.monotonic()
                elif time.monotonic() - last_worked > MAX_SECONDS_WITHOUT_WORKERS:
                    raise InputError(
                        f"no worker started for {MAX_SECONDS_WITHOUT_WORKERS:.0f} s, and {len(self.queue)} shards are "
                        f"missing: {self._describe_cluster()}; add nodes and call again, the written ones are kept"
                    )
                if not self.calls:  # every node is gone, or all actors died
                    time.sleep(CLUSTER_CHECK_SECONDS)
                    continue
                for reference in ray.wait(list(self.calls), num_returns=1, timeout=CLUSTER_CHECK_SECONDS)[0]:
                    counts = self._finish(reference)
                    pictures, unreadable = pictures + counts[0], unreadable + counts[1]
        finally:
            for call in self.calls.values() if ray.is_initialized() else ():
                ray.kill(call.actor)
        return pictures, unreadable

    def _count_writing(self) -> int:
        return sum(call.unit is not None for call in self.calls.values())

    def _may_start(self) -> bool:
        """Whether an actor may be started: one that died while it opened is replaced after a wait.

        After `MAX_ATTEMPTS` of these, those that are opening must come first, unless others write.
        """
        is_hopeful = self.opening_failures < MAX_ATTEMPTS or self._count_writing() > 0
        return is_hopeful and time.monotonic() >= self.next_start

    def _start_actor(self) -> None:
        actor = self.actor_class.remote()
        self.calls[actor.open.remote(self.shared_job)] = _Call(actor, None)

    def _finish(self, reference: Any) -> tuple[int, int]:
        """Take the result of a call, and give its actor the next shard."""
        call = self.calls.pop(reference)
        try:
            counts = self.ray.get(reference) or (0, 0)
            self.opening_failures = 0
        except self.ray.exceptions.RayTaskError as error:
            self.ray.kill(call.actor)
            raise _explain(error.cause) from error
        except self.ray.exceptions.RayError as error:
            self._replace(call, str(error).strip().split("\n")[0])
            return 0, 0
        if self.queue:
            unit = self.queue.popleft()
            self.calls[call.actor.write.remote(unit)] = _Call(call.actor, unit)
        else:
            self.ray.kill(call.actor)  # frees its cores, and the memory of its encoder
        return counts

    def _replace(self, call: _Call, reason: str) -> None:
        """Put the shard of an actor that is gone back into the queue.

        An actor that merely can't be reached may still write its file, which has the same name and the same rows.

        Raises:
            DataError: if it was the last attempt. Actors that die while they open end the call only when no other one
                writes or opens: it may be a single node.
        """
        self.ray.kill(call.actor)
        if call.unit is None:
            self.opening_failures += 1
            self.next_start = time.monotonic() + CLUSTER_CHECK_SECONDS
            what, attempts = "opened the encoder", self.opening_failures
            is_last = attempts >= MAX_ATTEMPTS and not self.calls
        else:
            self.queue.appendleft(call.unit)
            self.attempts[call.unit] += 1
            what, attempts = f"wrote the shard of {call.unit.describe()}", self.attempts[call.unit]
            is_last = attempts >= MAX_ATTEMPTS
        if is_last:
            raise DataError(
                f"the process that {what} died {attempts} times, the last time: {reason}; perhaps memory ran out: "
                "use fewer workers per node (cores=) or a smaller batch_size; the written shards are kept, call again"
            )

    def _count_wanted(self) -> int:
        """How many actors there should be."""
        if self.workers is not None:
            return self.workers
        resources = self.ray.cluster_resources()
        limits = [resources.get("CPU", 0) // self.job.cores]
        return int(min([*limits, *([resources.get("GPU", 0) // self.gpus] if self.gpus else [])]))

    def _describe_cluster(self) -> str:
        resources = self.ray.cluster_resources()
        return f"the cluster has {resources.get('CPU', 0):g} cores and {resources.get('GPU', 0):g} GPUs"


def _explain(cause: BaseException) -> ClipAdapterError:
    """The error of a node as one for the user."""
    if isinstance(cause, ModuleNotFoundError):
        return InputError(
            f"a node of the Ray cluster lacks '{cause.name}': install the same version of clipadapter on every node"
        )
    if isinstance(cause, StorageError | FingerprintError):
        return cause
    reason = str(cause).strip().split("\n")[0] or type(cause).__name__
    return DataError(f"a shard could not be written: {reason}; the written ones are kept, call again")
