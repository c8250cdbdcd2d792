"""Pictures of any size of collection, cut into parts that are the same on every call and every machine.

A part is small to send: it says where its pictures lie, and reads them where it is worked on.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any

from clipadapter.data.dataset import SPLIT_ALIASES
from clipadapter.errors import DataError, ImageError, require
from clipadapter.files import IMAGE_SUFFIXES

MOST_BYTES = 1 << 30
"""No picture is larger."""
ROWS = 64
"""Rows of a table in memory at a time; each may hold a picture."""
EXTRA = "Reading pictures through pyarrow"


@dataclass(frozen=True)
class Picture:
    """A picture that was not read yet.

    Args:
        path: what it is called.
        label: its class, or None.
        split: "train", "val", "test" or "all".
        read: gives the bytes of its file; safe to call from a thread.
    """

    path: str
    label: str | None
    split: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Part:
    """Some pictures of a collection.

    Args:
        path: of the archive or table; empty if the files are named one by one.
        group: row group of the table; -1 if it is none.
        files: (path, label, split) of pictures that are files.
        stamp: hash of what the file system tells of the files: paths, sizes, times.
    """

    path: str
    group: int
    files: tuple[tuple[str, str | None, str], ...]
    stamp: str

    def pictures(self, filesystem: Any) -> Iterator[Picture]:
        """The pictures, in order."""
        if self.files:
            return (Picture(*file, partial(_read, filesystem, file[0])) for file in self.files)
        return _rows(filesystem, self.path, self.group) if self.group >= 0 else _members(filesystem, self.path)


def place(source: str | Path, filesystem: Any = None) -> tuple[Any, str]:
    """The file system of pyarrow and the path in it.

    Args:
        source: a path, or an URI such as ``s3://bucket/folder``; with `filesystem` a path in that.
        filesystem: one of pyarrow or fsspec.

    Raises:
        MissingExtraError: if pyarrow is not installed.
        DataError: if there is no such file system.
    """
    fs = require("pyarrow.fs", "parquet", EXTRA)
    if filesystem is not None:
        own = isinstance(filesystem, fs.FileSystem)
        return filesystem if own else fs.PyFileSystem(fs.FSSpecHandler(filesystem)), str(source).rstrip("/")
    if "://" not in str(source):
        return fs.LocalFileSystem(), str(Path(source).absolute())
    try:
        found, path = fs.FileSystem.from_uri(str(source))
    except (ValueError, OSError) as error:
        raise DataError(f"'{source}' can't be reached: {error}; other file systems can be given as filesystem=") from (
            error
        )
    return found, path.rstrip("/")


def find_parts(filesystem: Any, path: str, size: int) -> list[Part]:
    """Cut a collection into parts: an archive each, a row group of a table each, or so many files each.

    Args:
        filesystem: of pyarrow.
        path: a folder of class folders, of ``.tar`` or of ``.parquet`` files, or one such file.
        size: files in a part.

    Raises:
        DataError: if there are no pictures, or it is not clear which are meant.
    """
    files = _files(filesystem, path)
    kinds = {
        "archives (.tar)": [file for file in files if file.path.lower().endswith(".tar")],
        "tables (.parquet)": [file for file in files if file.path.lower().endswith(".parquet")],
        "pictures": [file for file in files if posixpath.splitext(file.path)[1].lower() in IMAGE_SUFFIXES],
    }
    there = [name for name, found in kinds.items() if found]
    if len(there) != 1:
        what = f"has {' and '.join(there)}: name a folder that has one of them" if there else "has no pictures"
        raise DataError(f"'{path}' {what}; expected class folders, or .tar or .parquet files")
    archives, tables, pictures = kinds.values()
    if archives:
        return [Part(file.path, -1, (), _stamp([file])) for file in archives]
    if tables:
        return [
            Part(file.path, group, (), _stamp([file]))
            for file in tables
            for group in range(_table(filesystem, file.path).num_row_groups)
        ]
    labelled = _labelled(path, pictures)
    blocks = [labelled[i : i + size] for i in range(0, len(labelled), size)]
    return [
        Part(
            "", -1, tuple((file.path, label, split) for file, label, split in block), _stamp([row[0] for row in block])
        )
        for block in blocks
    ]


def _files(filesystem: Any, path: str) -> list[Any]:
    """What pyarrow tells of every file that is not hidden, sorted by path."""
    fs = require("pyarrow.fs", "parquet", EXTRA)
    try:
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise DataError(f"there is no folder or file '{path}'")
        found = [info] if info.is_file else filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    except OSError as error:
        raise DataError(f"'{path}' can't be read: {error}") from error
    shown = [file for file in found if file.is_file and "/." not in file.path[len(path) :]]
    return sorted(shown, key=lambda file: str(file.path))


def _stamp(files: Sequence[Any]) -> str:
    facts = [[file.path, file.size, file.mtime_ns] for file in files]
    return blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def _labelled(root: str, files: Sequence[Any]) -> list[tuple[Any, str | None, str]]:
    """Class and part of each file as `load_dataset` reads them from folders."""
    inner = [(file, file.path[len(root) :].strip("/").split("/")[:-1]) for file in files]
    tops = {folders[0] for _, folders in inner if folders}
    parts = {top: SPLIT_ALIASES[top.lower()] for top in tops if top.lower() in SPLIT_ALIASES}
    found: list[tuple[Any, str | None, str]] = []
    divided = len(parts) >= 2 or (parts and len(parts) == len(tops))
    for file, folders in inner:
        if not divided:
            found.append((file, folders[0] if folders else None, "all"))
        elif folders and folders[0] in parts:
            found.append((file, folders[1] if len(folders) > 1 else None, parts[folders[0]]))
    with_classes = {split for _, label, split in found if label is not None}
    return [row for row in found if row[1] is not None or row[2] not in with_classes]


def _read(filesystem: Any, path: str) -> bytes:
    try:
        with filesystem.open_input_stream(path) as stream:
            data: bytes = stream.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ImageError(path, "no such file") from error
    except (OSError, ValueError) as error:
        raise ImageError(path, f"can't be opened: {error}") from error
    if len(data) > MOST_BYTES:
        raise ImageError(path, f"too large: over {MOST_BYTES >> 20} MiB")
    return data


def _known(data: bytes) -> bytes:
    return data


def _broken(path: str, reason: str) -> bytes:
    raise ImageError(path, reason)


def _table(filesystem: Any, path: str) -> Any:
    """An open table with a column path or bytes."""
    parquet = require("pyarrow.parquet", "parquet", EXTRA)
    try:
        table = parquet.ParquetFile(filesystem.open_input_file(path))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' is no Parquet file: {error}") from error
    if not {"path", "bytes"} & set(table.schema_arrow.names):
        has = ", ".join(table.schema_arrow.names)
        raise DataError(f"'{path}' needs a column 'path' or 'bytes', and may have 'label' and 'split'; it has: {has}")
    return table


def _rows(filesystem: Any, path: str, group: int) -> Iterator[Picture]:
    table = _table(filesystem, path)
    columns = [name for name in ("path", "bytes", "label", "split") if name in table.schema_arrow.names]
    number = 0
    for batch in table.iter_batches(ROWS, row_groups=[group], columns=columns):
        for row in batch.to_pylist():
            name = str(row.get("path") or f"{path}#{group}.{number}")
            number += 1
            label = None if row.get("label") is None else str(row["label"])
            split = SPLIT_ALIASES.get(str(row.get("split")).lower(), "all")
            if "bytes" not in columns:
                read = partial(_read, filesystem, posixpath.join(posixpath.dirname(path), name))
            elif isinstance(row["bytes"], bytes):
                read = partial(_known, row["bytes"])
            else:
                read = partial(_broken, name, "has no bytes")
            yield Picture(name, label, split, read)


def _members(filesystem: Any, path: str) -> Iterator[Picture]:
    """Pictures of a WebDataset archive: files of one name up to its first dot are a sample, ``.cls`` has its class."""
    try:
        with filesystem.open_input_stream(path) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            for _, members in groupby((one for one in archive if one.isfile()), key=_key):
                files = {member.name: _content(archive, member) for member in members}
                classes = [data for name, data in files.items() if name.endswith(".cls")]
                label = classes[0].decode(errors="replace").strip() if classes else None
                for name, data in files.items():
                    if posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                        yield Picture(f"{path}/{name}", label or None, _split_of(path), partial(_known, data))
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        yield Picture(
            path, None, _split_of(path), partial(_broken, path, f"the archive is damaged from here on: {error}")
        )


def _key(member: tarfile.TarInfo) -> str:
    folder, name = posixpath.split(member.name)
    return f"{folder}/{name.partition('.')[0]}"


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None or member.size > MOST_BYTES else file.read()


def _split_of(path: str) -> str:
    """The part that a folder above an archive names."""
    return next(
        (SPLIT_ALIASES[name.lower()] for name in path.split("/")[-2::-1] if name.lower() in SPLIT_ALIASES), "all"
    )
