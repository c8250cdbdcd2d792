"""Writes to a model's folder: in place, by one process at a time, with the rename of ``config.json`` as the commit.

A save writes every file that changes into a folder of its own inside the model's, `STAGING`, and then does three steps:

1. Prepare. An empty ``config.json`` is the first file in `STAGING` and marks the save as not committed. All other files
   are written and synced, the real ``config.json`` among them.
2. Commit. ``config.json`` is renamed from `STAGING` to the model's folder. From then on the model is the new one.
3. Settle. The other files are renamed to their places. Files that the new model lacks and `STAGING` are removed.

A process that is killed in step 1 leaves the old model: the next writer removes `STAGING`. One that is killed in step 3
leaves the new model: readers take from `STAGING` what is there (`find_file`), and the next writer settles the rest.

Only files with names of our own are written, renamed or removed, one by one. Other files and folders in the model's
folder are neither copied nor moved, so no moment exists in which they could be lost, and their number costs nothing.
This is why the folder is not replaced as a whole, which would be one step on Linux and macOS only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from clipadapter.cache import default_cache_dir
from clipadapter.errors import ArtifactError
from clipadapter.persistence.format import (
    CARD,
    CONFIG,
    HISTORY,
    OURS,
    STAGING,
    check_place,
    config_at,
    write_synced,
)

PATIENCE = 60.0
"""Seconds that are waited for another process."""
LOCK_POLL_SECONDS = 0.02
MAX_UNLOCKED_READS = 10
"""Reads that a save came into, before the folder is locked for the next one."""
NOTE = "save.json"
"""File in `STAGING` that says which config the staged files belong to, and what is removed from the history."""
HISTORY_NAME = re.compile(r"log\.json|\d{4,}\.json|[0-9a-f]{64}\.safetensors")
"""Names of files in the history's folder that are our own."""
ARRAYS = tuple(name for name in OURS if name not in (CONFIG, CARD))
T = TypeVar("T")


@contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a folder, and complete or remove what a killed process left in it.

    Raises:
        ArtifactError: if another process holds it for too long.
    """
    target = Path(os.path.realpath(folder))
    release = _held(target)
    try:
        with suppress(OSError):  # a folder that can only be read is read with what is staged
            _recover(target)
        yield
    finally:
        release()


@dataclass
class Staging:
    """What a save changes.

    Args:
        target: the model's folder, links followed.
        path: the staging folder.
        removed: names of files of the history that do not stay.
    """

    target: Path
    path: Path
    removed: list[str] = field(default_factory=list)


@contextmanager
def rewritten(folder: str | Path) -> Iterator[Staging]:
    """Lock a folder for a model and stage files in it; see `staged`. The folder is made if missing.

    Raises:
        ArtifactError: if the folder holds something else than a model, or can't be written; nothing is left half-done.
    """
    target = Path(os.path.realpath(folder))
    check_place(folder)
    with _explained(folder, "; give a folder you may write to"):
        target.parent.mkdir(parents=True, exist_ok=True)
    with alone(target):
        check_place(folder)
        is_new = not target.exists()
        with _explained(folder, "; give a folder you may write to"):
            target.mkdir(exist_ok=True)
        try:
            with staged(folder) as staging:
                yield staging
        except BaseException:
            if is_new:
                with suppress(OSError):
                    target.rmdir()
            raise


@contextmanager
def staged(folder: str | Path) -> Iterator[Staging]:
    """A staging folder whose files become the model's when the block ends well; the caller holds the lock.

    The block writes what changes under the names that the files will have, ``config.json`` among them. If it fails,
    all that it wrote is removed.

    Raises:
        ArtifactError: if the folder can't be written.
    """
    target = Path(os.path.realpath(folder))
    staging = Staging(target, target / STAGING)
    with _explained(folder, "; give a folder you may write to"):
        _recover(target)
        staging.path.mkdir(exist_ok=True)
    with _explained(folder):
        try:
            (staging.path / CONFIG).touch()
            yield staging
            note = {"config": _digest(staging.path / CONFIG), "removed": staging.removed}
            write_synced(staging.path / NOTE, json.dumps(note).encode())
            _sync_folder(staging.path)
            (staging.path / CONFIG).replace(target / CONFIG)
        except BaseException:
            with suppress(OSError):
                _recover(target)
            raise
    # The save is done. What fails from here on is done by the next writer, and readers find the files.
    with suppress(OSError):
        _sync_folder(target)
        _recover(target)


def find_file(folder: Path, *parts: str) -> Path:
    """Where a file of a model is: in the staging folder if it was committed and not yet settled, else in its place."""
    staging = folder / STAGING
    path = staging.joinpath(*parts)
    if _is_folder(staging) and not os.path.lexists(staging / CONFIG) and os.path.lexists(path):
        return path
    return folder.joinpath(*parts)


def read_consistently(folder: str | Path, read: Callable[[], T]) -> T:
    """What a function reads from a model's folder, while no save was committed.

    Args:
        folder: of the model.
        read: may be called several times.

    Raises:
        ArtifactError: what `read` raises while the model did not change.
    """
    config = Path(folder) / CONFIG
    for _ in range(MAX_UNLOCKED_READS):
        before = _stamp(config)
        try:
            content = read()
        except (ArtifactError, OSError):
            if _stamp(config) == before:
                raise
            continue
        if _stamp(config) == before:
            return content
    with alone(folder):
        return read()


def link(source: Path, target: Path) -> None:
    """Have a file in a second place too, at no cost where the file system can do that.

    Raises:
        OSError: if it can't be written.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target)


def _held(target: Path) -> Callable[[], object]:
    """Wait until the folder is free, and hold it; gives what lets it go.

    The lock is on the folder above, so that no file is left lying there.
    """
    try:
        import fcntl

        handle = os.open(target.parent, os.O_RDONLY)
    except (ImportError, OSError):
        return _held_by_file(target)
    ends = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return partial(os.close, handle)
            except BlockingIOError:
                if time.monotonic() > ends:
                    raise _busy(target) from None
                time.sleep(LOCK_POLL_SECONDS)
    except OSError:  # some file systems lock files alone
        os.close(handle)
        return _held_by_file(target)
    except BaseException:
        os.close(handle)
        raise


def _held_by_file(target: Path) -> Callable[[], object]:
    from filelock import FileLock, Timeout

    name = hashlib.sha256(os.fsencode(target)).hexdigest()[:32]
    place = default_cache_dir() / "locks" / f"{name}.lock"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place, timeout=PATIENCE)
        lock.acquire()
    except Timeout:
        raise _busy(target) from None
    except OSError as error:
        raise ArtifactError(f"can't lock {target}: {place}: {error.strerror or error}") from error
    return lock.release


def _busy(target: Path) -> ArtifactError:
    return ArtifactError(f"{target} is being changed by another process: try again when it has ended")


@contextmanager
def _explained(folder: str | Path, todo: str = "") -> Iterator[None]:
    """Turn errors of the operating system into ours."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"can't write {folder}: {error.strerror or error}{todo}") from error


def _recover(target: Path) -> None:
    """Settle a save that was committed, remove one that was not; may be stopped at any point and begun again.

    Raises:
        OSError: if a file can't be renamed or removed.
    """
    staging = target / STAGING
    if not _is_folder(staging):
        return
    is_committed = not os.path.lexists(staging / CONFIG)
    removed = _removed_names(target) if is_committed else None
    if removed is not None:
        _settle(target, removed)
    for name in own_names(staging / HISTORY):
        (staging / HISTORY / name).unlink()
    if _is_folder(staging / HISTORY):
        with suppress(OSError):  # somebody laid a file into it
            (staging / HISTORY).rmdir()
    # The config is the last: without it, what is left in the folder would count as committed.
    for name in (*ARRAYS, CARD, NOTE, CONFIG):
        (staging / name).unlink(missing_ok=True)
    with suppress(OSError):
        staging.rmdir()


def _removed_names(target: Path) -> list[str] | None:
    """What a committed save removes from the history; None if its files do not belong to the config that is there.

    A person may have copied another version of the model into the folder since.
    """
    try:
        note = json.loads((target / STAGING / NOTE).read_bytes())
        if note["config"] != _digest(target / CONFIG):
            return None
        return [name for name in note["removed"] if HISTORY_NAME.fullmatch(name)]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _settle(target: Path, removed: list[str]) -> None:
    """Rename staged files to their places, those of the history first; remove what the model does not have any more."""
    staging, history = target / STAGING, target / HISTORY
    names = own_names(staging / HISTORY)
    if names and not os.path.lexists(history):
        history.mkdir()
    if _is_folder(history):  # else somebody put a link or a file in its place
        for name in sorted(names, key=lambda name: (not name.endswith(".safetensors"), name)):  # configs after arrays
            (staging / HISTORY / name).replace(history / name)
        for name in removed:
            (history / name).unlink(missing_ok=True)
    for name in (*ARRAYS, CARD):
        if os.path.lexists(staging / name):
            (staging / name).replace(target / name)
    with suppress(ArtifactError):
        for name in set(ARRAYS) - set(config_at(target / CONFIG).files):
            (target / name).unlink(missing_ok=True)


def own_names(history: Path) -> list[str]:
    """Names of our own files in a history's folder."""
    if not _is_folder(history):
        return []
    return [path.name for path in history.iterdir() if HISTORY_NAME.fullmatch(path.name) and not _is_folder(path)]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stamp(config: Path) -> tuple[int, int, int, int] | None:
    """What changes with each commit; None if there is no config."""
    try:
        stat = config.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def _sync_folder(folder: Path) -> None:
    """Have renames in a folder on the disk, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
