"""Rows of the feature store: vectors to rows with checksums, and the values of many rows to one matrix.

A row is (key, dtype, checksum, value), as SQLite gives it; a damaged one may hold anything. SQLite finds a row in 2 us
and Python takes 0.1 us for a line of code, so rows that are all sound are gone through by `map` and `zip` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError

Row = tuple[Any, ...]
Column = tuple[Any, ...]
Vector = NDArray[np.floating[Any]]
Matrix = NDArray[np.float32]

_STORED: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
_SIZES: dict[object, int] = {name: dtype.itemsize for name, dtype in _STORED.items()}
_NAMES = {np.dtype(order + code): name for name, code in (("float32", "f4"), ("float16", "f2")) for order in "<>"}
_FEW = 4096  # numbers that NumPy converts in less time than seven calls take
_SHIFT = np.float32(2.0**112)  # the exponents of float16 and float32 have their zero 112 apart
_LEAST = np.array([1 << 13], np.int32).view(np.float32)  # the bits of the least float16, where a float32 has them


class Block(NamedTuple):
    """Sound rows of one dtype and width."""

    keys: tuple[bytes, ...]
    dtype: str
    values: tuple[bytes, ...]

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return len(self.values[0]) // _SIZES[self.dtype]

    def decode(self, out: Matrix) -> Iterator[tuple[bytes, Matrix]]:
        """Key and float32 vector (d,) of each row; the vectors are written into `out` (n, d), and are its rows."""
        _decode(b"".join(self.values), _STORED[self.dtype], out)
        return zip(self.keys, out, strict=True)


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


def sound(rows: Sequence[Row], dim: int | None = None) -> Iterator[Block]:
    """Those rows that are as they were put and, if `dim` is given, hold so many numbers; in their order."""
    if rows:
        keys, dtypes, checksums, values, *_ = zip(*rows, strict=True)
        if _all_sound(dtypes, checksums, values, dim):
            yield Block(keys, dtypes[0], values)
            return
    kept = [row for row in rows if _is_sound(row, dim)]
    for (dtype, _), run in groupby(kept, lambda row: (row[1], len(row[3]))):
        keys, _, _, values, *_ = zip(*run, strict=True)
        yield Block(keys, dtype, values)


def _all_sound(dtypes: Column, checksums: Column, values: Column, dim: int | None) -> bool:
    """Whether all rows are sound and of one dtype and width."""
    if len(set(dtypes)) > 1 or set(map(type, values)) != {bytes}:
        return False
    sizes = set(map(len, values))
    return len(sizes) == 1 and _fits(dtypes[0], sizes.pop(), dim) and tuple(map(crc32, values)) == checksums


def _is_sound(row: Row, dim: int | None) -> bool:
    _, dtype, checksum, value, *_ = row
    return type(value) is bytes and _fits(dtype, len(value), dim) and crc32(value) == checksum


def _fits(dtype: object, size: int, dim: int | None) -> bool:
    """Whether so many bytes can be a vector of this dtype."""
    item = _SIZES.get(dtype)
    return item is not None and (size % item == 0 if dim is None else size == dim * item)


def _decode(joined: bytes, dtype: np.dtype[Any], out: Matrix) -> None:
    """Write values into `out` (n, d) as float32."""
    values = np.frombuffer(joined, dtype).reshape(out.shape)
    if dtype.itemsize == 4:
        out[:] = values
    elif values.size < _FEW or not _by_bits(values):
        with np.errstate(invalid="ignore"):  # some bits are no number
            out[:] = values
    else:
        # Seven times as fast as NumPy's conversion: the sign goes to the top, exponent and fraction to where a float32
        # has them, and the product puts the exponent right, also of numbers too small to be normal.
        bits = out.view(np.int32)
        bits[:] = values.view("<i2")
        bits <<= 13
        bits &= -0x70000001
        out *= _SHIFT


def _by_bits(halves: Vector) -> bool:
    """Whether all are finite, and this thread's products don't take the smallest numbers as zero, as torch may ask."""
    highest = halves.view("<i2").max(initial=0), halves.view("<u2").max(initial=0)  # of positive and negative numbers
    return bool(highest[0] < 0x7C00 and highest[1] < 0xFC00 and (_LEAST * _SHIFT)[0] > 0)
