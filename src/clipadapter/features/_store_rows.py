"""Rows of the feature store: vectors to rows with checksums, and the values of many rows to one matrix.

A row is (key, dtype, checksum, value), as SQLite gives it; a damaged one may hold anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError

Row = tuple[Any, ...]
Vector = NDArray[np.floating[Any]]
Matrix = NDArray[np.float32]

_STORED: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
_SIZES = {name: dtype.itemsize for name, dtype in _STORED.items()}
_NAMES = {np.dtype(order + code): name for name, code in (("float32", "f4"), ("float16", "f2")) for order in "<>"}
with np.errstate(invalid="ignore"):  # some of the bits are no number
    # The float32 of each float16 by its bits: a look-up is faster than NumPy's conversion.
    _HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def encode(items: Mapping[bytes, Vector]) -> list[Row]:
    """The rows of vectors (d,); `InputError` if one has another dtype than float32 or float16."""
    rows = []
    for key, vector in items.items():
        name = _NAMES.get(vector.dtype)
        if name is None:
            raise InputError(f"features are stored as {' or '.join(_STORED)}, not as {vector.dtype.name}")
        value = vector.astype(_STORED[name], copy=False).tobytes()
        rows.append((key, name, crc32(value), value))
    return rows


def sound(rows: Sequence[Row]) -> list[Row]:
    """Those rows that are as they were put."""
    return [
        row
        for row in rows
        if row[1] in _SIZES and type(row[3]) is bytes and len(row[3]) % _SIZES[row[1]] == 0 and crc32(row[3]) == row[2]
    ]


def sound_of_width(rows: Sequence[Row], dim: int) -> list[Row]:
    """Those rows that are as they were put and hold `dim` numbers."""
    sizes = {name: dim * size for name, size in _SIZES.items()}
    return [
        row for row in rows if type(row[3]) is bytes and len(row[3]) == sizes.get(row[1]) and crc32(row[3]) == row[2]
    ]


def vectors(rows: Sequence[Row]) -> Iterator[tuple[bytes, Matrix]]:
    """Key and float32 vector (d,) of each sound row, in their order; neighbours of one kind share a buffer."""
    for (name, size), run in groupby(rows, lambda row: (row[1], len(row[3]))):
        block = list(run)
        joined = b"".join([row[3] for row in block])
        matrix = np.empty((len(block), size // _SIZES[name]), np.float32)
        if name == "float16":
            bits = np.frombuffer(joined, "<u2").reshape(matrix.shape)
            np.take(_HALVES, bits, out=matrix, mode="clip")  # any other mode would copy `matrix`
        else:
            matrix[:] = np.frombuffer(joined, "<f4").reshape(matrix.shape)
        yield from zip([row[0] for row in block], matrix, strict=True)
