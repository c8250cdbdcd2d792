"""The feature store: one SQLite file of feature vectors that several processes may fill at once.

A key depends on everything that determines a vector, so no entry ever becomes stale. Each `put_many` is one short
transaction: a process that is killed loses only what it had not stored.

The checksum of an entry is the CRC-32 of dtype, key and value. It includes the key because a damaged index leads from a
key to the row of another one, and SQLite takes the key from the index: the value by itself would be intact. A damaged
entry counts as missing.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from clipadapter.errors import StoreError
from clipadapter.utils.files import default_cache_dir, path_without_links, read_ends

FORMAT = 1  # format number of the file; part of each key
APPLICATION_ID = 0x434C4950  # "CLIP" in the file header, which distinguishes a feature store from other SQLite files
JOURNAL_MARK = bytes.fromhex("d9d505f920a163d7")
"""First bytes of a journal of SQLite. They are its last ones too if it names a file to delete, which ours never do."""
ROWS_PER_STATEMENT = 200
"""Keys or rows in one statement: their values stay in the processor's cache until they are decoded."""
SELECT_BY_KEY = "SELECT * FROM feature WHERE key IN ({})"
SELECT_IN_FILE_ORDER = "SELECT * FROM feature WHERE rowid IN (SELECT rowid FROM feature WHERE key IN ({}))"
"""The same rows, but slower for one row and faster for many rows that were stored one after the other."""
CREATE_TABLE = "CREATE TABLE feature (key BLOB PRIMARY KEY, dtype TEXT, checksum INTEGER, value BLOB)"

Row = tuple[Any, ...]
"""Key, dtype, checksum and value as SQLite gives them, texts as bytes. A damaged row may hold anything."""
DTYPE = "float32"  # type of the stored numbers, in little-endian order; part of each key and checksum
NUMBER = np.dtype("<f4")
CHECKSUM_START = crc32(DTYPE.encode())


def feature_key(digest: bytes, fingerprint: str, view: str) -> bytes:
    """The key of a feature vector.

    Args:
        digest: hash of the picture's bytes.
        fingerprint: fingerprint of the encoder.
        view: name of the view, ``ViewSpec.key(i)``.

    >>> feature_key(b"digest", "fingerprint", "plain") == feature_key(b"digest", "fingerprint", "a view")
    False
    """
    facts = f"{FORMAT}\0{fingerprint}\0{view}\0{DTYPE}\0".encode()
    return blake2b(facts + digest, digest_size=32).digest()


class FeatureStore:
    """Feature vectors by key, in one file.

    Threads and processes may use it at the same time. Use it as a context manager, or call `close`.

    Args:
        path: the file; created if missing. None is ``features.sqlite`` in the user's cache folder.
        timeout: seconds to wait while another process writes.

    Raises:
        StoreError: if the file is no feature store, has another format, can't be written, or a file of SQLite beside it
            is a link or may delete other files.

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
        if str(self.path) != ":memory:":
            self._check_files_of_sqlite()
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._not_writable_error(error) from error
        with self._translate_errors():
            self._db = sqlite3.connect(self.path, timeout=timeout, isolation_level=None, check_same_thread=False)
        self._db.text_factory = bytes  # a damaged text need not be UTF-8
        try:
            with self._translate_errors():
                self._open()
        except BaseException:
            self._db.close()
            raise

    def get_many(self, keys: Sequence[bytes], dim: int) -> dict[bytes, NDArray[np.float32]]:
        """The valid vectors of some keys.

        Args:
            keys: keys to look up.
            dim: expected width d; an entry of another width or with a wrong checksum counts as missing.

        Returns:
            Key to float32 vector (d,), without the missing ones.
        """
        rows = self._valid_rows(keys, dim)
        return {key: np.frombuffer(value, NUMBER).astype(np.float32) for key, _, _, value in rows}

    def put_many(self, items: Mapping[bytes, NDArray[np.float32]]) -> int:
        """Store vectors in one transaction; valid entries that exist already are kept.

        Args:
            items: key to vector (d,), float32.

        Returns:
            How many were new. Fewer than given means that another process stored some of them meanwhile.

        Raises:
            StoreError: if the file can't be written; then no item is stored.
        """
        values = ((key, np.asarray(vector, NUMBER).tobytes()) for key, vector in items.items())
        rows = [(key, DTYPE, checksum(key, value), value) for key, value in values]
        insert = "INSERT OR IGNORE INTO feature VALUES (?, ?, ?, ?)"
        with self._lock, self._translate_errors(), self._transaction():
            new = self._db.executemany(insert, rows).rowcount
            if new < len(rows):
                sound = {(row[0], len(row[3])) for row in self._valid_rows(list(items), None)}
                damaged = [row for row in rows if (row[0], len(row[3])) not in sound]
                new += self._db.executemany("REPLACE INTO feature VALUES (?, ?, ?, ?)", damaged).rowcount
        return new

    def __len__(self) -> int:
        with self._lock, self._translate_errors():
            return int(self._db.execute("SELECT count(*) FROM feature").fetchone()[0])

    def close(self) -> None:
        """Close the file; everything that was stored is in it already."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_files_of_sqlite(self) -> None:
        """Refuse files beside the store that make SQLite write into other files, or delete them."""
        real = Path(os.path.realpath(self.path))  # SQLite follows a link first
        for ending in ("-wal", "-shm", "-journal"):
            path = path_without_links(real.parent, real.name + ending, error=StoreError)
        try:
            names_another_file = path.is_file() and read_ends(path)[1] == JOURNAL_MARK[-4:]
        except FileNotFoundError:  # another process removed it at the end of a transaction
            return
        except OSError as error:
            raise self._not_writable_error(error) from error
        if names_another_file:
            raise StoreError(f"{path} is no journal of a feature store, and may make SQLite delete a file: remove it")

    def _open(self) -> None:
        """Check that the file is a feature store, or create it; a file of another program is not changed."""
        self._db.execute("PRAGMA page_size = 16384")  # a few vectors per page; no effect on a file that exists
        # KiB. With SQLite's default of 2,000 the pages of one statement push the index out of the cache.
        self._db.execute("PRAGMA cache_size = -8000")
        # With WAL: kill -9 loses nothing, a power cut may lose the last batches.
        self._db.execute("PRAGMA synchronous = NORMAL")
        if self._is_empty():
            self._use_wal()
            with self._transaction():
                if self._is_empty():  # else another process created it meanwhile
                    self._db.execute(CREATE_TABLE)
                    self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    self._db.execute(f"PRAGMA user_version = {FORMAT}")
        if self._pragma("application_id") != APPLICATION_ID:
            raise StoreError(
                f"{self.path} is an SQLite file of another program: give another path for the feature store"
            )
        file_format = self._pragma("user_version")
        if file_format != FORMAT:
            raise StoreError(
                f"{self.path} has format {file_format}, this version reads {FORMAT}: give another path for the feature "
                "store, or delete it, which costs the time to compute the features again"
            )
        # A damaged schema can leave out a column.
        schema = self._db.execute("SELECT sql FROM sqlite_master WHERE tbl_name = 'feature' AND sql IS NOT NULL")
        if schema.fetchall() != [(CREATE_TABLE.encode(),)]:
            raise self._damaged_error("it has another table")
        # A file that can't be written fails now, not after the first batch.
        for statement in ("BEGIN IMMEDIATE", f"PRAGMA user_version = {FORMAT}", "ROLLBACK"):
            self._db.execute(statement)

    def _is_empty(self) -> bool:
        return self._pragma("application_id") == 0 and not self._db.execute("SELECT 1 FROM sqlite_master").fetchone()

    def _pragma(self, name: str) -> int:
        return self._db.execute(f"PRAGMA {name}").fetchone()[0]

    def _use_wal(self) -> None:
        """Switch to write-ahead logging. SQLite itself does not wait while another process does the same."""
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
        # IMMEDIATE waits for the lock at once; a transaction that reads first and then writes would fail instead.
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _valid_rows(self, keys: Sequence[bytes], dim: int | None) -> Iterator[Row]:
        """The valid rows of the keys, each once, in any order."""
        for i in range(0, len(keys), ROWS_PER_STATEMENT):
            chunk = keys[i : i + ROWS_PER_STATEMENT]
            query = SELECT_IN_FILE_ORDER if len(chunk) == ROWS_PER_STATEMENT else SELECT_BY_KEY
            marks = ",".join("?" * len(chunk))
            with self._lock, self._translate_errors():
                rows = self._db.execute(query.format(marks), chunk).fetchall()
            requested = set(chunk)  # a damaged index leads to other rows
            yield from (row for row in rows if row[0] in requested and _is_valid(row, dim))

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Translate errors of SQLite into StoreError."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._not_writable_error(error) from error
        # A damaged size can exceed the memory. Messages of SQLite have damaged names, which need not be UTF-8.
        except (sqlite3.Error, MemoryError, UnicodeDecodeError) as error:
            raise self._damaged_error(str(error) or type(error).__name__) from error

    def _damaged_error(self, why: str) -> StoreError:
        return StoreError(
            f"{self.path} can't be read as a feature store ({why}), and was left as it is: give "
            "another path, or move the file away to compute the features again"
        )

    def _not_writable_error(self, error: Exception) -> StoreError:
        return StoreError(
            f"the feature store {self.path} can't be opened or written ({error}): "
            "check the folder's permissions and free space, or give another path (--cache FILE), or none (--no-cache)"
        )


def checksum(key: bytes, value: bytes) -> int:
    """The checksum of an entry."""
    return crc32(value, crc32(key, CHECKSUM_START))


def _is_valid(row: Row, dim: int | None) -> bool:
    """Whether the checksum is right and, if `dim` is given, the vector has this width."""
    key, dtype, expected, value = row
    if dtype != DTYPE.encode() or type(key) is not bytes or type(value) is not bytes:
        return False
    is_whole = len(value) % NUMBER.itemsize == 0 if dim is None else len(value) == dim * NUMBER.itemsize
    return is_whole and checksum(key, value) == expected
