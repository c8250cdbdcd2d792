"""Where commands write. What they may replace is decided here, before the work begins.

A new file is written, and one that the same command wrote before is replaced: its content says so. All else is refused:
an input, a file of another origin, a folder, a link, a device, and a place where nothing can be written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from clipadapter.cli.declarations import flag
from clipadapter.errors import InputError, require
from clipadapter.utils.files import is_marked, open_regular, printable

force_option = flag("--force", "Replace a file of another origin too.", heading="")


def check_output_file(
    path: Path | None,
    what: str,
    is_own: str | Callable[[Path], bool],
    *inputs: Path,
    suffixes: Sequence[str] = (),
    force: bool | None = None,
) -> None:
    """Refuse, before the work, a file that a command must not or can't write.

    Args:
        path: the file; without one nothing is checked.
        what: what the command writes, for the message, such as "page of report".
        is_own: whether the command wrote an existing file; or the writer that its mark names, see `is_marked`.
        inputs: what the command reads.
        suffixes: those that the file may have; any without them.
        force: whether a file of another origin may be replaced; None for a command without ``--force``.
    """
    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        endings = " or ".join(filter(None, (", ".join(suffixes[:-1]), suffixes[-1])))
        raise InputError(f"{path} does not end with {endings}: give a file name that ends with {suffixes[0]}")
    if path.suffix.lower() == ".parquet":
        require("pyarrow.parquet", "parquet", "Writing Parquet")
    _check_place(path, inputs)
    if not path.exists():
        return
    own = is_marked(path, is_own) if isinstance(is_own, str) else is_own(path)
    if not own and path.stat().st_size and not force:
        advice = "remove it" if force is None else "add --force to replace it"
        raise InputError(f"{path} exists and is no {what}: give another name, or {advice}")


def _check_place(path: Path, inputs: Sequence[Path]) -> None:
    """Refuse what is no place for a file, whatever is in it."""
    if path.is_symlink():
        raise InputError(f"{path} is a link: give the file itself, or another name")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file: give another name")
    for each in inputs:
        with suppress(OSError):  # one of them does not exist
            if path.samefile(each):
                raise InputError(f"{path} is an input: give another name for the output")
    _check_parent(path, path.parent, "another name")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"can't write {path}: it is not a file that you may write to; give another name")


def check_output_folder(folder: Path, writer: str = "", *patterns: str) -> Path:
    """Return the folder. Refuse, before the work, one that can't be written, or in which a file would be replaced.

    Files with the names (patterns of `Path.glob`) that a command writes must have its mark.
    """
    _check_parent(folder, folder, "another --out")
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        if not is_marked(path, writer):
            by = f"was not written by 'clipadapter {writer}'"
            raise InputError(f"{printable(path)} exists and {by}: give another --out, or remove it")
    return folder


def check_records_folder(folder: Path) -> None:
    """`check_output_folder` for one with a file to which runs are added."""
    check_output_folder(folder)
    check_output_file(folder / "runs.jsonl", "file of runs", lambda path: begins_with(path, b'{"format":'))


def begins_with(path: Path, start: bytes) -> bool:
    """Whether a file begins with these bytes, or a write of them was torn."""
    with suppress(OSError), open_regular(path) as file:
        return start.startswith(file.read(len(start)))
    return False


def has_parquet_key(path: Path, key: str) -> bool:
    """Whether a Parquet file has metadata of this name."""
    parquet = require("pyarrow.parquet", "parquet", "Reading Parquet")
    with suppress(OSError, ValueError):  # no Parquet
        return key.encode() in (parquet.read_schema(path).metadata or {})
    return False


def _check_parent(path: Path, folder: Path, advice: str) -> None:
    """Refuse a path if nothing can be written into its folder, or into the closest parent that exists."""
    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise InputError(f"can't write {path}: {existing} is not a folder that you may write to; give {advice}")
