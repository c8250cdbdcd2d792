"""Features of very many pictures, on the nodes of a Ray cluster."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clipadapter.data.images import get_max_pixels, set_max_pixels
from clipadapter.encoders import create_encoder
from clipadapter.errors import DataError, FingerprintError, InputError, require
from clipadapter.features.cluster import connect_ray
from clipadapter.features.collection import WorkUnit, divide_collection, open_filesystem
from clipadapter.features.shards import ShardPlan, encode_pictures, make_plan, shard_name, write_plan, write_shard

MAX_ATTEMPTS = 3
"""How often a shard is started again if its worker or node dies, the first time included."""


@dataclass(frozen=True)
class ShardReport:
    """The result of `extract_with_ray`.

    Args:
        shards: how many files there are now.
        reused: how many of them existed before.
        pictures: pictures of the files that were written now.
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
        cores: cores of an actor; as many threads read pictures.
        gpus: GPUs of an actor; with them the encoder runs on CUDA.
        batch_size: pictures encoded at a time.
        shard_size: pictures per file, if they come from folders.

    Raises:
        MissingExtraError: if Ray is not installed.
        DataError: if there are no pictures, or a folder can't be read or written.
        InputError: if an argument is out of range, or Ray can't be reached.
    """
    ray = require("ray", "ray", "Extraction with Ray")
    require("ray.data", "ray", "Extraction with Ray")
    if min(batch_size, shard_size, cores, 1 if workers is None else workers) < 1 or gpus < 0:
        raise InputError("batch_size, shard_size, cores and workers must be 1 or more, and gpus 0 or more")
    source_system, path = open_filesystem(source, filesystem)
    target_system, folder = open_filesystem(out)
    units = divide_collection(source_system, path, shard_size)
    opened = create_encoder(encoder)
    names = [shard_name(unit, opened.info.fingerprint) for unit in units]
    plan = make_plan(encoder, opened, names)
    write_plan(target_system, folder, plan)
    infos = target_system.get_file_info([posixpath.join(folder, name) for name in names])
    missing = [unit for unit, file in zip(units, infos, strict=True) if not file.is_file]
    if not missing:
        return ShardReport(len(units), len(units), 0, 0)
    job = RayJob(plan, source_system, target_system, folder, batch_size, cores, "cuda" if gpus else "cpu")
    with connect_ray(ray, None if workers is None else workers * cores), _progress_bars_disabled(ray):
        n_actors = workers or _count_actors(ray, cores, gpus)
        pictures, unreadable = _run_actors(ray, job, missing, n_actors, gpus)
    return ShardReport(len(units), len(units) - len(missing), pictures, unreadable)


@dataclass(frozen=True)
class RayJob:
    """The arguments of every actor.

    Args:
        plan: encoder and files.
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
    """An actor: opens the encoder once, then writes a file for each unit that it receives.

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

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Write units; returns the number of pictures of each unit and of those that could not be read."""
        counts = [self.write_unit(_parse_unit(text)) for text in batch["item"]]
        return {"pictures": [count for count, _ in counts], "unreadable": [bad for _, bad in counts]}

    def write_unit(self, unit: WorkUnit) -> tuple[int, int]:
        """Write one file, unless another worker wrote it meanwhile."""
        job = self.job
        path = posixpath.join(job.folder, shard_name(unit, job.plan.fingerprint))
        if job.target.get_file_info(path).is_file:
            return 0, 0
        rows = list(encode_pictures(self.encoder, unit.images(job.source), job.batch_size, job.cores))
        write_shard(job.target, path, rows, job.plan)
        return len(rows), sum(row.error is not None for row in rows)


def _parse_unit(text: str) -> WorkUnit:
    fields = json.loads(text)
    files = tuple((path, label, split) for path, label, split in fields["files"])
    return WorkUnit(fields["path"], int(fields["group"]), files, fields["stamp"])


def _run_actors(ray: Any, job: RayJob, units: list[WorkUnit], workers: int, gpus: float) -> tuple[int, int]:
    """The number of pictures, and of unreadable ones, of the files that are written."""
    items = [{"item": json.dumps(asdict(unit))} for unit in units]
    data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        ShardWriter,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
        num_cpus=job.cores,
        num_gpus=gpus,
        ray_remote_args_fn=_retry_options,
    )
    pictures = unreadable = 0
    try:
        for row in data.iter_rows():
            pictures += row["pictures"]
            unreadable += row["unreadable"]
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise DataError(f"a shard could not be written: {last}; the written ones are kept, call again") from error
    return pictures, unreadable


def _retry_options() -> dict[str, int]:
    """Ray Data would otherwise retry without end."""
    return {"max_task_retries": MAX_ATTEMPTS - 1}


def _count_actors(ray: Any, cores: int, gpus: float) -> int:
    """How many actors fit into the cluster."""
    resources = ray.cluster_resources()
    limits = [resources.get("CPU", 1) // cores, *([resources.get("GPU", 0) // gpus] if gpus else [])]
    if min(limits) < 1:
        raise InputError(
            f"the cluster has {resources.get('CPU', 0):g} cores and {resources.get('GPU', 0):g} GPUs: "
            "request fewer per actor"
        )
    return int(min(limits))


@contextmanager
def _progress_bars_disabled(ray: Any) -> Iterator[None]:
    """A context in which Ray Data draws no progress bars."""
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = before
