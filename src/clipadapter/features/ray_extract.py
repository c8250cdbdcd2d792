"""Features of very many pictures, on the nodes of a Ray cluster."""

from __future__ import annotations

import json
import math
import os
import posixpath
import re
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

from clipadapter.data.images import get_max_pixels, set_max_pixels
from clipadapter.encoders import Encoder, create_encoder
from clipadapter.errors import ClipAdapterError, DataError, FingerprintError, ImageError, InputError, require
from clipadapter.features.collection import (
    CALL_AGAIN,
    NOT_OPENED,
    ImageRef,
    StorageError,
    WorkUnit,
    divide_collection,
    is_file,
    list_folder,
    list_shards,
    open_filesystem,
    refuse_links,
    storage_errors,
)
from clipadapter.features.extraction import ExtractionJob, run_job
from clipadapter.features.tables import FeatureRow, ShardBlock, ShardPlan, open_table, write_rows
from clipadapter.utils.files import ABANDONED_SECONDS, SHARDS_FILE

MAX_ATTEMPTS = 3  # how often a shard is tried whose worker or node dies, the first time included
STORAGE_RETRY_SECONDS = (1.0, 4.0)  # waits before a shard is tried again whose storage does not answer
REMOTE_READERS = 16
"""Threads of a process that read from a storage that is no local disk: they wait for answers most of the time."""
CHECK_SECONDS = 5.0  # how often the size of the cluster is looked up, so that nodes that join later work too
CONNECT_TIMEOUT_SECONDS = 10.0
MAX_SECONDS_WITHOUT_NODES = 300.0
"""After this time without any node, the call ends. An autoscaler needs minutes to start one."""


@dataclass(frozen=True)
class ShardReport:
    """The result of `extract_with_ray`."""

    shards: int  # how many files there are now
    reused: int  # how many of them existed before
    pictures: int  # pictures of the other files
    unreadable: int  # how many of these pictures could not be read; their rows say why


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
    """Extract the features of a collection with tasks of Ray, into a folder of Parquet files.

    Existing files are not written again, so an interrupted call can be repeated. `read_features` and
    `import_shards` read the folder.

    Args:
        source: a path or URI that every node can read: class folders as for `load_dataset`, WebDataset archives
            (``.tar``, with classes in ``.cls``), or Parquet tables with a column ``path`` or ``bytes``, and optionally
            ``label`` and ``split``. An archive or a row group of a table becomes one file.
        encoder: URI of the encoder; with several blocks of features such as ``lite[final,inner]``.
        out: folder, a path or URI that every node can write.
        filesystem: file system of pyarrow or fsspec, if the source is a path in it.
        workers: shards that are written at the same time; None for as many as fit into the cluster.
        cores: cores of a shard; as many threads read pictures, and 16 or more from other storages than local disks.
        gpus: GPUs of a shard; with them the encoder runs on CUDA, and is opened for each shard.
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
    opened = create_encoder(encoder)
    plan = make_plan(encoder, opened, [shard_name(unit, opened.info.fingerprint) for unit in units])
    del opened  # it would stay in memory for days
    write_plan(target_system, folder, plan)
    existing = list_shards(target_system, folder)
    missing = [unit for unit, name in zip(units, plan.shards, strict=True) if name not in existing]
    n_shards, n_missing = len(units), len(missing)
    del units  # a shard that is written needs no memory any more
    if not missing:
        return ShardReport(n_shards, n_shards, 0, 0)
    plan = plan.model_copy(update={"shards": []})
    job = RayJob(plan, source_system, target_system, folder, batch_size, cores, "cuda" if gpus else "cpu")
    with _connect(ray, None if workers is None else workers * cores):
        pictures, unreadable = _write_units(ray, job, missing, workers, gpus)
    return ShardReport(n_shards, n_shards - n_missing, pictures, unreadable)


@dataclass(frozen=True)
class RayJob:
    """The arguments of every task."""

    plan: ShardPlan  # without the list of files, which a task does not need
    source: Any  # file system of the pictures
    target: Any  # file system of the shards
    folder: str
    batch_size: int
    cores: int
    device: str
    max_pixels: int = field(default_factory=get_max_pixels)  # of the process that started


@lru_cache(maxsize=1)
def _open_worker(
    uri: str, fingerprint: str, device: str, cores: int, readers: int
) -> tuple[Encoder, ThreadPoolExecutor]:
    """The encoder of this process, and its threads that read."""
    # The same threads for all shards: glibc keeps 40 MB of freed pixels for each thread, and new ones at each shard
    # took new memory each time, up to 700 MB.
    import torch

    torch.set_num_threads(cores)
    encoder = create_encoder(uri, device)
    if encoder.info.fingerprint != fingerprint:
        raise FingerprintError(
            f"the encoder '{uri}' of this node is not the one of the node that started: "
            "install the same versions and weights on every node"
        )
    return encoder, ThreadPoolExecutor(readers, thread_name_prefix="read-shards")


def write_unit(job: RayJob, unit: WorkUnit) -> tuple[int, int]:
    """Write one file, unless it is there; gives the numbers of its pictures and of the unreadable ones."""
    set_max_pixels(job.max_pixels)
    for seconds in STORAGE_RETRY_SECONDS:
        try:
            return _try_to_write(job, unit, is_last_try=False)
        except StorageError:
            time.sleep(seconds)
    return _try_to_write(job, unit, is_last_try=True)


def _try_to_write(job: RayJob, unit: WorkUnit, is_last_try: bool) -> tuple[int, int]:
    is_local = job.source.type_name == "local"
    readers = job.cores if is_local else max(job.cores, REMOTE_READERS)
    encoder, pool = _open_worker(job.plan.encoder, job.plan.fingerprint, job.device, job.cores, readers)
    path = posixpath.join(job.folder, shard_name(unit, job.plan.fingerprint))
    if is_file(job.target, path):
        return count_pictures(job.target, path)
    rows = []
    extraction = ExtractionJob(encoder, None, batch_size=job.batch_size, workers=readers)
    with closing(run_job(extraction, unit.images(job.source, is_last_try), pool)) as batches:
        for each in chain.from_iterable(batches):
            picture, values = each.source, each.values
            assert isinstance(picture, ImageRef) and values is not None
            error, feature = (values.reason, None) if isinstance(values, ImageError) else (None, values[0])
            rows.append(FeatureRow(picture.path, picture.label, picture.split, feature, error, each.digest))
    lost = next((row for row in rows if row.error and row.error.startswith(NOT_OPENED)), None)
    if lost and not is_local and all(row.digest is None for row in rows):
        # One picture that can't be read is its own fault. If none can, the fault is the storage's, for a time only.
        raise StorageError(f"no picture of {unit.name} can be read: '{lost.path}' {lost.error}; {CALL_AGAIN}")
    write_shard(job.target, path, rows, job.plan)
    return len(rows), sum(row.error is not None for row in rows)


def shard_name(unit: WorkUnit, fingerprint: str) -> str:
    """File name of the features of a unit."""
    facts = json.dumps([1, fingerprint, unit.stamp, unit.group]).encode()
    return blake2b(facts, digest_size=16).hexdigest() + ".parquet"


def write_shard(filesystem: Any, path: str, rows: Sequence[FeatureRow], plan: ShardPlan) -> None:
    """Write a file of features atomically."""
    pa = require("pyarrow", "parquet", "Feature shards")
    sink, fingerprints = pa.BufferOutputStream(), [block.fingerprint for block in plan.blocks]
    write_rows(sink, rows, plan.encoder, plan.fingerprint, plan.feature_blocks(), fingerprints, with_errors=True)
    write_object(filesystem, path, sink.getvalue())


def count_pictures(filesystem: Any, path: str) -> tuple[int, int]:
    """How many pictures a shard has, and how many of them could not be read."""
    with open_table(filesystem, path, advice="delete it and call extract_with_ray again") as reader:
        errors = reader.read(columns=["error"]).column("error")
        return len(errors), len(errors) - errors.null_count


@contextmanager
def _connect(ray: Any, n_cores: int | None) -> Iterator[None]:
    """The Ray of this process or at RAY_ADDRESS, or one started here with n cores; what is opened here is closed."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray sends usage statistics to its developers
    options = {} if address else {"num_cpus": n_cores, "include_dashboard": False}
    try:
        host, _, port = (address or "").rpartition("://")[2].rpartition(":")
        if host and port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_SECONDS).close()
        ray.init(address or "local", ignore_reinit_error=True, log_to_driver=False, configure_logging=False, **options)
    except Exception as error:  # a node that does not start in time is a plain one of Ray
        location = f"at RAY_ADDRESS={address}" if address else "on this machine"
        advice = (
            "check the address; a cluster that asks for a token needs RAY_AUTH_MODE=token and its file "
            "~/.ray/auth_token on every node; unset RAY_ADDRESS to use this machine"
            if address
            else "call again when the machine is less busy, or do without Ray"
        )
        raise InputError(f"no Ray could be reached {location} ({error}): {advice}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _write_units(ray: Any, job: RayJob, units: Iterable[WorkUnit], workers: int | None, gpus: float) -> tuple[int, int]:
    """Write all shards, each by a task. A shard whose process or node died is written by another task."""
    # Ray's own retries are off: it never stops to retry tasks that are killed because memory ran out.
    task = ray.remote(write_unit).options(
        num_cpus=job.cores, num_gpus=gpus, max_retries=0, scheduling_strategy="SPREAD"
    )
    shared_job, queue, attempts = ray.put(job), deque(units), Counter[WorkUnit]()
    running: dict[Any, WorkUnit] = {}
    pictures, unreadable, last_node = 0, 0, -math.inf
    try:
        while queue or running:
            slots = _count_slots(ray, job.cores, gpus)
            last_node = time.monotonic() if slots else last_node
            if time.monotonic() - last_node > MAX_SECONDS_WITHOUT_NODES:
                cluster = ray.cluster_resources()
                raise InputError(
                    f"the cluster has {cluster.get('CPU', 0):g} cores and {cluster.get('GPU', 0):g} GPUs; no node has "
                    f"enough for one of {len(queue) + len(running)} shards: request fewer (cores=, gpus=), or add "
                    "nodes and call again"
                )
            while queue and len(running) < (workers or max(1, slots)):
                unit = queue.popleft()
                running[task.remote(shared_job, unit)] = unit
            for reference in ray.wait(list(running), num_returns=1, timeout=CHECK_SECONDS)[0]:
                unit = running.pop(reference)
                try:
                    counts = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise _explain(error.cause) from error
                except ray.exceptions.RayError as error:
                    attempts[unit] += 1
                    if attempts[unit] == MAX_ATTEMPTS:
                        reason = str(error).strip().split("\n")[0]
                        raise DataError(
                            f"the process that wrote the shard of {unit.name} died {MAX_ATTEMPTS} times, the "
                            f"last time: {reason}; perhaps memory ran out: use fewer workers per node (cores=) or a "
                            "smaller batch_size; the written shards are kept, call again"
                        ) from error
                    queue.append(unit)  # last, since the place that is free now may be one where processes die
                else:
                    pictures, unreadable = pictures + counts[0], unreadable + counts[1]
    finally:
        for reference in running if ray.is_initialized() else ():  # else Ray would start again, only to cancel
            ray.cancel(reference, force=True)
    return pictures, unreadable


def _count_slots(ray: Any, cores: int, gpus: float) -> int:
    """How many shards fit onto the nodes at a time."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    limits = [
        (one.get("CPU", 0) // cores, one.get("GPU", 0) // gpus if gpus else one.get("CPU", 0)) for one in resources
    ]
    return int(sum(map(min, limits)))


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


def make_plan(uri: str, encoder: Encoder, shards: list[str]) -> ShardPlan:
    """The plan of a folder of shards with these file names, by an encoder that was opened from the URI."""
    info = encoder.info
    blocks = [
        ShardBlock(name=block.name, width=block.width, fingerprint=fingerprint)
        for block, fingerprint in zip(info.blocks, encoder.block_fingerprints(), strict=True)
    ]
    return ShardPlan(encoder=uri, fingerprint=info.fingerprint, blocks=blocks, shards=shards)


def create_folder(filesystem: Any, folder: str) -> None:
    """Create the folder of shards if it does not exist."""
    refuse_links(filesystem, folder)
    advice = "give a folder that you may write to"
    if filesystem.type_name == "s3":
        advice = "check the bucket, which must exist, the server (AWS_ENDPOINT_URL) and the credentials"
    with storage_errors(folder, "can't be created", advice):
        filesystem.create_dir(folder, recursive=True)


def write_plan(filesystem: Any, folder: str, plan: ShardPlan) -> None:
    """Create the folder and write ``shards.json``."""
    create_folder(filesystem, folder)
    write_object(filesystem, posixpath.join(folder, SHARDS_FILE), plan.model_dump_json(indent=1).encode())


def remove_abandoned_parts(filesystem: Any, folder: str) -> None:
    """Remove the partial files of killed workers, once they are a day old."""
    for info in list_folder(filesystem, folder):
        is_part = re.fullmatch(r"\.[0-9a-f]{32}\.partial", info.base_name)
        if is_part and info.mtime_ns is not None and time.time() - info.mtime_ns / 1e9 > ABANDONED_SECONDS:
            with suppress(OSError):  # another call removed it first
                filesystem.delete_file(info.path)


def write_object(filesystem: Any, path: str, data: Any) -> None:
    """Write a file atomically."""
    # An object of S3 exists when all of it is stored. There a move would be a copy and a deletion.
    is_atomic = filesystem.type_name == "s3"
    partial = path if is_atomic else posixpath.join(posixpath.dirname(path), f".{uuid.uuid4().hex}.partial")
    with storage_errors(path, "can't be written", "check the folder's permissions and free space"):
        try:
            with filesystem.open_output_stream(partial) as stream:
                stream.write(data)
            if not is_atomic:
                filesystem.move(partial, path)
        except OSError:
            if not is_atomic:
                with suppress(OSError):
                    filesystem.delete_file(partial)
            raise
