"""Transactions on the folder of a model: one process at a time; renaming ``config.json`` is the commit.

A save writes every file that changes into a staging folder inside the folder of the model, then does three steps:

1. Prepare. An empty ``config.json`` is the first file in the staging folder and marks the save as not committed. All
   other files are written and synced, the real ``config.json`` among them.
2. Commit. ``config.json`` is renamed from the staging folder to the folder of the model, which is the new model now.
3. Settle. The other files are renamed to their places. Files that the new model lacks and the staging folder are
   removed.

A process that is killed in step 1 leaves the old model: the next writer removes the staging folder. One that is killed
in step 3 leaves the new model: readers take the files that are still in the staging folder from there (`find_file`),
and the next writer settles the rest.

Only files with names of our own are written, renamed or removed, one by one, and none of them may be a link. Other
files and folders in the folder of the model are neither copied nor moved, so no moment exists in which they could be
lost, and their number costs nothing. This is why the folder is not replaced as a whole, which would be one step on
Linux and macOS only.
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

from clipadapter.errors import ArtifactError
from clipadapter.persistence.format import check_target_folder, read_config_file, write_and_sync
from clipadapter.runtime.model_folder import (
    CARD_FILE,
    CONFIG_FILE,
    HISTORY_FOLDER,
    MODEL_FILES,
    STAGING_FOLDER,
    model_path,
)
from clipadapter.utils.cache import default_cache_dir
from clipadapter.utils.files import folder_without_links, sync_folder

LOCK_TIMEOUT_SECONDS = 60.0
LOCK_POLL_SECONDS = 0.02
MAX_UNLOCKED_READS = 10
"""Reads that a save interrupts before the folder is locked for the next one."""
SAVE_PLAN_FILE = "save.json"
"""File in the staging folder: hash of the config that the staged files belong to, files to remove from the history."""
HISTORY_FILE_PATTERN = re.compile(r"log\.json|\d{4,}\.json|[0-9a-f]{64}\.safetensors")
"""Names of our own files in the folder of the history."""
ARRAY_FILES = tuple(name for name in MODEL_FILES if name not in (CONFIG_FILE, CARD_FILE))
T = TypeVar("T")


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a folder, and complete or roll back the save of a process that was killed."""
    target = Path(os.path.realpath(folder))
    release = _acquire_lock(target)
    try:
        for name in MODEL_FILES:
            model_path(target, name)
        for name in (STAGING_FOLDER, HISTORY_FOLDER):
            folder_without_links(target, name, error=ArtifactError)
        with suppress(OSError):  # in a read-only folder, readers use the staged files
            _recover(target)
        yield
    finally:
        release()


@dataclass
class Staging:
    """A save that is being prepared."""

    target: Path  # folder of the model, with links resolved
    path: Path
    removed: list[str] = field(default_factory=list)  # names of files to remove from the history


@contextmanager
def replace_model(folder: str | Path) -> Iterator[Staging]:
    """Lock the folder of a model and stage files in it (see `stage_files`). The folder is created if missing."""
    target = Path(os.path.realpath(folder))
    check_target_folder(folder)
    with _as_artifact_errors(folder, "; give a folder you may write to"):
        target.parent.mkdir(parents=True, exist_ok=True)
    with lock_folder(target):
        check_target_folder(folder)
        is_new = not target.exists()
        with _as_artifact_errors(folder, "; give a folder you may write to"):
            target.mkdir(exist_ok=True)
        try:
            with stage_files(folder) as staging:
                yield staging
        except BaseException:
            if is_new:
                with suppress(OSError):
                    target.rmdir()
            raise


@contextmanager
def stage_files(folder: str | Path) -> Iterator[Staging]:
    """Open a staging folder whose files become those of the model if the block succeeds; the caller holds the lock.

    The block writes what changes under the names that the files will have, ``config.json`` among them. If it fails,
    all that it wrote is removed.
    """
    target = Path(os.path.realpath(folder))
    staging = Staging(target, target / STAGING_FOLDER)
    with _as_artifact_errors(folder, "; give a folder you may write to"):
        _recover(target)
        staging.path.mkdir(exist_ok=True)
    with _as_artifact_errors(folder):
        try:
            (staging.path / CONFIG_FILE).touch()
            yield staging
            plan = {"config": _file_sha256(staging.path / CONFIG_FILE), "removed": staging.removed}
            write_and_sync(staging.path / SAVE_PLAN_FILE, json.dumps(plan).encode())
            sync_folder(staging.path)
            (staging.path / CONFIG_FILE).replace(target / CONFIG_FILE)
        except BaseException:
            with suppress(OSError):
                _recover(target)
            raise
    # The save is done. What fails from here on is done by the next writer, and readers find the files.
    with suppress(OSError):
        sync_folder(target)
        _recover(target)


def find_file(folder: Path, *parts: str) -> Path:
    """Path of a file of a model: in the staging folder if committed and not yet settled, else in its place."""
    path = model_path(folder, STAGING_FOLDER, *parts)
    if path.exists() and not (folder / STAGING_FOLDER / CONFIG_FILE).exists():
        return path
    return model_path(folder, *parts)


def read_consistently(folder: str | Path, read: Callable[[], T]) -> T:
    """Call a function that reads the folder of a model, again if a save was committed meanwhile."""
    config = Path(folder) / CONFIG_FILE
    for _ in range(MAX_UNLOCKED_READS):
        before = _config_stamp(config)
        try:
            content = read()
        except (ArtifactError, OSError):
            if _config_stamp(config) == before:
                raise
            continue
        if _config_stamp(config) == before:
            return content
    with lock_folder(folder):
        return read()


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link, or a copy where the file system has no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target)


def _acquire_lock(target: Path) -> Callable[[], object]:
    """Wait for the lock of a folder and take it. Returns a function that releases it.

    The lock is on the parent folder, so that no lock file is left behind.
    """
    try:
        import fcntl

        handle = os.open(target.parent, os.O_RDONLY)
    except (ImportError, OSError):
        return _acquire_file_lock(target)
    ends = time.monotonic() + LOCK_TIMEOUT_SECONDS
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return partial(os.close, handle)
            except BlockingIOError:
                if time.monotonic() > ends:
                    raise _busy_error(target) from None
                time.sleep(LOCK_POLL_SECONDS)
    except OSError:  # some file systems lock files alone
        os.close(handle)
        return _acquire_file_lock(target)
    except BaseException:
        os.close(handle)
        raise


def _acquire_file_lock(target: Path) -> Callable[[], object]:
    from filelock import FileLock, Timeout

    name = hashlib.sha256(os.fsencode(target)).hexdigest()[:32]
    lock_path = default_cache_dir() / "locks" / f"{name}.lock"
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_path, timeout=LOCK_TIMEOUT_SECONDS)
        lock.acquire()
    except Timeout:
        raise _busy_error(target) from None
    except OSError as error:
        raise ArtifactError(f"can't lock {target}: {lock_path}: {error.strerror or error}") from error
    return lock.release


def _busy_error(target: Path) -> ArtifactError:
    return ArtifactError(f"{target} is being changed by another process: try again when it has ended")


@contextmanager
def _as_artifact_errors(folder: str | Path, todo: str = "") -> Iterator[None]:
    """Raise `ArtifactError` for errors of the operating system."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"can't write {folder}: {error.strerror or error}{todo}") from error


def _recover(target: Path) -> None:
    """Settle a save that was committed, remove one that was not. It may be interrupted and called again."""
    staging = target / STAGING_FOLDER
    if not staging.is_dir():
        return
    is_committed = not (staging / CONFIG_FILE).exists()
    removed = _read_removed_names(target) if is_committed else None
    if removed is not None:
        _settle(target, removed)
    for name in list_history_files(staging / HISTORY_FOLDER):
        (staging / HISTORY_FOLDER / name).unlink()
    if (staging / HISTORY_FOLDER).is_dir():
        with suppress(OSError):  # a person may have put a file into it
            (staging / HISTORY_FOLDER).rmdir()
    # The config is the last: without it, what is left in the folder would count as committed.
    for name in (*ARRAY_FILES, CARD_FILE, SAVE_PLAN_FILE, CONFIG_FILE):
        (staging / name).unlink(missing_ok=True)
    with suppress(OSError):
        staging.rmdir()


def _read_removed_names(target: Path) -> list[str] | None:
    """Names of files that a committed save removes from the history; None if the save belongs to another config.

    A person may have copied another version of the model into the folder since.
    """
    try:
        plan = json.loads((target / STAGING_FOLDER / SAVE_PLAN_FILE).read_bytes())
        if plan["config"] != _file_sha256(target / CONFIG_FILE):
            return None
        return [name for name in plan["removed"] if HISTORY_FILE_PATTERN.fullmatch(name)]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _settle(target: Path, removed: list[str]) -> None:
    """Rename staged files to their places, those of the history first; remove the files that the new model lacks."""
    staging, history = target / STAGING_FOLDER, target / HISTORY_FOLDER
    names = list_history_files(staging / HISTORY_FOLDER)
    if names and not history.exists():
        history.mkdir()
    if history.is_dir():  # a person may have put a file in its place
        for name in sorted(names, key=lambda name: (not name.endswith(".safetensors"), name)):  # configs after arrays
            (staging / HISTORY_FOLDER / name).replace(history / name)
        for name in removed:
            (history / name).unlink(missing_ok=True)
    for name in (*ARRAY_FILES, CARD_FILE):
        if (staging / name).exists():
            (staging / name).replace(target / name)
    with suppress(ArtifactError):
        for name in set(ARRAY_FILES) - set(read_config_file(target / CONFIG_FILE).files):
            (target / name).unlink(missing_ok=True)


def list_history_files(history: Path) -> list[str]:
    """Names of our own files in the folder of a history."""
    if not history.is_dir():
        return []
    return [path.name for path in history.iterdir() if HISTORY_FILE_PATTERN.fullmatch(path.name) and path.is_file()]


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _config_stamp(config: Path) -> tuple[int, int, int, int] | None:
    """What changes with each commit; None if there is no config."""
    try:
        stat = config.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size
