"""Tables of features: Parquet files, alone or as the shards of a folder. They may be larger than memory.

A row is a picture. Each block of features is a column of its own: ``feature`` is the block ``final``, which class text
is compared with, ``feature:inner`` the block ``inner``. Shards also have the columns ``error`` and ``digest``. The
metadata state the encoder.

``shards.json`` lists the shards of a folder. The name of a shard is a hash of its pictures and the encoder, so a file
that exists is never computed again.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipadapter.data import Sample, source_name
from clipadapter.data.manifests import MAX_NAME_CHARACTERS, MAX_ROWS, check_size, longest_text
from clipadapter.encoders import Encoder, EncoderInfo
from clipadapter.errors import DataError, InputError, brief, require
from clipadapter.features.collection import (
    StorageError,
    describe_storage_error,
    list_shards,
    open_filesystem,
    refuse_links,
)
from clipadapter.features.extraction import extract
from clipadapter.features.feature_set import FeatureSet
from clipadapter.features.store import FeatureStore, feature_key
from clipadapter.utils.blocks import FINAL, MAX_BLOCK_WIDTH, MAX_BLOCKS, Blocks, as_blocks, column_slices, total_width
from clipadapter.utils.files import (
    ENCODER_KEY,
    SHARDS_FILE,
    describe_parquet_error,
    is_number_list,
    keep_mode,
    path_without_links,
)

PURPOSE = "A table of features"
TABLE_ADVICE = "give a file that 'clipadapter embed --to' wrote"
READ_ADVICE = "copy it, or write the features, again"
FINGERPRINT_KEY = "clipadapter.fingerprint"
BLOCKS_KEY = "clipadapter.blocks"  # key of the blocks in the metadata of a table
BLOCK_FINGERPRINTS_KEY = "clipadapter.block_fingerprints"
"""Key of the fingerprint of each block: a model may need some of the blocks only."""
ROWS_PER_GROUP = 1024  # rows that are written at a time
ROWS_PER_BATCH = 8192  # rows that are read at a time: 16 MB with 512 columns
READ_BYTES = 1 << 20  # bytes of a column that are read at a time. Without this limit all of a row group would be
TEXTS = ("path", "label", "split", "error")
"""Columns of texts. They are read as dictionaries: a file of 1 kB can repeat a text a million times."""
SPLITS = ("all", "test", "train", "val")
UNREADABLE = 255  # in place of the number of a split: the picture has an error
MAX_WIDTH = 1 << 16
"""Numbers of a feature in a file that does not state its width. It bounds the memory that a small file can ask for."""
MAX_FEATURE_BYTES = 8 << 30  # bytes of features that are read at once: 4 million rows of 512 numbers
SHARDS_FORMAT = 1  # format number of a folder of shards
MAX_PLAN_BYTES = 256 << 20
NO_FEATURE, NOT_FINITE = "it has no feature", "its feature is not finite"


class FeatureRow(NamedTuple):
    """A row of a table."""

    path: str
    label: str | None
    split: str  # "train", "val", "test" or "all"
    feature: NDArray[np.float32] | None  # (d,) raw features of the plain picture, all blocks
    error: str | None = None  # why there are none
    digest: bytes | None = None  # of the file, as in the keys of the feature store; None if it could not be read


def extract_rows(encoder: Encoder, samples: Sequence[Sample], store: FeatureStore | None) -> Iterator[FeatureRow]:
    """Extract the features of samples in order, block by block; pictures that can't be read are left out.

    Args:
        encoder: computes the features.
        samples: pictures with label and split.
        store: store of the features; the features that it lacks are computed.
    """
    for start in range(0, len(samples), ROWS_PER_GROUP):
        block = samples[start : start + ROWS_PER_GROUP]
        extraction = extract(encoder, [sample.path for sample in block], store=store)
        for row, values in zip(extraction.rows, extraction.features, strict=True):
            sample = block[row]
            yield FeatureRow(source_name(sample.path), sample.label, sample.split, values[0])


def write_parquet(
    path: str | Path, rows: Iterable[FeatureRow], info: EncoderInfo, block_fingerprints: Sequence[str] = ()
) -> int:
    """Write a table with the columns path, label, split, and one of float32 for each block of features.

    The file is replaced when the new one is complete. An interrupted call leaves an older file unchanged.

    Args:
        path: the file; an existing one is replaced.
        rows: see `extract_rows`; 1,024 of them are in memory at a time.
        info: info of the encoder; its name, fingerprint and blocks are written to the metadata, as
            ``clipadapter.encoder``, ``clipadapter.fingerprint`` and ``clipadapter.blocks`` (JSON: name and width of
            each block in their order).
        block_fingerprints: of the encoder (`Encoder.block_fingerprints`), for models that need some of its blocks only.

    Returns:
        How many rows were written.

    Raises:
        MissingExtraError: if pyarrow is not installed.
        DataError: if the file can't be written, or that of its parts is a link.
        InputError: if a feature has another width than those of the encoder.
    """
    path = Path(path)
    partial = path_without_links(path.parent, f".{path.name}.{os.getpid()}.partial", error=DataError)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        count = write_rows(partial, rows, info.name, info.fingerprint, info.blocks, block_fingerprints)
        keep_mode(partial, path)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path} can't be written ({error}): check that its folder has space") from error
    finally:
        if partial.exists():
            partial.unlink()
    return count


def write_rows(
    sink: Any,
    rows: Iterable[FeatureRow],
    encoder: str,
    fingerprint: str,
    blocks: Blocks,
    block_fingerprints: Sequence[str],
    *,
    with_errors: bool = False,
) -> int:
    """Write a table into a file or an output stream of pyarrow, with or without error and digest; returns its rows."""
    pa, parquet = (require(name, "parquet", PURPOSE) for name in ("pyarrow", "pyarrow.parquet"))
    facts = {
        ENCODER_KEY: encoder,
        FINGERPRINT_KEY: fingerprint,
        BLOCKS_KEY: json.dumps([list(block) for block in blocks]),
        BLOCK_FINGERPRINTS_KEY: json.dumps(list(block_fingerprints)),
    }
    fields = [("path", pa.string()), ("label", pa.string()), ("split", pa.string())]
    # A list of no fixed size can be null.
    fields += [(column_name(name), pa.list_(pa.float32(), -1 if with_errors else width)) for name, width in blocks]
    fields += [("error", pa.string()), ("digest", pa.binary())] if with_errors else []
    schema = pa.schema(fields, metadata=facts)
    columns_of = {column_name(name): columns for name, columns in column_slices(blocks).items()}
    source, count, width = iter(rows), 0, total_width(blocks)
    # Features do not compress, and a dictionary of them would cost time only.
    with parquet.ParquetWriter(sink, schema, compression="none", use_dictionary=["label", "split"]) as writer:
        while block := list(islice(source, ROWS_PER_GROUP)):
            for row in block:
                if row.feature is not None and len(row.feature) != width:
                    raise InputError(f"features have width {len(row.feature)} but the encoder's is {width}")
            values = {name: [getattr(row, name) for row in block] for name in schema.names if name not in columns_of}
            for name, columns in columns_of.items():
                values[name] = [None if row.feature is None else row.feature[columns] for row in block]
            writer.write_table(pa.Table.from_pydict(values, schema))
            count += len(block)
    return count


def column_name(block: str) -> str:
    """The column of a block."""
    return "feature" if block == FINAL else f"feature:{block}"


class FeatureBatch(NamedTuple):
    """Some rows of a table."""

    paths: list[str]  # (m,) names of the pictures
    errors: list[str | None]  # (m,) why a row has no feature; None if it has one
    features: NDArray[np.float32]  # (k, d) of the rows that have one, in their order
    digests: Sequence[bytes | None] = ()  # (m,) hashes of the files, if they were asked for


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """A Parquet file of features, or a folder of shards; see `open_feature_table`.

    Labels and splits are read when they are asked for, and take 9 bytes of memory per row, beside the texts.

    Args:
        path: of the file or the folder, as it was named.
        filesystem: of pyarrow.
        files: paths of the Parquet files in it, in order.
        encoder: URI of the encoder; None if the file does not state it.
        fingerprint: of the encoder; None if the file does not state it.
        blocks: of the features.
        block_fingerprints: of each block; empty if the file does not state them.
    """

    path: str
    filesystem: Any
    files: tuple[str, ...]
    encoder: str | None
    fingerprint: str | None
    blocks: Blocks
    block_fingerprints: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the file or the folder."""
        return posixpath.basename(self.path.rstrip("/"))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have pictures."""
        return tuple(name for i, name in enumerate(SPLITS) if (self._index.splits == i).any())

    def rows(self, split: str | None = None) -> NDArray[np.int64]:
        """Numbers of the rows of a split, of all if it is None; without pictures that could not be read.

        Raises:
            DataError: if there are none, or a file is damaged.
        """
        numbers = [i for i, name in enumerate(SPLITS) if split in (name, None)]
        rows = np.flatnonzero(np.isin(self._index.splits, numbers))
        if not len(rows):
            raise DataError(
                f"'{self.path}' has no features{f' of the split {brief(split)}' if split else ''}; its splits: "
                f"{', '.join(self.splits) or 'none'}"
            )
        return rows

    def labels(self, rows: NDArray[np.int64]) -> list[str]:
        """Class names of rows.

        Raises:
            DataError: if a picture has no label.
        """
        labels = [self._index.labels[row] for row in rows]
        if unlabelled := labels.count(None):
            raise DataError(f"{unlabelled} of {len(labels)} pictures of '{self.path}' have no label")
        return labels

    def take(
        self, rows: NDArray[np.int64], class_names: Sequence[str] | None = None, *, with_sources: bool = False
    ) -> FeatureSet:
        """Read the features of rows. A few thousand rows are in memory besides the result.

        Args:
            rows: in any order.
            class_names: all classes in order; None for those of the rows, sorted.
            with_sources: whether the provenance names the picture of each row, as that of a fit does.

        Raises:
            DataError: if a file is damaged, or a picture has no label or no feature.
        """
        width, starts, labels = total_width(self.blocks), self._index.starts, self.labels(rows)
        if 4 * len(rows) * width > MAX_FEATURE_BYTES:
            raise DataError(
                f"{self.path} has {len(rows):,} features of {width:,} numbers, but at most {MAX_FEATURE_BYTES >> 30} "
                "GiB are read at once: read some of the rows, by FeatureTable.take or FeatureTable.batches"
            )
        features = np.empty((len(rows), width), np.float32)
        sources = np.empty(len(rows) if with_sources else 0, object)
        file_of = np.searchsorted(starts, rows, side="right") - 1
        for number in np.unique(file_of):
            file, positions = self.files[number], np.flatnonzero(file_of == number)
            inside = rows[positions] - starts[number]
            start = int(inside.min())
            for batch in self.batches(file, [block.name for block in self.blocks], start):
                own = (inside >= start) & (inside < start + len(batch.paths))
                own_rows = inside[own] - start
                for row in own_rows:
                    if error := batch.errors[row]:
                        raise DataError(f"'{file}' is damaged: row {start + row}: {error}; {READ_ADVICE}")
                numbers = np.cumsum([error is None for error in batch.errors]) - 1
                features[positions[own]] = batch.features[numbers[own_rows]]
                if with_sources:
                    sources[positions[own]] = [batch.paths[row] for row in own_rows]
                start += len(batch.paths)
                if start > inside.max():
                    break
            else:
                raise DataError(f"'{file}' was changed meanwhile: read it again")
        names = sorted(set(labels)) if class_names is None else class_names
        provenance: dict[str, Any] = {"encoder": self.encoder, "fingerprint": self.fingerprint, "data": self.name}
        if with_sources:
            provenance |= {"rows": rows.tolist(), "sources": sources.tolist(), "skipped": [], "computed": 0, "views": 1}
        return FeatureSet(features, tuple(labels), tuple(names), provenance, blocks=self.blocks)

    def batches(
        self, file: str, blocks: Sequence[str], first: int = 0, *, with_digests: bool = False
    ) -> Iterator[FeatureBatch]:
        """Read one of the files from a row on. The named blocks lie side by side in the result.

        Raises:
            DataError: if the file is damaged.
        """
        widths = dict(self.blocks)
        columns = {column_name(name): widths[name] for name in blocks}
        with self._open(file) as reader:
            texts = [name for name in ("path", "error") if name == "path" or name in reader.schema_arrow.names]
            names = [*texts, *["digest"] * with_digests, *columns]
            _check_numbers(reader.metadata, columns)
            groups = list(range(reader.metadata.num_row_groups))
            while groups and first >= reader.metadata.row_group(groups[0]).num_rows:
                first -= reader.metadata.row_group(groups.pop(0)).num_rows
            for batch in reader.iter_batches(ROWS_PER_BATCH, groups, names):
                skipped = min(first, len(batch))
                first -= skipped
                if skipped < len(batch):
                    yield _read_batch(batch.slice(skipped), columns)

    def count_rows(self, file: str) -> int:
        """Number of rows of one of the files.

        Raises:
            DataError: if the file is damaged.
        """
        with self._open(file) as reader:
            return int(reader.metadata.num_rows)

    @cached_property
    def _index(self) -> _Index:
        pa = require("pyarrow", "parquet", PURPOSE)
        starts, labels, splits = [0], list[Any](), bytearray()
        known: dict[Any, Any] = {None: None}  # equal labels of several batches share their memory
        for file in self.files:
            with self._open(file) as reader:
                n_rows = reader.metadata.num_rows
                check_size(file, "rows", n_rows, MAX_ROWS)
                names = [name for name in ("label", "split", "error") if name in reader.schema_arrow.names]
                for batch in reader.iter_batches(ROWS_PER_BATCH, columns=names) if names else ():
                    _check_texts(batch)
                    encoded = (batch.column(name).cast(pa.string()).dictionary_encode() for name in names)
                    texts = dict(zip(names, map(_decode, encoded), strict=True))
                    if unknown := [each for each in texts.get("split", ()) if each not in SPLITS]:
                        raise ValueError(f"a split is {brief(str(unknown[0]))}, not one of {', '.join(SPLITS)}")
                    errors = texts.get("error", [None] * len(batch))
                    numbers = map(SPLITS.index, texts.get("split", [SPLITS[0]] * len(batch)))
                    splits += bytes(UNREADABLE if error else i for i, error in zip(numbers, errors, strict=True))
                    labels += [known.setdefault(each, each) for each in texts.get("label", [None] * len(batch))]
                if not names:
                    labels += [None] * n_rows
                    splits += bytes(n_rows)  # zeros: all are of the first split
                starts.append(starts[-1] + n_rows)
        return _Index(np.array(starts), labels, np.frombuffer(splits, np.uint8))

    @contextmanager
    def _open(self, file: str) -> Iterator[Any]:
        """A reader of one of the files; errors of pyarrow and of checks become ours."""
        with open_table(self.filesystem, file) as reader:
            stated = (reader.schema_arrow.metadata or {}).get(FINGERPRINT_KEY.encode(), b"").decode()
            if stated not in ("", self.fingerprint):
                raise ValueError("it is of another encoder")
            yield reader


class _Index(NamedTuple):
    """What is known of all rows of a table."""

    starts: NDArray[np.int64]  # (files + 1,) the first row of each file
    labels: Sequence[str | None]  # (n,) of which equal ones share their memory
    splits: NDArray[np.uint8]  # (n,) positions in `SPLITS`, or `UNREADABLE`


def open_feature_table(path: str | Path, filesystem: Any = None) -> FeatureTable:
    """Open a Parquet file of features, such as `write_parquet` writes, or a folder of shards. No feature is read.

    Args:
        path: a file with the columns ``path`` and ``feature``, or a folder with ``shards.json``; a path or a URI. What
            other programs wrote has one block and no fingerprint.
        filesystem: file system of pyarrow or fsspec, if it is a path in it.

    Raises:
        DataError: if it is no such file or folder, or a shard is missing.
        MissingExtraError: if pyarrow is not installed.
    """
    system, place = open_filesystem(path, filesystem)
    if Path(place).is_dir() if system.type_name == "local" else not place.endswith(".parquet"):
        plan = read_plan(system, place)
        fingerprints = tuple(block.fingerprint for block in plan.blocks)
        if missing := len(set(plan.shards) - list_shards(system, place)):
            raise DataError(
                f"{missing} of {len(plan.shards)} shards of '{place}' are missing: call extract_with_ray again"
            )
        files = tuple(posixpath.join(place, name) for name in plan.shards)
        return FeatureTable(
            str(path), system, files, plan.encoder, plan.fingerprint, plan.feature_blocks(), fingerprints
        )
    with open_table(system, place, "is no table of features", TABLE_ADVICE) as reader:
        schema = reader.schema_arrow
        facts = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        for name in ("path", "feature"):
            if name not in schema.names:
                raise ValueError(f"there is no column '{name}'")
        pairs = json.loads(facts[BLOCKS_KEY]) if BLOCKS_KEY in facts else [(FINAL, _measure_width(reader))]
        blocks = as_blocks((name, width) for name, width in pairs)
        fingerprints = tuple(map(str, json.loads(facts.get(BLOCK_FINGERPRINTS_KEY, "[]"))))
    stated = facts.get(ENCODER_KEY), facts.get(FINGERPRINT_KEY)
    return FeatureTable(str(path), system, (place,), *stated, blocks, fingerprints)


def read_features(path: str | Path, split: str | None = None) -> FeatureSet:
    """Read all features of a table or a folder of shards; pictures that could not be read are left out.

    Args:
        path: as for `open_feature_table`, which reads only the rows that are needed.
        split: only rows of this split: "train", "val", "test" or "all".

    Returns:
        The features with the blocks of their encoder, and the paths of the pictures in ``provenance["sources"]``.

    Raises:
        MissingExtraError: if pyarrow is not installed.
        DataError: if a file is missing, damaged or too large, has pictures without a class, or no row of the split.
    """
    table = open_feature_table(path)
    return table.take(table.rows(split), with_sources=True)


def import_shards(folder: str | Path, store: FeatureStore) -> int:
    """Copy the features of shards into a store, from which commands take them.

    Args:
        folder: that `extract_with_ray` wrote.
        store: the store to fill.

    Returns:
        How many features were new; each block of a picture counts.

    Raises:
        DataError: if shards are missing or damaged.
        StoreError: if the store can't be written.
    """
    table, new = open_feature_table(folder), 0
    slices = column_slices(table.blocks).values()
    for file in table.files:
        for batch in table.batches(file, [block.name for block in table.blocks], with_digests=True):
            digests = [digest for digest, error in zip(batch.digests, batch.errors, strict=True) if error is None]
            if None in digests:
                raise DataError(f"'{file}' is damaged: a feature has no digest; delete it and extract it again")
            for fingerprint, columns in zip(table.block_fingerprints, slices, strict=True):
                keys = [feature_key(digest, fingerprint, "plain") for digest in digests if digest is not None]
                new += store.put_many(dict(zip(keys, batch.features[:, columns], strict=True)))
    return new


@contextmanager
def open_table(filesystem: Any, path: str, problem: str = "can't be read", advice: str = READ_ADVICE) -> Iterator[Any]:
    """A reader of a Parquet file. Errors become ours: of the storage, of pyarrow, and ValueError of checks."""
    parquet = require("pyarrow.parquet", "parquet", PURPOSE)
    is_local = filesystem.type_name == "local"
    try:
        with filesystem.open_input_file(path) as file:
            schema = parquet.read_schema(file)
            texts = [field.name for field in schema if field.name in TEXTS and str(field.type).endswith("string")]
            options = {"buffer_size": READ_BYTES, "pre_buffer": False, "read_dictionary": texts}
            with parquet.ParquetFile(file, **options) as reader:
                yield reader
    except DataError:
        raise
    except (OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and not is_local:
            reason = describe_storage_error(error)
            raise StorageError(f"'{path}' can't be read: {reason}; if it is damaged, {advice}") from error
        reason = describe_parquet_error(error, path if is_local else None)
        raise DataError(f"'{path}' {problem}: {reason}; {advice}") from error


def _read_batch(batch: Any, columns: Mapping[str, int]) -> FeatureBatch:
    _check_texts(batch)
    paths, names = _decode(batch.column("path")), batch.schema.names
    digests = batch.column("digest").to_pylist() if "digest" in names else ()
    errors: list[str | None] = [None] * len(batch)
    if "error" in names:
        errors = [error or None for error in _decode(batch.column("error"))]
    has_feature = np.array([error is None for error in errors], bool)
    for name in columns:
        has_feature &= batch.column(name).is_valid().to_numpy(zero_copy_only=False)
    for i in np.flatnonzero(~has_feature):
        errors[i] = errors[i] or NO_FEATURE
    readable = batch if has_feature.all() else batch.filter(has_feature)
    parts = [_as_matrix(readable.column(name), width) for name, width in columns.items()]
    features = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    is_finite = np.isfinite(features).all(axis=1)
    for i in np.flatnonzero(has_feature)[~is_finite]:
        errors[i] = NOT_FINITE
    return FeatureBatch(list(map(str, paths)), errors, features if is_finite.all() else features[is_finite], digests)


def _decode(column: Any) -> list[Any]:
    """The texts of a column. Equal ones of a dictionary share their memory, which they do not in ``to_pylist``."""
    if not hasattr(column, "dictionary"):
        return list(column.to_pylist())
    texts = column.dictionary.to_pylist()
    return [None if i is None else texts[i] for i in column.indices.to_pylist()]


def _measure_width(reader: Any) -> int:
    """Number of columns of the features; lists of any length are looked at in the first row that has one."""
    kind = reader.schema_arrow.field("feature").type
    if not is_number_list(kind):
        raise ValueError(f"column 'feature' has {kind} in place of lists of numbers")
    size = getattr(kind, "list_size", None)
    if size is not None:
        return int(size)
    _check_numbers(reader.metadata, {"feature": MAX_WIDTH})
    for batch in reader.iter_batches(64, columns=["feature"]):
        lengths = batch.column(0).value_lengths().drop_null()
        if len(lengths):
            return int(lengths[0].as_py())
    raise ValueError("no row has a feature")


def _check_numbers(metadata: Any, widths: Mapping[str, int]) -> None:
    """Refuse columns with more numbers than their rows can have, before they are read."""
    # Equal numbers are compressed so well that a file of 1 KB can have a list of 100 million.
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            name = max((name for name in widths if column.path_in_schema.startswith(f"{name}.")), key=len, default=None)
            if name is not None and column.num_values > group.num_rows * widths[name]:
                raise ValueError(
                    f"column '{name}' has {column.num_values} numbers in {group.num_rows} rows, but a row has at most "
                    f"{widths[name]}"
                )


def _check_texts(batch: Any) -> None:
    """Refuse texts that are too long to be read 8,192 at a time."""
    for name in {*TEXTS, "digest"} & set(batch.schema.names):
        if longest_text(batch.column(name)) > MAX_NAME_CHARACTERS:
            raise ValueError(f"column '{name}' has a text of more than {MAX_NAME_CHARACTERS:,} characters")


def _as_matrix(column: Any, width: int) -> NDArray[np.float32]:
    """Lists of numbers, none of them null, as (k, d)."""
    if not is_number_list(column.type):
        raise ValueError(f"a column of features has {column.type} in place of lists of numbers")
    values = column.flatten()
    if len(values) != len(column) * width or values.null_count:
        raise ValueError(f"features have not all the width {width}")
    if not hasattr(column.type, "list_size") and len(column):
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if lengths.min() != width or lengths.max() != width:
            raise ValueError(f"features have not all the width {width}")
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float32).reshape(len(column), width)


class ShardBlock(BaseModel):
    """A block of the columns of the features, see `clipadapter.utils.blocks`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    width: int = Field(ge=1, le=MAX_BLOCK_WIDTH)
    fingerprint: str  # by which the feature store knows it


class ShardPlan(BaseModel):
    """``shards.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    encoder: str  # URI
    fingerprint: str
    blocks: list[ShardBlock] = Field(min_length=1, max_length=MAX_BLOCKS)  # of the columns, ``final`` first
    shards: list[Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.parquet$")]]

    def feature_blocks(self) -> Blocks:
        """The blocks of the features."""
        return as_blocks((block.name, block.width) for block in self.blocks)


def read_plan(filesystem: Any, folder: str) -> ShardPlan:
    """Read ``shards.json`` of a folder."""
    path = posixpath.join(folder, SHARDS_FILE)
    try:
        refuse_links(filesystem, folder)
        with filesystem.open_input_stream(path) as stream:
            data = stream.read(MAX_PLAN_BYTES + 1)
    except OSError as error:
        raise DataError(f"'{folder}' holds no feature shards: {SHARDS_FILE} can't be read ({error})") from error
    try:
        if len(data) > MAX_PLAN_BYTES:
            raise ValueError(f"it has more than {MAX_PLAN_BYTES >> 20} MB")
        raw = json.loads(data)
        if isinstance(raw, dict) and type(raw.get("format")) is int and raw["format"] != SHARDS_FORMAT:
            raise DataError(
                f"'{path}' has format {raw['format']}, this version reads {SHARDS_FORMAT}: update clipadapter, or "
                "extract the features again"
            )
        plan = ShardPlan.model_validate(raw)
        plan.feature_blocks()
        return plan
    except DataError:
        raise
    except (InputError, ValidationError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is damaged: {error}; extract the features again, existing files are kept") from error
