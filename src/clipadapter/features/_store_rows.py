"""Rows of the feature store: vectors to rows with checksums, and the values of many rows to one matrix.

A row is (key, dtype, checksum, value), as SQLite gives it, texts as bytes; a damaged one may hold anything. SQLite
finds a row in 2 us and Python takes 0.1 us for a line of code, so rows that are all sound are gone through by `map` and
`zip` only.

The checksum is the CRC-32 of dtype, key and value. A damaged index leads from a key to the row of another one, and
SQLite takes the key from the index: the value alone would be sound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, repeat
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError

Row = tuple[Any, ...]
Column = tuple[Any, ...]
Vector = NDArray[np.floating[Any]]
Matrix = NDArray[np.float32]

_STORED: dict[bytes, np.dtype[Any]] = {b"float32": np.dtype("<f4"), b"float16": np.dtype("<f2")}
_SIZES: dict[object, int] = {name: dtype.itemsize for name, dtype in _STORED.items()}
_STARTS: dict[object, int] = {name: crc32(name) for name in _STORED}
_NAMES = {np.dtype(order + code): name for name, code in ((b"float32", "f4"), (b"float16", "f2")) for order in "<>"}
_FEW = 4096  # numbers that NumPy converts in less time than seven calls take
_SHIFT = np.float32(2.0**112)  # the exponents of float16 and float32 have their zero 112 apart
_LEAST = np.array([1 << 13], np.int32).view(np.float32)  # the bits of the least float16, where a float32 has them


class Block(NamedTuple):
    """Sound rows of one dtype and width."""

    keys: tuple[bytes, ...]
    dtype: bytes
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
            names = " or ".join(known.decode() for known in _STORED)
            raise InputError(f"features are stored as {names}, not as {vector.dtype.name}")
        value = vector.astype(_STORED[name], copy=False).tobytes()
        rows.append((key, name.decode(), crc32(value, crc32(key, _STARTS[name])), value))
    return rows


def sound(rows: Sequence[Row], dim: int | None = None) -> Iterator[Block]:
    """Those rows that are as they were put and, if `dim` is given, hold so many numbers; in their order."""
    if rows:
        keys, dtypes, checksums, values, *_ = zip(*rows, strict=True)
        if _all_sound(keys, dtypes, checksums, values, dim):
            yield Block(keys, dtypes[0], values)
            return
    kept = [row for row in rows if _is_sound(row, dim)]
    for (dtype, _), run in groupby(kept, lambda row: (row[1], len(row[3]))):
        keys, _, _, values, *_ = zip(*run, strict=True)
        yield Block(keys, dtype, values)


def upgrade_checksum(key: object, dtype: object, checksum: Any, value: object) -> Any:
    """The checksum of a row of format 1, which has the CRC-32 of its value alone; as it is if the row is damaged.

    >>> row = encode({b"key": np.zeros(1, np.float32)})[0]
    >>> upgrade_checksum(b"key", "float32", crc32(bytes(4)), bytes(4)) == row[2]
    True
    """
    name = dtype.encode() if isinstance(dtype, str) else dtype
    if isinstance(key, bytes) and isinstance(value, bytes) and name in _STARTS and crc32(value) == checksum:
        return crc32(value, crc32(key, _STARTS[name]))
    return checksum


def _all_sound(keys: Column, dtypes: Column, checksums: Column, values: Column, dim: int | None) -> bool:
    """Whether all rows are sound and of one dtype and width."""
    if len(set(dtypes)) > 1 or set(map(type, values)) != {bytes} or set(map(type, keys)) != {bytes}:
        return False
    sizes = set(map(len, values))
    if len(sizes) > 1 or not _fits(dtypes[0], sizes.pop(), dim):
        return False
    return tuple(map(crc32, values, map(crc32, keys, repeat(_STARTS[dtypes[0]])))) == checksums


def _is_sound(row: Row, dim: int | None) -> bool:
    key, dtype, checksum, value, *_ = row
    if type(key) is not bytes or type(value) is not bytes or not _fits(dtype, len(value), dim):
        return False
    return crc32(value, crc32(key, _STARTS[dtype])) == checksum


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
