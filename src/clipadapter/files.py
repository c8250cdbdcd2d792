"""Writing files whole or not at all, and tables as CSV; what a path is, where a model is expected; and short names."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from clipadapter.errors import InputError

EXPORTED = (".onnx", ".xml")
"""How files end that `clipadapter.export` writes and `clipadapter.runtime` opens."""
ABANDONED_SECONDS = 24 * 3600
"""What was last changed so long ago is not being written."""


FORMULA_STARTS = ("=", "+", "-", "@", "\t", "＝", "＋", "－", "＠")
"""Where a cell begins so, spreadsheets may run it as a formula; the wide forms too, in some languages."""


def why_no_model(path: str | Path) -> str:
    """Why a path is not the folder of a saved model, and what to do; "" if it looks like one.

    >>> why_no_model("nowhere")
    "there is no folder nowhere: give the one that 'clipadapter fit' wrote"
    """
    place = Path(path)
    try:
        there, folder, config = place.exists(), place.is_dir(), (place / "config.json").is_file()
    except (OSError, ValueError) as error:
        return f"{path} can't be looked at ({error}): give the folder that 'clipadapter fit' wrote"
    if folder:
        return "" if config else f"{path} holds no model: it has no config.json. 'clipadapter fit' makes one"
    if not there:
        return f"there is no folder {path}: give the one that 'clipadapter fit' wrote"
    if place.suffix.lower() in EXPORTED:
        return (
            f"{path} is an exported file, which 'clipadapter predict' and 'serve' take: this needs the folder that "
            "'clipadapter fit' wrote"
        )
    return f"{path} is a file: give the folder that 'clipadapter fit' wrote"


def without_paths(name: str) -> str:
    """The name of an encoder with the last part alone of paths of this machine.

    >>> without_paths("open_clip:local-dir:/home/ann/clip")
    'open_clip:local-dir:clip'
    """
    # A folder may be called "a+b"; where a plus joins two encoders, the second one's scheme follows it.
    parts = re.compile(r"(local-dir:|simclr:)(.*?)(?=\+[a-z_]+:|$)")
    return parts.sub(lambda found: found[1] + re.split(r"[/\\]", found[2].rstrip("/\\"))[-1], name)


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove files and folders that a killed process was writing, a day ago or before.

    Where many processes write into one folder without locks, only age tells what nobody goes on with.

    Args:
        folder: that they lie in; it need not exist.
        pattern: of their names.
    """
    for path in folder.glob(pattern):
        try:
            newest = max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
            if time.time() - newest < ABANDONED_SECONDS:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        except OSError:
            continue  # another process was faster


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    r"""A table as CSV, in which no text is a formula.

    A spreadsheet runs a cell that begins with ``=``, ``+``, ``-`` or ``@``, and names of classes, data sets and heads
    may come from anybody. Such a text gets an apostrophe before it, and the cell is shown as text. Numbers are written
    as they are, also below 0.

    Args:
        rows: of texts, numbers and truth values; the first may be the header.

    >>> csv_text([("head", "gain"), ("=1+1", -0.5), ("a,b", True)])
    'head,gain\n\'=1+1,-0.5\n"a,b",True\n'
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    plain = value.replace("\r", " ")  # the writer does not quote it, and spreadsheets begin a row there
    return f"'{plain}" if plain.startswith(FORMULA_STARTS) else plain


def write_whole(path: str | Path, data: str | bytes) -> Path:
    """Write a file, and its folder; whatever stops it leaves an older file as it was. A link is followed.

    Args:
        path: to write.
        data: bytes, or text for UTF-8.

    Returns:
        The path, as it was given.

    Raises:
        InputError: if it can't be written.
    """
    target, temporary = Path(path).resolve(), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name[:100]}-", delete=False) as file:
            temporary = Path(file.name)
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise InputError(f"can't write {path}: {error.strerror or error}; give a place you may write to") from error
    return Path(path)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file to read bytes, unless it is a pipe, a device or the like, which could wait or go on forever.

    Raises:
        OSError: if there is none, it can't be opened, or it is not a regular file.
        ValueError: if the path has a null character.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a device can already act on it
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # A file that is exchanged for a pipe meanwhile must not block, and is looked at again.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def open_text(path: str | Path, newline: str | None = None) -> TextIO:
    """As `open_regular`, to read text in UTF-8, with or without a byte order mark as spreadsheets write it.

    Raises:
        OSError: if there is none, it can't be opened, or it is not a regular file.
    """
    return io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline=newline)
