"""A model's folder, replaced in one step, by one process at a time.

A new folder is filled beside the old one and takes its place whole; so whoever is killed, at any moment, leaves the old
model or the new one. Other files that somebody laid beside a model's own are in both.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from clipadapter.artifact._files import CARD, HISTORY, OURS, check_place
from clipadapter.cache import default_cache_dir
from clipadapter.errors import ArtifactError

PATIENCE = 60.0
"""Seconds that are waited for another process."""
STEP = 0.02
SWAP = 2
"""What ``RENAME_EXCHANGE`` of Linux and ``RENAME_SWAP`` of macOS are."""
HERE = -100
"""``AT_FDCWD``."""


@contextmanager
def rewritten(folder: str | Path) -> Iterator[tuple[Path, Path]]:
    """The folder of a model and an empty one, which takes its place when the block ends well; links are followed.

    Raises:
        ArtifactError: if the folder holds something else than a model, or can't be written; nothing is left half-done.
    """
    target = Path(os.path.realpath(folder))
    check_place(folder)
    with _told(folder, "; give a folder you may write to"):
        target.parent.mkdir(parents=True, exist_ok=True)
    with alone(target):
        check_place(folder)
        with _told(folder, "; give a folder you may write to"):
            fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.fresh-", dir=target.parent))
        with _told(folder):
            try:
                fresh.chmod(0o755)
                yield target, fresh
                left = _take_the_place(fresh, target)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
            if left is not None:
                _give_up(left, target)


@contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Hold a folder: who else wants to change it waits. What a killed process left there is put in order first.

    Raises:
        ArtifactError: if another process holds it for too long.
    """
    target = Path(os.path.realpath(folder))
    release = _held(target)
    try:
        with suppress(OSError):
            _recover(target)
        yield
    finally:
        release()


def rescue(folder: str | Path) -> None:
    """Put a model back that is missing because the process that replaced it was killed between two steps.

    Where folders can be exchanged in one step, as on most disks of Linux and macOS, that can't be.
    """
    target = Path(os.path.realpath(folder))
    if not target.exists() and target.parent.is_dir():
        start = f".{target.name}.old-"
        if any(path.name.startswith(start) for path in target.parent.iterdir()):
            with alone(target):
                pass


def exchanged(one: Path, other: Path) -> bool:
    """Whether two folders could be put in each other's place in one step; if not, they are as they were."""
    a, b = os.fsencode(one.absolute()), os.fsencode(other.absolute())
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        found = libc.renamex_np(a, b, SWAP) if sys.platform == "darwin" else libc.renameat2(HERE, a, HERE, b, SWAP)
    except (AttributeError, OSError, TypeError):  # a system, or a C library, that has no such call
        return False
    return bool(found == 0)


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
                time.sleep(STEP)
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
def _told(folder: str | Path, todo: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"can't write {folder}: {error.strerror or error}{todo}") from error


def _take_the_place(fresh: Path, target: Path) -> Path | None:
    """Put the new folder in the old one's place; gives where the old one is now, if there was one."""
    if not target.exists():
        fresh.rename(target)
        return None
    _bring_others(target, fresh)
    if exchanged(fresh, target):
        return fresh
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    try:
        target.rename(old / "model")
        try:
            fresh.rename(target)
        except OSError:
            (old / "model").rename(target)
            raise
    except OSError:
        with suppress(OSError):
            old.rmdir()  # it may hold what could not be put back
        raise
    return old


def _others(folder: Path) -> list[Path]:
    """What is not a model's own."""
    return [path for path in folder.iterdir() if path.name not in (*OURS, HISTORY)]


def _bring_others(old: Path, fresh: Path) -> None:
    """Have other files in the new folder before it takes the place; a card that was not written anew is a person's."""
    if (old / CARD).is_file() and not (fresh / CARD).exists():
        link(old / CARD, fresh / CARD)
    for path in _others(old):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, fresh / path.name, symlinks=True, copy_function=_linked)
            else:
                _linked(path, fresh / path.name)
        except OSError:  # a file system without such links, another disk ...: it is moved when the place is taken
            shutil.rmtree(fresh / path.name, ignore_errors=True)


def _linked(source: str | Path, target: str | Path) -> None:
    os.link(source, target, follow_symlinks=False)


def _give_up(left: Path, target: Path) -> None:
    """Remove a folder that was replaced, or never came to be, but for what the model's folder lacks."""
    old = left / "model" if _kind(left) == "old" else left
    for path in _others(old) if old.exists() else []:
        there = target / path.name
        if not os.path.lexists(there):
            path.rename(there)
        elif path.is_dir() and not path.is_symlink():
            exchanged(path, there)  # a process may have files open in it
    shutil.rmtree(left, ignore_errors=True)


def _kind(left: Path) -> str:
    return left.name.rpartition(".")[2].partition("-")[0]


def _recover(target: Path) -> None:
    """Finish what a killed process had begun: the model is where it belongs, and nothing else is left."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(fresh|old)-[a-z0-9_]{{8}}")
    left = [path for path in target.parent.iterdir() if pattern.fullmatch(path.name) and path.is_dir()]
    for path in left:
        if not target.exists() and _kind(path) == "old":
            (path / "model").rename(target)
    for path in left:
        if target.exists():
            _give_up(path, target)
        elif _kind(path) == "fresh":
            shutil.rmtree(path, ignore_errors=True)
