"""Export of features to a Parquet file, for other tools."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipadapter.data import Sample, source_name
from clipadapter.data.manifests import MAX_TABLE_CHARACTERS, check_parquet_sizes, check_size
from clipadapter.encoders import Encoder, EncoderInfo
from clipadapter.errors import DataError, InputError, brief, require
from clipadapter.features.extraction import Dtype, extract
from clipadapter.features.feature_set import FeatureSet
from clipadapter.features.store import FeatureStore
from clipadapter.utils.blocks import FINAL, Blocks, as_blocks, total_width
from clipadapter.utils.files import ENCODER_KEY, describe_parquet_error, path_without_links

TABLE_ADVICE = "give a file that 'clipadapter embed --to' wrote"
BLOCKS_KEY = "clipadapter.blocks"
"""Key of the blocks in the metadata of a table."""
FINGERPRINT_KEY = "clipadapter.fingerprint"
BLOCK_FINGERPRINTS_KEY = "clipadapter.block_fingerprints"
"""Key of the fingerprint of each block: a model may need some of the blocks only."""
ROWS_PER_GROUP = 1024
"""Rows in memory at a time."""
TEXT_COLUMNS = ("path", "label", "split")
MAX_FEATURE_BYTES = 8 << 30
"""Bytes of features that are read at once: 4 million rows of 512 numbers."""


class FeatureRow(NamedTuple):
    """A row of the table.

    Args:
        path: path of the picture.
        label: class of the picture, or None.
        split: "train", "val", "test" or "all".
        feature: (d,) raw features of the plain picture, all blocks.
    """

    path: str
    label: str | None
    split: str
    feature: NDArray[np.float32]


def extract_rows(
    encoder: Encoder, samples: Sequence[Sample], store: FeatureStore | None, dtype: Dtype = "float32"
) -> Iterator[FeatureRow]:
    """Extract the features of samples in order, block by block; pictures that can't be read are left out.

    Args:
        encoder: computes the features.
        samples: pictures with label and split.
        store: store of the features; the features that it lacks are computed.
        dtype: dtype in the store.
    """
    for start in range(0, len(samples), ROWS_PER_GROUP):
        block = samples[start : start + ROWS_PER_GROUP]
        extraction = extract(encoder, [sample.path for sample in block], store=store, dtype=dtype)
        for row, values in zip(extraction.rows, extraction.features, strict=True):
            sample = block[row]
            yield FeatureRow(source_name(sample.path), sample.label, sample.split, values[0])


def write_parquet(
    path: str | Path, rows: Iterable[FeatureRow], info: EncoderInfo, block_fingerprints: Sequence[str] = ()
) -> int:
    """Write a table with the columns path, label, split and feature (d float32).

    Of an encoder of several blocks `feature` has the block ``final``, which class text is compared with; each of the
    others has a column of its own, such as `feature:inner`.

    The file is replaced when the new one is complete. An interrupted call leaves an older file unchanged.

    Args:
        path: the file; an existing one is replaced.
        rows: see `extract_rows`; read one row group at a time.
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
    pa = require("pyarrow", "parquet", "The Parquet export")
    parquet = require("pyarrow.parquet", "parquet", "The Parquet export")
    path = Path(path)
    facts = {
        ENCODER_KEY: info.name,
        FINGERPRINT_KEY: info.fingerprint,
        BLOCKS_KEY: json.dumps([list(block) for block in info.blocks]),
        BLOCK_FINGERPRINTS_KEY: json.dumps(list(block_fingerprints)),
    }
    columns = [("path", pa.string()), ("label", pa.string()), ("split", pa.string())]
    columns += [(column_name(block.name), pa.list_(pa.float32(), block.width)) for block in info.blocks]
    schema = pa.schema(columns, metadata=facts)
    partial = path_without_links(path.parent, f".{path.name}.{os.getpid()}.partial", error=DataError)
    source, count = iter(rows), 0
    try:
        with parquet.ParquetWriter(partial, schema) as writer:
            while block := list(islice(source, ROWS_PER_GROUP)):
                writer.write_table(pa.Table.from_arrays(_columns(pa, block, info.blocks), schema=schema))
                count += len(block)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path} can't be written ({error}): check that its folder exists and has space") from error
    finally:
        if partial.exists():
            partial.unlink()
    return count


def read_table(source: Any, path: str | Path, widths: Mapping[str, int], columns: Sequence[str] = TEXT_COLUMNS) -> Any:
    """Read columns of a Parquet file of features, whose size is checked before: equal values take no room in a file.

    Args:
        source: path or opened file.
        path: of the file, for messages.
        widths: of the columns of features.
        columns: further columns, of texts.

    Raises:
        DataError: if it is too large.
        ValueError: if it is damaged.
    """
    pa = require("pyarrow", "parquet", "Reading features from Parquet")
    parquet = require("pyarrow.parquet", "parquet", "Reading features from Parquet")
    compute = require("pyarrow.compute", "parquet", "Reading features from Parquet")
    metadata = parquet.read_metadata(source)
    schema = metadata.schema.to_arrow_schema()
    texts = check_parquet_sizes(path, metadata, len(schema.names), columns)
    check_numbers(metadata, widths)
    check_feature_bytes(path, metadata.num_rows, sum(widths.values()))
    # As dictionaries, since a file of 1 kB can repeat a text a million times.
    with parquet.ParquetFile(source, metadata=metadata, read_dictionary=texts, pre_buffer=False) as file:
        table = file.read([*columns, *widths])
    whole = [column.combine_chunks() for column in (table[name] for name in texts)]
    lengths = (compute.sum(compute.binary_length(one.dictionary).take(one.indices)).as_py() or 0 for one in whole)
    check_size(path, "characters", sum(lengths), MAX_TABLE_CHARACTERS)
    fields = [schema.field(name) for name in table.column_names]
    return table.cast(pa.schema(fields, metadata=schema.metadata))


def check_feature_bytes(path: str | Path, n_rows: int, width: int) -> None:
    """Refuse features that would fill the memory.

    Raises:
        DataError: if so.
    """
    if 4 * n_rows * width > MAX_FEATURE_BYTES:
        raise DataError(
            f"{path} has {n_rows:,} features of {width:,} numbers, but at most {MAX_FEATURE_BYTES >> 30} GiB are read "
            "at once: divide it, or read it by clipadapter.features.open_feature_table"
        )


def check_numbers(metadata: Any, widths: Mapping[str, int]) -> None:
    """Refuse columns with more numbers than their rows can have, before they are read.

    Equal numbers are compressed so well that a file of 1 KB can have a list of 100 million.

    Args:
        metadata: of the Parquet file.
        widths: of the columns.

    Raises:
        ValueError: if there are more.
    """
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            name = max((name for name in widths if column.path_in_schema.startswith(f"{name}.")), key=len, default=None)
            if name is not None and column.num_values > group.num_rows * widths[name]:
                raise ValueError(
                    f"column '{name}' has {column.num_values} numbers in {group.num_rows} rows, but a row has at most "
                    f"{widths[name]}"
                )


def read_parquet(path: str | Path, split: str | None = None) -> FeatureSet:
    """Read a table that `write_parquet` wrote.

    Args:
        path: the file.
        split: only rows of this split: "train", "val", "test" or "all".

    Returns:
        The features with the blocks of their encoder, and the paths of the pictures in ``provenance["sources"]``.

    Raises:
        MissingExtraError: if pyarrow is not installed.
        DataError: if the file is missing, damaged, too large or was not written by `write_parquet`, has pictures
            without a class, or no row of the split.
    """
    pa = require("pyarrow", "parquet", "Reading features from Parquet")
    parquet = require("pyarrow.parquet", "parquet", "Reading features from Parquet")
    try:
        with parquet.ParquetFile(path) as file:
            facts = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
            if ENCODER_KEY not in facts:
                raise ValueError("it does not state the encoder")
            encoder, fingerprint = facts[ENCODER_KEY], facts[FINGERPRINT_KEY]
            blocks = as_blocks((name, width) for name, width in json.loads(facts[BLOCKS_KEY]))
        table = read_table(path, path, {column_name(block.name): block.width for block in blocks})
        if split is not None:
            table = table.filter(pa.array([each == split for each in table["split"].to_pylist()], pa.bool_()))
        labels, paths = table["label"].to_pylist(), table["path"].to_pylist()
        features = [_read_column(table[column_name(block.name)], block.width) for block in blocks]
    except (OSError, KeyError, ValueError, TypeError, InputError) as error:
        reason = describe_parquet_error(error, path)
        raise DataError(f"{path} is no table of features: {reason}; {TABLE_ADVICE}") from error
    if not labels:
        raise DataError(f"{path} has no features{f' of the split {brief(split)}' if split else ''}")
    if None in labels:
        raise DataError(f"{labels.count(None)} of {len(labels)} pictures of {path} have no label")
    provenance = {"encoder": encoder, "fingerprint": fingerprint, "sources": paths}
    names = tuple(sorted(set(labels)))
    return FeatureSet(np.concatenate(features, axis=1), tuple(labels), names, provenance, blocks=blocks)


def column_name(block: str) -> str:
    """The column of a block.

    >>> column_name("final"), column_name("stage3")
    ('feature', 'feature:stage3')
    """
    return "feature" if block == FINAL else f"feature:{block}"


def _read_column(column: Any, width: int) -> NDArray[np.float32]:
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32).reshape(len(column), width)


def _columns(pa: ModuleType, rows: list[FeatureRow], blocks: Blocks) -> list[Any]:
    features = np.stack([row.feature for row in rows])
    if features.shape[1] != total_width(blocks):
        raise InputError(f"features have width {features.shape[1]} but the encoder's is {total_width(blocks)}")
    texts = [pa.array([row[i] for row in rows], pa.string()) for i in range(3)]
    parts = np.split(features, np.cumsum([block.width for block in blocks])[:-1], axis=1)
    arrays = [pa.array(np.ascontiguousarray(part).reshape(-1), pa.float32()) for part in parts]
    return [
        *texts,
        *(pa.FixedSizeListArray.from_arrays(flat, block.width) for flat, block in zip(arrays, blocks, strict=True)),
    ]
