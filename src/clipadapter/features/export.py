"""Export of features to a Parquet file, for other tools."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipadapter.data import Sample, source_name
from clipadapter.encoders import Encoder, EncoderInfo
from clipadapter.errors import DataError, InputError, require
from clipadapter.features.extraction import Dtype, extract
from clipadapter.features.store import FeatureStore

ROWS_PER_GROUP = 1024
"""Rows in memory at a time."""


class FeatureRow(NamedTuple):
    """A row of the table.

    Args:
        path: path of the picture.
        label: class of the picture, or None.
        split: "train", "val", "test" or "all".
        feature: (d,) raw features of the plain picture.
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


def write_parquet(path: str | Path, rows: Iterable[FeatureRow], info: EncoderInfo) -> int:
    """Write a table with the columns path, label, split and feature (d float32).

    The file is replaced when the new one is complete. An interrupted call leaves an older file unchanged.

    Args:
        path: the file; an existing one is replaced.
        rows: see `extract_rows`; read one row group at a time.
        info: info of the encoder; its name and fingerprint are written to the metadata, as ``clipadapter.encoder`` and
            ``clipadapter.fingerprint``.

    Returns:
        How many rows were written.

    Raises:
        MissingExtraError: if pyarrow is not installed.
        DataError: if the file can't be written.
        InputError: if a feature has another width than those of the encoder.
    """
    pa = require("pyarrow", "parquet", "The Parquet export")
    parquet = require("pyarrow.parquet", "parquet", "The Parquet export")
    path = Path(path)
    facts = {"clipadapter.encoder": info.name, "clipadapter.fingerprint": info.fingerprint}
    columns = [("path", pa.string()), ("label", pa.string()), ("split", pa.string())]
    schema = pa.schema([*columns, ("feature", pa.list_(pa.float32(), info.dim))], metadata=facts)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    source, count = iter(rows), 0
    try:
        with parquet.ParquetWriter(partial, schema) as writer:
            while block := list(islice(source, ROWS_PER_GROUP)):
                writer.write_table(pa.Table.from_arrays(_columns(pa, block, info.dim), schema=schema))
                count += len(block)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path} can't be written ({error}): check that its folder exists and has space") from error
    finally:
        if partial.exists():
            partial.unlink()
    return count


def _columns(pa: ModuleType, block: list[FeatureRow], dim: int) -> list[Any]:
    features = np.stack([row.feature for row in block])
    if features.shape[1] != dim:
        raise InputError(f"features have width {features.shape[1]} but the encoder's is {dim}")
    flat = pa.array(features.reshape(-1), pa.float32())
    texts = [pa.array([row[i] for row in block], pa.string()) for i in range(3)]
    return [*texts, pa.FixedSizeListArray.from_arrays(flat, dim)]
