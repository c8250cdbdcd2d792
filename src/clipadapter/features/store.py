"""The feature store: one SQLite file of feature vectors that several processes may fill at once.

A key names all that shapes a vector, so nothing in the store ever becomes stale. Each `put_many` is one short
transaction: a process that is killed loses what it had not put, and nothing else.

Each entry has a checksum of its key, number type and value. An entry that is damaged, or that a damaged index gives for
another key, counts as missing. Format 1 had checksums of values alone; such a file is upgraded when it is opened, which
reads it once and needs as much free disk space as it has.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import groupby, pairwise, repeat
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from clipadapter.cache import default_cache_dir
from clipadapter.errors import InputError, StoreError

FORMAT = 2


KEY_FORMAT = 1
"""Number of the way in which keys are made; part of each key."""


_APPLICATION = 0x434C4950  # "CLIP" in the file's header tells a feature store from other SQLite files


_CHUNK = 200  # keys or rows in one statement: what they hold stays in the processor's cache until it is decoded


_BUFFER = 1 << 24  # bytes that vectors may share: from 4 MiB on, NumPy asks for memory in large pages


_BY_KEY = "SELECT * FROM feature WHERE key IN ({})"


# The same in the order of the file: slower for one row, faster for many that were put one after the other.
_BY_PLACE = "SELECT * FROM feature WHERE rowid IN (SELECT rowid FROM feature WHERE key IN ({}))"


_SCHEMA = "CREATE TABLE feature (key BLOB PRIMARY KEY, dtype TEXT, checksum INTEGER, value BLOB)"


def feature_key(digest: bytes, fingerprint: str, view: str, dtype: str = "float32") -> bytes:
    """Key of one feature vector.

    Args:
        digest: hash of the picture's bytes.
        fingerprint: the encoder's fingerprint.
        view: name of the view, ``ViewSpec.key(i)``.
        dtype: number type that is stored.

    >>> feature_key(b"digest", "fingerprint", "plain") == feature_key(b"digest", "fingerprint", "a view")
    False
    """
    facts = f"{KEY_FORMAT}\0{fingerprint}\0{view}\0{dtype}\0".encode()
    return blake2b(facts + digest, digest_size=32).digest()


class FeatureStore:
    """Feature vectors by key, in one file.

    Several threads and several processes may use it at once. Use it as a context manager, or call `close`.

    Args:
        path: the file; made if missing. None is ``features.sqlite`` in the user's cache folder.
        timeout: seconds to wait while another process writes.

    Raises:
        StoreError: if the file is no feature store, has another format, or can't be written.

    >>> with FeatureStore(":memory:") as store:
    ...     store.put_many({b"key": np.float32([1, 2])})
    ...     store.get_many([b"key", b"other"], dim=2)
    1
    {b'key': array([1., 2.], dtype=float32)}
    """

    def __init__(self, path: str | Path | None = None, timeout: float = 60.0) -> None:
        self.path = Path(path) if path is not None else default_cache_dir() / "features.sqlite"
        self._lock = threading.RLock()
        self._timeout = timeout
        self._version = 0
        if str(self.path) != ":memory:":
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._cannot_write(error) from error
        with self._explained():
            self._db = sqlite3.connect(self.path, timeout=timeout, isolation_level=None, check_same_thread=False)
        self._db.text_factory = bytes  # a damaged text need not be UTF-8
        try:
            with self._explained():
                self._open()
        except BaseException:
            self._db.close()
            raise

    def get_many(self, keys: Sequence[bytes], dim: int) -> dict[bytes, NDArray[np.float32]]:
        """The vectors that are there and sound.

        Args:
            keys: what is looked for.
            dim: expected width d; an entry of another width or with a wrong checksum counts as missing.

        Returns:
            Key to float32 vector (d,), without the missing ones. They share buffers of up to 16 MiB, which belong to
            this call: copy one that shall long outlive the others.
        """
        found: dict[bytes, NDArray[np.float32]] = {}
        step = max(_CHUNK, _BUFFER // (4 * max(dim, 1)))
        for i in range(0, len(keys), step):
            part = keys[i : i + step]
            matrix, start = np.empty((len(part), dim), np.float32), 0
            for block in self._sound(part, dim):
                end = start + len(block.keys)
                found.update(block.decode(matrix[start:end]))
                start = end
        return found

    def contains_many(self, keys: Sequence[bytes], dim: int) -> set[bytes]:
        """Those keys whose vectors are there and sound; see `get_many`."""
        return {key for block in self._sound(keys, dim) for key in block.keys}

    def put_many(self, items: Mapping[bytes, Vector]) -> int:
        """Store vectors in one transaction; what is there already and sound is kept.

        Args:
            items: key to vector (d,) of float32 or float16, as it shall be stored.

        Returns:
            How many were new. Fewer than given means that another process put some of them meanwhile.

        Raises:
            InputError: if a vector has another dtype.
            StoreError: if the file can't be written; nothing of `items` is stored then.
        """
        rows = encode(items)
        insert = "INSERT OR IGNORE INTO feature VALUES (?, ?, ?, ?)"
        with self._lock, self._explained(), self._transaction():
            new = self._db.executemany(insert, rows).rowcount
            if new < len(rows):
                unsound = self._unsound(items, rows)
                new += self._db.executemany("REPLACE INTO feature VALUES (?, ?, ?, ?)", unsound).rowcount
        return new

    def touched(self) -> bool:
        """Whether another process wrote since the last call."""
        with self._lock, self._explained():
            before, self._version = self._version, self._db.execute("PRAGMA data_version").fetchone()[0]
        return self._version != before

    def __len__(self) -> int:
        with self._lock, self._explained():
            return int(self._db.execute("SELECT count(*) FROM feature").fetchone()[0])

    def items(self) -> Iterator[tuple[bytes, NDArray[np.float32]]]:
        """All sound entries, oldest first; others may go on writing meanwhile.

        Neighbours share a buffer as in `get_many`: copy a vector that shall long outlive the others.

        Raises:
            StoreError: if the file is damaged so that its order is lost.
        """
        last = 0
        while True:
            query = f"SELECT *, rowid FROM feature WHERE rowid > ? ORDER BY rowid LIMIT {_CHUNK}"
            with self._lock, self._explained():
                rows = self._db.execute(query, (last,)).fetchall()
            if not rows:
                return
            numbers = [last, *(row[-1] for row in rows)]
            if any(number >= following for number, following in pairwise(numbers)):  # it would never come to an end
                raise self._damaged("its rows are not in order")
            last = numbers[-1]
            for block in sound(rows):
                yield from block.decode(np.empty((len(block.keys), block.width), np.float32))

    def close(self) -> None:
        """Close the file; everything that was put is in it already."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        """Know the file as ours, or make it; a file of anybody else is not touched."""
        self._db.execute("PRAGMA page_size = 16384")  # a few vectors a page; without effect on a file that exists
        self._db.execute("PRAGMA cache_size = -8000")  # KiB; of SQLite's 2,000 one chunk's pages drive the index out
        self._db.execute(
            "PRAGMA synchronous = NORMAL"
        )  # with WAL: safe from kill -9; a power cut may cost the last batches
        if self._is_empty():
            self._use_wal()
            with self._transaction():
                if self._is_empty():  # else another process made it meanwhile
                    self._db.execute(_SCHEMA)
                    self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                    self._db.execute(f"PRAGMA user_version = {FORMAT}")
        if self._pragma("application_id") != _APPLICATION:
            raise StoreError(
                f"{self.path} is an SQLite file of another program: give another path for the feature store"
            )
        found = self._pragma("user_version")
        if found == 1:
            found = self._upgrade()
        if found != FORMAT:
            raise StoreError(
                f"{self.path} has format {found}, but this version of clipadapter uses format {FORMAT}: "
                "give another path for the feature store, or use the version that made it"
            )
        # A file that can't be written fails now rather than after the first batch.
        for statement in ("BEGIN IMMEDIATE", f"PRAGMA user_version = {FORMAT}", "ROLLBACK"):
            self._db.execute(statement)
        self.touched()

    def _upgrade(self) -> int:
        """Bring a file of format 1 to the present format, in one transaction; gives the format that it then has."""
        self._db.create_function("upgrade_checksum", 4, upgrade_checksum, deterministic=True)
        with self._transaction():
            if self._pragma("user_version") == 1:  # else another process did it meanwhile
                # By the table alone: a damaged index would give a row the key of another one.
                self._db.execute(
                    "UPDATE feature NOT INDEXED SET checksum = upgrade_checksum(key, dtype, checksum, value)"
                )
                self._db.execute(f"PRAGMA user_version = {FORMAT}")
        return self._pragma("user_version")

    def _is_empty(self) -> bool:
        return self._pragma("application_id") == 0 and not self._db.execute("SELECT 1 FROM sqlite_master").fetchone()

    def _pragma(self, name: str) -> int:
        return self._db.execute(f"PRAGMA {name}").fetchone()[0]

    def _use_wal(self) -> None:
        """Switch to write-ahead logging; SQLite does not wait by itself if another process does so now."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE waits for its turn at once; a read that turns into a write would fail instead of waiting.
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _sound(self, keys: Sequence[bytes], dim: int) -> Iterator[Block]:
        """The sound rows of the keys, those of some keys at a time, in any order."""
        for i in range(0, len(keys), _CHUNK):
            chunk = keys[i : i + _CHUNK]
            query = _BY_PLACE if len(chunk) == _CHUNK else _BY_KEY
            marks = ",".join("?" * len(chunk))
            with self._lock, self._explained():
                rows = self._db.execute(query.format(marks), chunk).fetchall()
            if len(rows) > len(chunk) or not set(chunk).issuperset(row[0] for row in rows):  # the index is damaged
                wanted = set(chunk)
                rows = list({row[0]: row for row in rows if row[0] in wanted}.values())
            yield from sound(rows, dim)

    def _unsound(self, items: Mapping[bytes, Vector], rows: list[Row]) -> list[Row]:
        """Those rows whose stored entry is damaged."""
        widths = {len(vector) for vector in items.values()}
        kept = {key for dim in widths for key in self.contains_many(list(items), dim) if len(items[key]) == dim}
        return [row for row in rows if row[0] not in kept]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._cannot_write(error) from error
        except (sqlite3.Error, MemoryError) as error:  # damaged sizes ask for more memory than there is
            raise self._damaged(str(error) or type(error).__name__) from error

    def _damaged(self, why: str) -> StoreError:
        return StoreError(
            f"{self.path} can't be read as a feature store ({why}), and was left as it is: give "
            "another path, or move the file away to have the features computed anew"
        )

    def _cannot_write(self, error: Exception) -> StoreError:
        return StoreError(
            f"the feature store {self.path} can't be opened or written ({error}): "
            "check the folder's permissions and free space, or give another path"
        )


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
