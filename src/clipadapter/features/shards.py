"""Features as a folder of Parquet files, for collections that are too large for one file or one process.

``shards.json`` lists the files that belong together. The name of a file is a hash of its pictures and the encoder, so a
file that exists is never computed again.
"""

from __future__ import annotations

import json
import posixpath
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipadapter.encoders import Encoder
from clipadapter.errors import DataError, ImageError, InputError, brief, require
from clipadapter.features.collection import (
    ImageRef,
    StorageError,
    WorkUnit,
    describe_storage_error,
    is_file,
    list_folder,
    open_filesystem,
    refuse_links,
)
from clipadapter.features.export import check_feature_bytes, read_table
from clipadapter.features.extraction import ExtractionJob, NoStore, run_job
from clipadapter.features.feature_set import FeatureSet
from clipadapter.features.store import FeatureStore, feature_key
from clipadapter.utils.blocks import MAX_BLOCK_WIDTH, MAX_BLOCKS, Blocks, as_blocks, total_width
from clipadapter.utils.files import ABANDONED_SECONDS, SHARDS_FILE, describe_parquet_error

FORMAT: Final = 1
"""Format number of a folder of shards."""
OWN_NAMES = rf"{re.escape(SHARDS_FILE)}|.*\.(parquet|partial)"
MAX_PLAN_BYTES = 256 << 20
PURPOSE = "Feature shards"
SPLITS = ("all", "test", "train", "val")
COLUMNS = ("path", "label", "split", "feature", "error", "digest")


class ShardBlock(BaseModel):
    """A block of the columns of the features, see `clipadapter.utils.blocks`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    width: int = Field(ge=1, le=MAX_BLOCK_WIDTH)
    fingerprint: str  # by which the feature store knows it


class ShardPlan(BaseModel):
    """``shards.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = FORMAT
    encoder: str  # URI
    fingerprint: str
    dim: int = Field(ge=1, le=1 << 20)
    blocks: list[ShardBlock] = Field(min_length=1, max_length=MAX_BLOCKS)  # of the columns, ``final`` first
    shards: list[Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.parquet$")]]

    def feature_blocks(self) -> Blocks:
        """The blocks of the features.

        Raises:
            InputError: if ``final`` is not the first.
        """
        return as_blocks((block.name, block.width) for block in self.blocks)


def make_plan(uri: str, encoder: Encoder, shards: list[str]) -> ShardPlan:
    """The plan of a folder of shards with these file names, by an encoder that was opened from the URI."""
    info = encoder.info
    blocks = [
        ShardBlock(name=block.name, width=block.width, fingerprint=fingerprint)
        for block, fingerprint in zip(info.blocks, encoder.block_fingerprints(), strict=True)
    ]
    return ShardPlan(encoder=uri, fingerprint=info.fingerprint, dim=info.dim, blocks=blocks, shards=shards)


@dataclass(frozen=True)
class ShardRow:
    """The features of a picture, or the reason why there are none."""

    path: str
    label: str | None
    split: str
    digest: bytes | None = None  # of its file, as in the keys of the feature store; None if it could not be read
    feature: NDArray[np.float32] | None = None  # (d,)
    error: str | None = None


def shard_name(unit: WorkUnit, fingerprint: str) -> str:
    """File name of the features of a unit."""
    return (
        blake2b(json.dumps([1, fingerprint, unit.stamp, unit.group]).encode(), digest_size=16).hexdigest() + ".parquet"
    )


def encode_pictures(
    encoder: Encoder, pictures: Iterable[ImageRef], threads: Executor, n_threads: int, batch_size: int
) -> Iterator[ShardRow]:
    """Features of pictures in order. These threads read and prepare pictures while the encoder works.

    Raises:
        StorageError: if the storage of the pictures does not answer.
    """
    window: dict[int, ImageRef] = {}
    job = ExtractionJob(encoder, window, NoStore(), batch_size=batch_size, workers=n_threads)
    positions = (i for i, picture in enumerate(pictures) if window.setdefault(i, picture))
    with closing(run_job(job, positions, threads)) as batches:
        for extracted in (one for batch in batches for one in batch):
            picture, values = window.pop(extracted.position), extracted.values
            row = ShardRow(picture.path, picture.label, picture.split, extracted.digest)
            yield (
                replace(row, error=values.reason) if isinstance(values, ImageError) else replace(row, feature=values[0])
            )


def write_shard(filesystem: Any, path: str, rows: Sequence[ShardRow], plan: ShardPlan) -> None:
    """Write a file of features atomically."""
    pa = require("pyarrow", "parquet", PURPOSE)
    parquet = require("pyarrow.parquet", "parquet", PURPOSE)
    facts = {"clipadapter.encoder": plan.encoder, "clipadapter.fingerprint": plan.fingerprint}
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    table = pa.table(columns, schema=_table_schema(pa).with_metadata(facts))
    sink = pa.BufferOutputStream()
    # Features do not compress, and a dictionary of them would cost time only.
    parquet.write_table(table, sink, compression="none", use_dictionary=["label", "split"])
    _write_atomically(filesystem, path, sink.getvalue())


def count_pictures(filesystem: Any, path: str) -> tuple[int, int]:
    """Count the pictures of a shard, and those that could not be read. Only the metadata of the file is read."""
    parquet = require("pyarrow.parquet", "parquet", PURPOSE)
    with _naming_errors(path), filesystem.open_input_file(path) as file:
        metadata = parquet.read_metadata(file)
    error_columns = [metadata.row_group(i).column(COLUMNS.index("error")) for i in range(metadata.num_row_groups)]
    return metadata.num_rows, metadata.num_rows - sum(column.statistics.null_count for column in error_columns)


def _table_schema(pa: Any) -> Any:
    types = {"feature": pa.list_(pa.float32()), "digest": pa.binary()}
    return pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])


def create_folder(filesystem: Any, folder: str) -> None:
    """Create the folder of shards if it does not exist."""
    refuse_links(filesystem, folder, OWN_NAMES)
    try:
        filesystem.create_dir(folder, recursive=True)
    except OSError as error:
        advice = "give a folder that you may write to"
        if filesystem.type_name == "s3":
            advice = "check the bucket, which must exist, the server (AWS_ENDPOINT_URL) and the credentials"
        raise StorageError(f"'{folder}' can't be created: {describe_storage_error(error)}; {advice}") from error


def write_plan(filesystem: Any, folder: str, plan: ShardPlan) -> None:
    """Create the folder and write ``shards.json``."""
    create_folder(filesystem, folder)
    _write_atomically(filesystem, posixpath.join(folder, SHARDS_FILE), plan.model_dump_json(indent=1).encode())


def list_shards(filesystem: Any, folder: str) -> set[str]:
    """Names of the Parquet files in a folder."""
    return {info.base_name for info in list_folder(filesystem, folder) if info.extension == "parquet"}


def remove_abandoned_parts(filesystem: Any, folder: str) -> None:
    """Remove the partial files of killed workers, once they are a day old."""
    for info in list_folder(filesystem, folder):
        is_part = re.fullmatch(r"\.[0-9a-f]{32}\.partial", info.base_name)
        if is_part and info.mtime_ns is not None and time.time() - info.mtime_ns / 1e9 > ABANDONED_SECONDS:
            with suppress(OSError):  # another call removed it first
                filesystem.delete_file(info.path)


def _write_atomically(filesystem: Any, path: str, data: Any) -> None:
    # An object of S3 exists when all of it is stored. There a move would be a copy and a deletion.
    is_atomic = filesystem.type_name == "s3"
    partial = path if is_atomic else posixpath.join(posixpath.dirname(path), f".{uuid.uuid4().hex}.partial")
    try:
        with filesystem.open_output_stream(partial) as stream:
            stream.write(data)
        if not is_atomic:
            filesystem.move(partial, path)
    except OSError as error:
        if not is_atomic:
            with suppress(OSError):
                filesystem.delete_file(partial)
        raise StorageError(
            f"'{path}' can't be written: {describe_storage_error(error)}; check the folder's permissions and free space"
        ) from error


def read_plan(filesystem: Any, folder: str) -> ShardPlan:
    """Read ``shards.json`` of a folder.

    Raises:
        DataError: if it is missing or damaged.
    """
    path = posixpath.join(folder, SHARDS_FILE)
    try:
        refuse_links(filesystem, folder, OWN_NAMES)
        with filesystem.open_input_stream(path) as stream:
            data = stream.read(MAX_PLAN_BYTES + 1)
    except OSError as error:
        raise DataError(f"'{folder}' holds no feature shards: {SHARDS_FILE} can't be read ({error})") from error
    try:
        if len(data) > MAX_PLAN_BYTES:
            raise ValueError(f"it has more than {MAX_PLAN_BYTES >> 20} MB")
        raw = json.loads(data)
        number = raw.get("format") if isinstance(raw, dict) else None
        if type(number) is int and number != FORMAT:
            raise DataError(
                f"'{path}' has format {number}, this version reads {FORMAT}: update clipadapter, or extract the "
                "features again"
            )
        plan = ShardPlan.model_validate(raw)
        if plan.dim != total_width(plan.feature_blocks()):
            raise ValueError(f"its blocks have not the width {plan.dim}")
        return plan
    except DataError:
        raise
    except (InputError, ValidationError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is damaged: {error}; extract the features again, existing files are kept") from error


class FeatureShards:
    """A folder of shards of which only labels and splits are in memory: 5 bytes per picture. Features are read by row.

    Pictures that could not be read have no row.

    Args:
        folder: a folder that `extract_with_ray` wrote: a path or a URI.
        filesystem: file system of pyarrow or fsspec, if the folder is a path in it.

    Attributes:
        plan: content of ``shards.json``.
        name: name of the folder.

    Raises:
        DataError: if shards are missing or damaged.
        MissingExtraError: if pyarrow is not installed.
    """

    def __init__(self, folder: str | Path, filesystem: Any = None) -> None:
        self.folder = str(folder)
        self.name = posixpath.basename(self.folder.rstrip("/"))
        self._system, self._path = open_filesystem(folder, filesystem)
        self.plan = read_plan(self._system, self._path)
        pa = require("pyarrow", "parquet", PURPOSE)
        labels, splits, self._starts = [], [], [0]
        for path in _shard_paths(self._system, self._path, self.plan):
            table = _read_shard(self._system, path, self.plan.dim, ("label", "split", "error"))
            readable = table.filter(table["error"].is_null()).combine_chunks()
            labels.append(readable["label"].dictionary_encode().combine_chunks())
            splits.append(_split_numbers(path, readable["split"]))
            self._starts.append(self._starts[-1] + len(readable))
        self._labels = pa.chunked_array(labels, pa.dictionary(pa.int32(), pa.string())).unify_dictionaries()
        self._splits = np.concatenate([np.empty(0, np.int8), *splits])

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have pictures."""
        return tuple(sorted(SPLITS[i] for i in np.unique(self._splits)))

    def rows(self, split: str | None = None) -> NDArray[np.int64]:
        """Rows of a split; of all pictures if it is None.

        Raises:
            DataError: if there are none.
        """
        numbers = [i for i, name in enumerate(SPLITS) if split in (name, None)]
        rows = np.flatnonzero(np.isin(self._splits, numbers))
        if not len(rows):
            raise DataError(
                f"'{self.folder}' has no features{f' of the split {brief(split)}' if split else ''}; its splits: "
                f"{', '.join(self.splits) or 'none'}"
            )
        return rows

    def labels(self, rows: NDArray[np.int64]) -> list[str]:
        """Class names of rows.

        Raises:
            DataError: if a picture has no label.
        """
        labels: list[str] = self._labels.take(rows).to_pylist()
        unlabelled = labels.count(None)  # type: ignore[arg-type]
        if unlabelled:
            raise DataError(f"{unlabelled} of {len(labels)} pictures of '{self.folder}' have no label")
        return labels

    def take(
        self, rows: NDArray[np.int64], class_names: Sequence[str] | None = None, *, with_sources: bool = False
    ) -> FeatureSet:
        """Read the features of rows. One shard at a time is in memory besides the result.

        Args:
            rows: in any order.
            class_names: all classes in order; None for those of the rows, sorted.
            with_sources: whether the provenance names the picture of each row, as that of a fit does.

        Raises:
            DataError: if a shard is damaged, or a picture has no label.
        """
        check_feature_bytes(self.folder, len(rows), self.plan.dim)
        labels = self.labels(rows)
        features = np.empty((len(rows), self.plan.dim), np.float32)
        sources = np.empty(len(rows) if with_sources else 0, object)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of):
            path = posixpath.join(self._path, self.plan.shards[shard])
            table, values = _read_features(self._system, path, self.plan)
            positions = np.flatnonzero(shard_of == shard)
            inside = rows[positions] - self._starts[shard]
            if len(values) != self._starts[shard + 1] - self._starts[shard]:
                raise DataError(f"'{path}' changed: read the folder again")
            features[positions] = values[inside]
            if with_sources:
                sources[positions] = table["path"].take(inside).to_pylist()
        plan, names = self.plan, sorted(set(labels)) if class_names is None else class_names
        provenance: dict[str, Any] = {"encoder": plan.encoder, "fingerprint": plan.fingerprint, "data": self.name}
        if with_sources:
            facts = {"rows": rows.tolist(), "sources": sources.tolist(), "skipped": [], "computed": 0, "views": 1}
            provenance |= facts
        return FeatureSet(features, tuple(labels), tuple(names), provenance, blocks=plan.feature_blocks())


def holds_shards(folder: str | Path) -> bool:
    """Whether a path or URI is a folder of shards."""
    if "://" not in str(folder):
        return (Path(folder) / SHARDS_FILE).is_file()
    system, path = open_filesystem(folder)
    return is_file(system, posixpath.join(path, SHARDS_FILE))


def read_feature_shards(folder: str | Path, split: str | None = None, filesystem: Any = None) -> FeatureSet:
    """Read all features of a folder of shards; pictures that could not be read are left out.

    `FeatureShards` reads only the rows that are needed.

    Args:
        folder: a folder that `extract_with_ray` wrote: a path or a URI.
        split: only this split: "train", "val", "test" or "all".
        filesystem: file system of pyarrow or fsspec, if the folder is a path in it.

    Raises:
        DataError: if shards are missing or damaged, pictures have no label, or none is left.
        MissingExtraError: if pyarrow is not installed.
    """
    shards = FeatureShards(folder, filesystem)
    return shards.take(shards.rows(split))


def import_shards(folder: str | Path, store: FeatureStore, filesystem: Any = None) -> int:
    """Copy the features of shards into a store, from which commands take them.

    Args:
        folder: as for `read_feature_shards`.
        store: the store to fill.
        filesystem: as for `read_feature_shards`.

    Returns:
        How many features were new; each block of a picture counts.

    Raises:
        DataError: if shards are missing or damaged.
        StoreError: if the store can't be written.
    """
    system, path = open_filesystem(folder, filesystem)
    plan = read_plan(system, path)
    blocks, new = plan.blocks, 0
    for shard in _shard_paths(system, path, plan):
        table, values = _read_features(system, shard, plan)
        digests = table["digest"].to_pylist()
        for block, part in zip(
            blocks, np.split(values, np.cumsum([b.width for b in blocks])[:-1], axis=1), strict=True
        ):
            keys = [feature_key(digest, block.fingerprint, "plain") for digest in digests]
            new += store.put_many(dict(zip(keys, part, strict=True)))
    return new


def _shard_paths(filesystem: Any, folder: str, plan: ShardPlan) -> list[str]:
    """Paths of all files, none of which is missing."""
    missing = len(set(plan.shards) - list_shards(filesystem, folder))
    if missing:
        raise DataError(
            f"{missing} of {len(plan.shards)} shards of '{folder}' are missing: call extract_with_ray again"
        )
    return [posixpath.join(folder, name) for name in plan.shards]


def _split_numbers(path: str, splits: Any) -> NDArray[np.int8]:
    pa, compute = (require(name, "parquet", PURPOSE) for name in ("pyarrow", "pyarrow.compute"))
    numbers = compute.index_in(splits, pa.array(SPLITS))
    if numbers.null_count:
        wrong = splits.filter(numbers.is_null())[0].as_py()
        raise DataError(f"'{path}' is damaged: a split is {brief(str(wrong))}, not one of {', '.join(SPLITS)}")
    return np.asarray(numbers.to_numpy(), np.int8)


def _read_shard(filesystem: Any, path: str, dim: int, columns: Sequence[str] = COLUMNS) -> Any:
    """Columns of a shard.

    Raises:
        DataError: if it can't be read, or has other columns than shards have.
    """
    pa, parquet = (require(name, "parquet", PURPOSE) for name in ("pyarrow", "pyarrow.parquet"))
    with _naming_errors(path), filesystem.open_input_file(path) as file:
        schema = parquet.read_schema(file)
        if not schema.equals(_table_schema(pa)):
            raise ValueError(f"its columns are {', '.join(f'{one.name} {one.type}' for one in schema)}")
        widths = {"feature": dim} if "feature" in columns else {}
        return read_table(file, path, widths, [name for name in columns if name != "feature"])


def _read_features(filesystem: Any, path: str, plan: ShardPlan) -> tuple[Any, NDArray[np.float32]]:
    """The rows of a shard that have a feature, and the features (m, d).

    Raises:
        DataError: if the shard can't be read, or does not fit the plan.
    """
    table = _read_shard(filesystem, path, plan.dim)
    with _naming_errors(path):
        if (table.schema.metadata or {}).get(b"clipadapter.fingerprint") != plan.fingerprint.encode():
            raise ValueError("it is of another encoder")
        has_feature, has_error = (table[name].is_valid().to_numpy() for name in ("feature", "error"))
        wrong = np.flatnonzero(has_feature == has_error)
        if len(wrong):
            what = "both a feature and an error" if has_feature[wrong[0]] else "neither a feature nor an error"
            raise ValueError(f"row {wrong[0]} has {what}")
        table = table.filter(has_feature)
        column = table["feature"].combine_chunks()
        widths = set(column.value_lengths().to_pylist())
        if widths - {plan.dim}:
            raise ValueError(f"features have width {sorted(widths)}, not {plan.dim}")
        if table["digest"].null_count:
            raise ValueError("a feature has no digest")
        return table, column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), plan.dim)


@contextmanager
def _naming_errors(path: str) -> Iterator[None]:
    """Turn errors of the storage and of the format into ours. Some damage is an OSError of pyarrow too."""
    try:
        yield
    except OSError as error:
        reason = describe_storage_error(error)
        raise StorageError(f"'{path}' can't be read: {reason}; if it is damaged, delete it and call again") from error
    except ValueError as error:
        reason = describe_parquet_error(error)
        raise DataError(f"'{path}' is damaged: {reason}; delete it and call extract_with_ray again") from error
