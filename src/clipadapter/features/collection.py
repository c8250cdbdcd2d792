"""Collections of pictures of any size, divided into units of work that are the same on every call and every machine.

A unit takes few bytes: it names its pictures, and the machine that works on it reads them.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from clipadapter.data.dataset import SPLIT_ALIASES
from clipadapter.data.folders import find_split_folders
from clipadapter.errors import DataError, ImageError, require
from clipadapter.utils.files import IMAGE_SUFFIXES, SHARDS_FILE, describe_parquet_error, path_without_links

MAX_IMAGE_BYTES = 1 << 30  # larger files are refused
TOO_LARGE = "too large: over {} MiB"
NOT_OPENED = "can't be opened"
MAX_SAMPLE_BYTES = 256 << 20
"""Bytes of all pictures of a sample of an archive, which are in memory together; a picture alone may have more."""
MAX_SAMPLE_MEMBERS = 1000  # files of an archive with one name up to the first dot
EXTENDED_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE) + (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
"""Headers of an archive with more facts of the next file, such as a long name. tarfile reads each at once."""
MAX_HEADER_BYTES = 1 << 20
ROWS_PER_BATCH = 64  # rows of a table in memory at a time. Each row may hold a picture
BUFFER_BYTES = 4 << 20
"""Bytes of a file that are read at a time. In S3 each read is a request: 10 kB if nothing is buffered."""
OWN_NAMES = rf"{re.escape(SHARDS_FILE)}|.*\.(parquet|partial)"  # names of files in a folder of shards
PURPOSE = "Reading pictures through pyarrow"
STORAGE_ADVICE = "check the address, the server and the credentials"
CALL_AGAIN = f"{STORAGE_ADVICE}, then call again: the written shards are kept"


class StorageError(DataError):
    """A storage does not answer, or refuses. Its pictures may be in order: they are no unreadable pictures."""


@dataclass(frozen=True)
class ImageRef:
    """A picture that is not read yet."""

    path: str  # name of the picture
    label: str | None  # class of the picture, or None
    split: str  # "train", "val", "test" or "all"
    read: Callable[[], bytes]  # returns the bytes of its file; safe to call from threads


@dataclass(frozen=True)
class WorkUnit:
    """Some pictures of a collection, whose features become one file."""

    name: str  # for messages
    stamp: str  # hash of paths, sizes and modification times of the files
    group: int  # row group of a table; -1 if the unit is none
    # The pictures in order, from a file system. At the last try a file that a storage does not give is unreadable.
    images: Callable[[Any, bool], Iterator[ImageRef]] = field(repr=False)


def open_filesystem(source: str | Path, filesystem: Any = None) -> tuple[Any, str]:
    """The pyarrow file system of a path or URI, and the path in it; a given file system is one of pyarrow or fsspec."""
    fs = require("pyarrow.fs", "parquet", PURPOSE)
    if filesystem is not None:
        is_pyarrow = isinstance(filesystem, fs.FileSystem)
        return filesystem if is_pyarrow else fs.PyFileSystem(fs.FSSpecHandler(filesystem)), str(source).rstrip("/")
    if "://" not in str(source):
        return fs.LocalFileSystem(), str(Path(source).absolute())
    try:
        parsed, path = fs.FileSystem.from_uri(str(source))
    except (ValueError, OSError) as error:
        raise DataError(f"'{source}' can't be reached: {error}; give other file systems as filesystem=") from error
    return parsed, path.rstrip("/")


def list_folder(filesystem: Any, folder: str) -> list[Any]:
    """The files in a folder. One listing, since a look at each file takes a request in S3."""
    fs = require("pyarrow.fs", "parquet", PURPOSE)
    with storage_errors(folder):
        infos = filesystem.get_file_info(fs.FileSelector(folder))
    files = []
    for info in infos:
        with suppress(UnicodeDecodeError):  # of the name, which is of another program then
            if info.is_file and info.base_name:
                files.append(info)
    return files


def refuse_links(filesystem: Any, folder: str) -> None:
    """Refuse links among our own files in a folder of shards on this machine; see `path_without_links`."""
    if filesystem.type_name == "local" and Path(folder).is_dir():
        for path in Path(folder).iterdir():
            if re.fullmatch(OWN_NAMES, path.name):
                path_without_links(folder, path.name, error=DataError)


def holds_shards(folder: str | Path) -> bool:
    """Whether a path or URI is a folder of shards."""
    if "://" not in str(folder):
        return (Path(folder) / SHARDS_FILE).is_file()
    system, path = open_filesystem(folder)
    return is_file(system, posixpath.join(path, SHARDS_FILE))


def list_shards(filesystem: Any, folder: str) -> set[str]:
    """Names of the Parquet files in a folder."""
    return {info.base_name for info in list_folder(filesystem, folder) if info.extension == "parquet"}


def divide_collection(filesystem: Any, path: str, size: int) -> list[WorkUnit]:
    """Units of work of class folders, ``.tar`` or ``.parquet`` files: an archive, a row group, or `size` pictures."""
    files = _list_files(filesystem, path)
    kinds = {"archives (.tar)": {".tar"}, "tables (.parquet)": {".parquet"}, "pictures": IMAGE_SUFFIXES}
    suffixes = {posixpath.splitext(file.path)[1].lower() for file in files}
    present = [kind for kind, suffixes_of_kind in kinds.items() if suffixes & set(suffixes_of_kind)]
    if len(present) != 1:
        problem = f"has {' and '.join(present)}: name a folder that has one of them" if present else "has no pictures"
        raise DataError(f"'{path}' {problem}; expected class folders, or .tar or .parquet files")
    files = [file for file in files if posixpath.splitext(file.path)[1].lower() in kinds[present[0]]]
    if present == ["archives (.tar)"]:
        stamps = {file.path: _hash_file_facts([file]) for file in files}
        return [WorkUnit(f"'{name}'", stamp, -1, partial(_archive_images, name)) for name, stamp in stamps.items()]
    if present == ["tables (.parquet)"]:
        return [
            WorkUnit(f"'{file.path}', row group {n}", _hash_file_facts([file]), n, partial(_table_images, file.path, n))
            for file in files
            for n in range(_open_table(filesystem, file.path).num_row_groups)
        ]
    labelled, units = _label_files(path, files), []
    while block := list(islice(labelled, size)):
        rows = [(file.path, label, split) for file, label, split in block]
        # About 4 bytes each: the node that starts holds all units.
        packed = zlib.compress(json.dumps(rows).encode(), level=1)
        name, stamp = f"'{rows[0][0]}' and {len(rows) - 1} more pictures", _hash_file_facts([each[0] for each in block])
        units.append(WorkUnit(name, stamp, -1, partial(_packed_images, packed)))
    return units


def _list_files(filesystem: Any, path: str) -> list[Any]:
    """All files that are not hidden, as pyarrow describes them, sorted by path."""
    fs = require("pyarrow.fs", "parquet", PURPOSE)
    with storage_errors(path):
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise DataError(f"there is no folder or file '{path}'{' in S3' if filesystem.type_name == 's3' else ''}")
        infos = [info] if info.is_file else filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    shown = (info for info in infos if info.is_file and "/." not in info.path[len(path) :])
    return sorted(shown, key=lambda info: info.path)


def _hash_file_facts(files: Sequence[Any]) -> str:
    facts = [(file.path, file.size, file.mtime_ns) for file in files]
    return blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def _label_files(root: str, files: Sequence[Any]) -> Iterator[tuple[Any, str | None, str]]:
    """Label and split of each file, by the rules of `load_dataset` for folders."""
    first_folders = {folders[0] for file in files if (folders := _folders_of(root, file))}
    split_of = find_split_folders(first_folders)

    def label_file(file: Any) -> tuple[str | None, str] | None:
        folders: list[Any] = [*_folders_of(root, file), None]  # None: no class
        if not split_of:
            return folders[0], "all"
        return (folders[1], split_of[folders[0]]) if folders[0] in split_of else None

    # Pictures next to class folders have no class and are left out, as in `load_dataset`.
    splits_with_classes = {split for label, split in filter(None, map(label_file, files)) if label is not None}
    for file in files:
        labelled = label_file(file)
        if labelled and (labelled[0] is not None or labelled[1] not in splits_with_classes):
            yield file, *labelled


def _folders_of(root: str, file: Any) -> list[str]:
    return file.path[len(root) :].strip("/").split("/")[:-1]


def describe_storage_error(error: Exception) -> str:
    """The first line of a storage's error, without what helps only those who write programs.

    >>> describe_storage_error(OSError("Bucket 'x' not found. To create buckets, enable this option"))
    "Bucket 'x' not found"
    >>> describe_storage_error(OSError("AWS Error NO_SUCH_BUCKET (Request ID: csK90itnwa0B)"))
    'AWS Error NO_SUCH_BUCKET'
    """
    first = str(error).strip().split("\n")[0]
    return re.sub(r"\.? (To create buckets, .*|\(Request ID: \w*\))", "", first)


@contextmanager
def storage_errors(path: str, problem: str = "can't be read", advice: str = STORAGE_ADVICE) -> Iterator[None]:
    """Say what is wrong with a storage where it does not answer, or refuses."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"'{path}' {problem}: {describe_storage_error(error)}; {advice}") from error


def _read_file(filesystem: Any, path: str, is_last_try: bool) -> bytes:
    """Read a single file. Other storages than local disks try again by themselves."""
    # Before the last try a StorageError says that another storage does not give it: an outage would make pictures
    # unreadable for good.
    parts: list[bytes] = []
    try:
        with filesystem.open_input_stream(path) as stream:
            # Not at once: pyarrow reserves as much memory as a read may give.
            while sum(map(len, parts)) <= MAX_IMAGE_BYTES and (part := stream.read(BUFFER_BYTES)):
                parts.append(part)
    except (OSError, ValueError) as error:
        # fsspec says "not found" for every file while a server does not answer.
        if isinstance(error, FileNotFoundError) and not is_file(filesystem, path):
            raise ImageError(path, "no such file") from error
        is_remote = isinstance(error, OSError) and filesystem.type_name != "local"
        with storage_errors(path, advice=CALL_AGAIN):
            if is_remote and not (is_last_try and is_file(filesystem, path)):
                raise
        raise ImageError(path, f"{NOT_OPENED}: {describe_storage_error(error)}") from error
    if sum(map(len, parts)) > MAX_IMAGE_BYTES:
        raise ImageError(path, TOO_LARGE.format(MAX_IMAGE_BYTES >> 20))
    return b"".join(parts)


def is_file(filesystem: Any, path: str) -> bool:
    """Whether there is a file of this name."""
    with storage_errors(path):
        return bool(filesystem.get_file_info(path).is_file)


def _give(path: str, content: bytes | str) -> bytes:
    """The bytes of a picture; a text is the reason why there are none."""
    if isinstance(content, str):
        raise ImageError(path, content)
    return content


def _open_table(filesystem: Any, path: str) -> Any:
    """Open a table that has a column path or bytes."""
    parquet = require("pyarrow.parquet", "parquet", PURPOSE)
    with storage_errors(path, advice=CALL_AGAIN):
        try:
            table = parquet.ParquetFile(filesystem.open_input_file(path), buffer_size=BUFFER_BYTES)
        except ValueError as error:
            reason = describe_parquet_error(error)
            raise DataError(f"'{path}' can't be read as a Parquet table: {reason}; copy or write it again") from error
    if not {"path", "bytes"} & set(table.schema_arrow.names):
        has = ", ".join(table.schema_arrow.names)
        raise DataError(f"'{path}' needs a column 'path' or 'bytes', and may have 'label' and 'split'; it has: {has}")
    return table


def _packed_images(packed: bytes, filesystem: Any, is_last_try: bool) -> Iterator[ImageRef]:
    """Pictures that are single files, from their paths, labels and splits."""
    for path, label, split in json.loads(zlib.decompress(packed)):
        yield ImageRef(path, label, split, partial(_read_file, filesystem, path, is_last_try))


def _table_images(path: str, group: int, filesystem: Any, is_last_try: bool) -> Iterator[ImageRef]:
    table = _open_table(filesystem, path)
    columns = [name for name in ("path", "bytes", "label", "split") if name in table.schema_arrow.names]
    chunks = table.metadata.row_group(group)
    # Equal rows take no room in a file: each may be as large as the whole row group.
    largest = max((chunks.column(i).total_uncompressed_size for i in range(chunks.num_columns)), default=0)
    n_rows = max(1, min(ROWS_PER_BATCH, MAX_IMAGE_BYTES // max(1, largest)))
    number, batches = 0, table.iter_batches(n_rows, row_groups=[group], columns=columns)
    while True:
        with storage_errors(path, advice=CALL_AGAIN):
            batch = next(batches, None)
        if batch is None:
            return
        for row in batch.to_pylist():
            name = str(row.get("path") or f"{path}#{group}.{number}")
            number += 1
            label = None if row.get("label") is None else str(row["label"])
            split = SPLIT_ALIASES.get(str(row.get("split")).lower(), "all")
            if "bytes" not in columns:
                read = partial(_read_file, filesystem, posixpath.join(posixpath.dirname(path), name), is_last_try)
            else:
                read = partial(_give, name, row["bytes"] if isinstance(row["bytes"], bytes) else "has no bytes")
            yield ImageRef(name, label, split, read)


def _archive_images(path: str, filesystem: Any, _is_last_try: bool) -> Iterator[ImageRef]:
    """Pictures of a WebDataset archive: files with one name up to the first dot are a sample; ``.cls`` is its class."""
    # A damaged archive ends with a picture that says so.
    try:
        with (
            filesystem.open_input_stream(path, buffer_size=BUFFER_BYTES) as stream,
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as archive,
        ):
            for _, members in groupby(_list_members(archive), key=_sample_key):
                files = _read_sample(archive, members)
                classes = [data or b"" for name, data in files.items() if name.endswith(".cls")]
                label = classes[0].decode(errors="replace").strip() if classes else None
                # A picture alone is too large, or together with those before.
                limit = MAX_IMAGE_BYTES if next(iter(files.values()), None) is None else MAX_SAMPLE_BYTES
                too_large = TOO_LARGE.format(limit >> 20)
                for name, data in files.items():
                    if posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                        picture = f"{path}/{name}"
                        read = partial(_give, picture, too_large if data is None else data)
                        yield ImageRef(picture, label or None, _split_of_path(path), read)
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        # tarfile reports damage by errors of its own, so that an OSError is of the storage.
        with storage_errors(path, advice=CALL_AGAIN):
            if isinstance(error, OSError) and (not isinstance(error, FileNotFoundError) or is_file(filesystem, path)):
                raise
        reason = f"the archive is damaged from here on: {error}"
        yield ImageRef(path, None, _split_of_path(path), partial(_give, path, reason))


def _sample_key(member: tarfile.TarInfo) -> str:
    folder, name = posixpath.split(member.name)
    return f"{folder}/{name.partition('.')[0]}"


class _Member(tarfile.TarInfo):
    """A header of an archive. An extended one is refused if it is too large to be read into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        # From Python 3.13 on, tarfile does not call `frombuf`, the public method that could check this.
        if self.type in EXTENDED_HEADERS and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header has {self.size:,} bytes, but at most {MAX_HEADER_BYTES:,} are read")
        return super()._proc_member(archive)  # type: ignore[misc]


def _list_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The regular files of an archive, in order."""
    for member in archive:
        archive.members.clear()  # type: ignore[attr-defined] # tarfile keeps all of them
        if member.isfile():
            yield member


def _read_sample(archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo]) -> dict[str, bytes | None]:
    """The bytes of the pictures and classes of a sample by name; None if they, with those before, are too large."""
    files: dict[str, bytes | None] = {}
    n_bytes = 0
    for i, member in enumerate(members):
        if i >= MAX_SAMPLE_MEMBERS:
            raise tarfile.ReadError(f"more than {MAX_SAMPLE_MEMBERS:,} files have the name of one sample")
        if not member.name.endswith(".cls") and posixpath.splitext(member.name)[1].lower() not in IMAGE_SUFFIXES:
            continue
        is_too_large = n_bytes + member.size > (MAX_SAMPLE_BYTES if n_bytes else MAX_IMAGE_BYTES)
        file = None if is_too_large else archive.extractfile(member)
        files[member.name] = None if is_too_large else b"" if file is None else file.read()
        n_bytes += 0 if is_too_large else member.size
    return files


def _split_of_path(path: str) -> str:
    """The split that a folder above an archive names."""
    return next(
        (SPLIT_ALIASES[name.lower()] for name in path.split("/")[-2::-1] if name.lower() in SPLIT_ALIASES), "all"
    )
