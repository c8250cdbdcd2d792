"""Tables of features that are larger than memory: Parquet files, or folders of shards, read a few rows at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.data.manifests import MAX_NAME_CHARACTERS, longest_text
from clipadapter.errors import DataError, InputError, require
from clipadapter.features.collection import open_filesystem
from clipadapter.features.export import BLOCK_FINGERPRINTS_KEY, BLOCKS_KEY, TABLE_ADVICE, check_numbers, column_name
from clipadapter.features.shards import read_plan
from clipadapter.utils.blocks import FINAL, Blocks, as_blocks, column_slices, total_width
from clipadapter.utils.files import describe_parquet_error, is_number_list

PURPOSE = "Reading features from Parquet"
ROWS_PER_BATCH = 8192
"""Rows that are read at a time: 16 MB with 512 columns."""
TEXTS = ["path", "error"]
"""Columns of texts. They are read as dictionaries: a file of 1 kB can repeat a text a million times."""
READ_BYTES = 1 << 20
"""Bytes of a column that are read at a time. Without this limit all of a row group would be."""
MAX_WIDTH = 1 << 16
"""Numbers of a feature in a file that does not state its width. It bounds the memory that a small file can ask for."""
NO_FEATURE, NOT_FINITE = "it has no feature", "its feature is not finite"


@dataclass(frozen=True, eq=False)
class FeatureBatch:
    """Some rows of a table.

    Args:
        paths: (m,) names of the pictures.
        errors: (m,) why a row has no feature; None if it has one.
        features: (k, d) of the rows that have one, in their order.
    """

    paths: list[str]
    errors: list[str | None]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class FeatureTable:
    """A Parquet file of features, or a folder of shards.

    Args:
        path: of the file or the folder.
        files: the Parquet files, in order.
        encoder: URI of the encoder; None if the file does not state it.
        fingerprint: of the encoder; None if the file does not state it.
        blocks: of the features.
        block_fingerprints: of each block; empty if the file does not state them.
        columns: the column of each block, or one that has all of them side by side.
    """

    path: Path
    files: tuple[Path, ...]
    encoder: str | None
    fingerprint: str | None
    blocks: Blocks
    block_fingerprints: tuple[str, ...]
    columns: tuple[str, ...]

    def batches(self, file: Path, blocks: Sequence[str], first: int = 0) -> Iterator[FeatureBatch]:
        """Read one of the files from a row on. The named blocks lie side by side in the result.

        Raises:
            DataError: if the file is damaged.
        """
        parquet = require("pyarrow.parquet", "parquet", PURPOSE)
        columns = self._find_columns(blocks)
        try:
            texts = [name for name in TEXTS if name == "path" or name in parquet.read_schema(file).names]
            options = {"buffer_size": READ_BYTES, "pre_buffer": False}
            with parquet.ParquetFile(file, read_dictionary=texts, **options) as reader:
                names = [*texts, *columns]
                groups, first = _skip_groups(reader.metadata, first)
                check_numbers(reader.metadata, columns)
                for batch in reader.iter_batches(ROWS_PER_BATCH, groups, names):
                    skipped = min(first, len(batch))
                    first -= skipped
                    if skipped < len(batch):
                        yield self._read_batch(batch.slice(skipped), columns, blocks)
        except (OSError, KeyError, ValueError, TypeError) as error:
            reason = describe_parquet_error(error, file)
            raise DataError(f"'{file}' can't be read: {reason}; copy it, or write the features, again") from error

    def count_rows(self, file: Path) -> int:
        """Number of rows of one of the files.

        Raises:
            DataError: if the file is damaged.
        """
        parquet = require("pyarrow.parquet", "parquet", PURPOSE)
        try:
            return int(parquet.read_metadata(file).num_rows)
        except (OSError, ValueError) as error:
            reason = describe_parquet_error(error, file)
            raise DataError(f"'{file}' can't be read: {reason}; copy it, or write the features, again") from error

    @property
    def _is_joined(self) -> bool:
        """Whether one column has all blocks side by side."""
        return len(self.columns) < len(self.blocks)

    def _find_columns(self, blocks: Sequence[str]) -> dict[str, int]:
        """The columns that have these blocks, with their widths."""
        if self._is_joined:
            return {self.columns[0]: total_width(self.blocks)}
        widths = dict(self.blocks)
        return {column_name(name): widths[name] for name in blocks}

    def _read_batch(self, batch: Any, columns: Mapping[str, int], blocks: Sequence[str]) -> FeatureBatch:
        _check_texts(batch)
        paths = batch.column("path").to_pylist()
        errors: list[str | None] = [None] * len(batch)
        if "error" in batch.schema.names:
            errors = [str(error) if error else None for error in batch.column("error").to_pylist()]
        has_feature = np.array([error is None for error in errors], bool)
        for name in columns:
            if batch.column(name).null_count:
                has_feature &= batch.column(name).is_valid().to_numpy(zero_copy_only=False)
        if not has_feature.all():
            for i in np.flatnonzero(~has_feature):
                errors[i] = errors[i] or NO_FEATURE
            batch = batch.filter(has_feature)
        parts = [_as_matrix(batch.column(name), width) for name, width in columns.items()]
        if self._is_joined:
            slices = column_slices(self.blocks)
            parts = [parts[0][:, slices[name]] for name in blocks]
        features = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        # A sum is not finite if a value is not. It may also overflow, so such rows are looked at again.
        suspects = np.flatnonzero(~np.isfinite(features.sum(axis=1)))
        bad = suspects[~np.isfinite(features[suspects]).all(axis=1)]
        if len(bad):
            for i in np.flatnonzero(has_feature)[bad]:
                errors[i] = NOT_FINITE
            features = np.delete(features, bad, axis=0)
        return FeatureBatch([str(path) for path in paths], errors, features)


def open_feature_table(path: str | Path) -> FeatureTable:
    """Open a Parquet file of features, such as `write_parquet` writes, or a folder of shards. No feature is read.

    Args:
        path: a file with the columns ``path`` and ``feature``, or a folder with ``shards.json``. What other programs
            wrote has one block and no fingerprint.

    Raises:
        DataError: if it is no such file or folder, or a shard is missing.
        MissingExtraError: if pyarrow is not installed.
    """
    path = Path(path)
    parquet = require("pyarrow.parquet", "parquet", PURPOSE)
    if path.is_dir():
        plan = read_plan(*open_filesystem(path))
        files = tuple(path / name for name in plan.shards)
        missing = sum(not file.is_file() for file in files)
        if missing:
            raise DataError(f"{missing} of {len(files)} shards of '{path}' are missing: call extract_with_ray again")
        return FeatureTable(
            path,
            files,
            plan.encoder,
            plan.fingerprint,
            plan.feature_blocks(),
            tuple(block.fingerprint for block in plan.blocks),
            ("feature",),
        )
    try:
        with parquet.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False) as file:
            schema = file.schema_arrow
            facts = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
            if "path" not in schema.names:
                raise ValueError("there is no column 'path'")
            pairs = json.loads(facts[BLOCKS_KEY]) if BLOCKS_KEY in facts else [(FINAL, _width(file))]
            table_blocks = as_blocks((name, width) for name, width in pairs)
            fingerprints = tuple(map(str, json.loads(facts.get(BLOCK_FINGERPRINTS_KEY, "[]"))))
    except (OSError, KeyError, ValueError, TypeError, InputError) as error:
        reason = describe_parquet_error(error, path)
        raise DataError(f"'{path}' is no table of features: {reason}; {TABLE_ADVICE}") from error
    return FeatureTable(
        path,
        (path,),
        facts.get("clipadapter.encoder"),
        facts.get("clipadapter.fingerprint"),
        table_blocks,
        fingerprints,
        tuple(column_name(block.name) for block in table_blocks),
    )


def _width(file: Any) -> int:
    """Number of columns of the features; lists of any length are looked at in the first row that has one."""
    if "feature" not in file.schema_arrow.names:
        raise ValueError("there is no column 'feature'")
    kind = file.schema_arrow.field("feature").type
    if not is_number_list(kind):
        raise ValueError(f"column 'feature' has {kind} in place of lists of numbers")
    size = getattr(kind, "list_size", None)
    if size is not None:
        return int(size)
    check_numbers(file.metadata, {"feature": MAX_WIDTH})
    for batch in file.iter_batches(64, columns=["feature"]):
        lengths = batch.column(0).value_lengths().drop_null()
        if len(lengths):
            return int(lengths[0].as_py())
    raise ValueError("no row has a feature")


def _check_texts(batch: Any) -> None:
    """Refuse texts that are too long to be read 8,192 at a time."""
    for name in set(TEXTS) & set(batch.schema.names):
        if longest_text(batch.column(name)) > MAX_NAME_CHARACTERS:
            raise ValueError(f"column '{name}' has a text of more than {MAX_NAME_CHARACTERS:,} characters")


def _skip_groups(metadata: Any, first: int) -> tuple[list[int], int]:
    """The row groups from the one with row ``first`` on, and how many rows of them come before it."""
    groups = list(range(metadata.num_row_groups))
    while groups and first >= metadata.row_group(groups[0]).num_rows:
        first -= metadata.row_group(groups.pop(0)).num_rows
    return groups, first


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
