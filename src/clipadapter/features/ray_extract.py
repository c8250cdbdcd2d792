"""Features of very many pictures, on the nodes of a Ray cluster."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipadapter.encoders import create_encoder
from clipadapter.errors import DataError, FingerprintError, InputError, require
from clipadapter.features.cluster import connect_ray
from clipadapter.features.collection import Part, find_parts, place
from clipadapter.features.shards import ShardPlan, encode_pictures, shard_name, write_plan, write_shard

ATTEMPTS = 3
"""How often a shard is given out whose worker or node dies."""


@dataclass(frozen=True)
class ShardReport:
    """What `extract_with_ray` did.

    Args:
        shards: how many files there are now.
        there: how many of them were there before.
        pictures: pictures of the files that were made now.
        unreadable: how many of these pictures could not be read; their rows say why.
    """

    shards: int
    there: int
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
    """Compute the features of a collection with a pool of actors, into a folder of Parquet files.

    A file that is there is not made again: a call that was cut short is simply made again. See `read_feature_shards`
    and `import_shards` for what can be done with the folder.

    Args:
        source: a path or URI that every node can read: class folders as `load_dataset` takes them, WebDataset archives
            (``.tar``, with classes in ``.cls``), or Parquet tables with the columns ``path`` or ``bytes``, and
            ``label`` and ``split`` if they are known. An archive or a row group of a table becomes one file.
        encoder: URI.
        out: folder, a path or URI that every node can write.
        filesystem: of pyarrow or fsspec, if the source is a path in one.
        workers: actors; None for as many as the cluster has room for.
        cores: of an actor; so many threads read pictures.
        gpus: of an actor; the encoder then runs on CUDA.
        batch_size: pictures encoded at a time.
        shard_size: pictures of a file, where they come from folders.

    Raises:
        MissingExtraError: if Ray is not installed.
        DataError: if there are no pictures, or a place can't be read or written.
        InputError: if an argument is out of range, or Ray can't be reached.
    """
    ray = require("ray", "ray", "Extraction with Ray")
    require("ray.data", "ray", "Extraction with Ray")
    if min(batch_size, shard_size, cores, 1 if workers is None else workers) < 1 or gpus < 0:
        raise InputError("batch_size, shard_size, cores and workers must be 1 or more, and gpus 0 or more")
    from_, path = place(source, filesystem)
    to, folder = place(out)
    parts = find_parts(from_, path, shard_size)
    info = create_encoder(encoder).info
    names = [shard_name(part, info.fingerprint) for part in parts]
    plan = ShardPlan(encoder=encoder, fingerprint=info.fingerprint, dim=info.dim, shards=names)
    write_plan(to, folder, plan)
    infos = to.get_file_info([posixpath.join(folder, name) for name in names])
    open_ = [part for part, file in zip(parts, infos, strict=True) if not file.is_file]
    if not open_:
        return ShardReport(len(parts), len(parts), 0, 0)
    job = Job(plan, from_, to, folder, batch_size, cores, "cuda" if gpus else "cpu")
    with connect_ray(ray, None if workers is None else workers * cores), _quiet(ray):
        made = _run(ray, job, open_, workers or _room(ray, cores, gpus), gpus)
    return ShardReport(len(parts), len(parts) - len(open_), *made)


@dataclass(frozen=True)
class Job:
    """What every actor knows.

    Args:
        plan: encoder and files.
        source: file system of the pictures.
        target: file system of the shards.
        folder: of the shards.
        batch_size: pictures encoded at a time.
        cores: of an actor.
        device: of the encoder.
    """

    plan: ShardPlan
    source: Any
    target: Any
    folder: str
    batch_size: int
    cores: int
    device: str


class ShardMaker:
    """An actor: opens the encoder once, then makes a file for each part that it is given.

    Args:
        job: what to do.

    Raises:
        FingerprintError: if this node's encoder is another than the one that the files are named for.
    """

    def __init__(self, job: Job) -> None:
        import torch

        torch.set_num_threads(job.cores)
        self.job, self.encoder = job, create_encoder(job.plan.encoder, job.device)
        if self.encoder.info.fingerprint != job.plan.fingerprint:
            raise FingerprintError(
                f"the encoder '{job.plan.encoder}' of this node is not the one of the node that began: "
                "install the same versions and weights on every node"
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Parts to the numbers of their pictures and of those that could not be read."""
        counts = [self.make(_part(text)) for text in batch["item"]]
        return {"pictures": [count for count, _ in counts], "unreadable": [bad for _, bad in counts]}

    def make(self, part: Part) -> tuple[int, int]:
        """One file, unless another worker made it meanwhile."""
        job = self.job
        path = posixpath.join(job.folder, shard_name(part, job.plan.fingerprint))
        if job.target.get_file_info(path).is_file:
            return 0, 0
        rows = list(encode_pictures(self.encoder, part.pictures(job.source), job.batch_size, job.cores))
        write_shard(job.target, path, rows, job.plan)
        return len(rows), sum(row.error is not None for row in rows)


def _part(text: str) -> Part:
    fields = json.loads(text)
    files = tuple((path, label, split) for path, label, split in fields["files"])
    return Part(fields["path"], int(fields["group"]), files, fields["stamp"])


def _run(ray: Any, job: Job, parts: list[Part], workers: int, gpus: float) -> tuple[int, int]:
    """Pictures and unreadable pictures of the files that are made."""
    items = [{"item": json.dumps(asdict(part))} for part in parts]
    data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        ShardMaker,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
        num_cpus=job.cores,
        num_gpus=gpus,
        ray_remote_args_fn=_retries,
    )
    pictures = unreadable = 0
    try:
        for row in data.iter_rows():
            pictures += row["pictures"]
            unreadable += row["unreadable"]
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise DataError(f"a shard could not be made: {last}; those that were made are kept, call again") from error
    return pictures, unreadable


def _retries() -> dict[str, int]:
    """Ray Data's own choice is to try again without end."""
    return {"max_task_retries": ATTEMPTS - 1}


def _room(ray: Any, cores: int, gpus: float) -> int:
    """How many actors the cluster has room for."""
    there = ray.cluster_resources()
    rooms = [there.get("CPU", 1) // cores, *([there.get("GPU", 0) // gpus] if gpus else [])]
    if min(rooms) < 1:
        raise InputError(
            f"the cluster has {there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} GPUs: ask for less"
        )
    return int(min(rooms))


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Without the bars that Ray Data draws."""
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.enable_progress_bars = before
