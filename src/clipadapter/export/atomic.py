"""Write exported files in a folder beside their target, and rename them when they are complete."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from clipadapter.errors import ArtifactError, ClipAdapterError

LOCK_FILE = ".clipadapter-export.lock"
"""Its lock is held in the folder that an export writes to, and free where the writer was killed."""


@contextlib.contextmanager
def working_folder(target: Path) -> Iterator[Path]:
    """Create a locked folder beside the target, so on the same file system, and remove it after use.

    The lock is held as long as the export runs: other exports can tell the folder from one whose writer was killed.

    Raises:
        ArtifactError: if it can't be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        with _locked_folder(target) as folder:
            yield folder
    except OSError as error:
        if isinstance(error, ClipAdapterError):
            raise
        raise ArtifactError(
            f"can't write {target}: {error.strerror or error}; give a place you may write to, with room for the model"
        ) from error


def move_into_place(written: Sequence[Path], target: Path) -> tuple[Path, ...]:
    """Rename files to the target, the one that is opened last. A failure leaves the older files, or none.

    Args:
        written: files in the working folder; the one that is opened comes last.
        target: the file to open; the others get its name with their own suffixes.
    """
    older = written[0].with_name("before")
    if len(written) > 1 and target.exists():  # a graph must not meet the weights of another
        target.replace(older)
    try:
        for path in written:
            path.replace(target.with_suffix(path.suffix))
    except BaseException:
        if older.exists() and written[0].exists():  # the older weights are still in place
            older.replace(target)
        raise
    return tuple(target.with_suffix(path.suffix) for path in written)


@contextlib.contextmanager
def _locked_folder(target: Path) -> Iterator[Path]:
    while True:
        prefix = _folder_prefix(target)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix, ignore_cleanup_errors=True) as name:
            lock = FileLock(Path(name) / LOCK_FILE)
            with contextlib.suppress(FileNotFoundError):
                lock.acquire()
            if not (Path(name) / LOCK_FILE).exists():  # another export removed the folder before it was locked
                lock.release()
                continue
            try:
                yield Path(name)
            finally:
                lock.release()
            return


def _remove_abandoned(target: Path) -> None:
    """Remove folders of killed exports to the same target.

    A folder stays if it is locked, has another name, or has files but no lock file of ours. A link is none: to lock it
    would empty the file that it leads to.
    """
    name = re.compile(re.escape(_folder_prefix(target)) + r"[a-z0-9_]{8}")
    for folder in target.parent.iterdir():
        if not name.fullmatch(folder.name) or folder.is_symlink():
            continue
        lock_file = folder / LOCK_FILE
        if lock_file.is_symlink() or not lock_file.is_file():
            with contextlib.suppress(OSError):
                folder.rmdir()  # the writer was killed before it had a lock; a folder with files stays
            continue
        lock = FileLock(lock_file, timeout=0)
        with contextlib.suppress(Timeout, OSError), lock:
            shutil.rmtree(folder, ignore_errors=True)


def _folder_prefix(target: Path) -> str:
    return f".{target.name[:100]}-"
