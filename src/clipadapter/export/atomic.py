"""Write exported files in a folder beside their target, and rename them when they are complete."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clipadapter.errors import ArtifactError, ClipAdapterError
from clipadapter.utils.files import remove_abandoned


@contextmanager
def working_folder(target: Path) -> Iterator[Path]:
    """Create a folder beside the target, so on the same file system, and remove it after use.

    Folders of exports to the same target that were killed are removed once they are a day old.
    """
    prefix = f".{target.name[:100]}-export-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent, re.escape(prefix) + "[a-z0-9_]{8}")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix, ignore_cleanup_errors=True) as name:
            yield Path(name)
    except OSError as error:
        if isinstance(error, ClipAdapterError):
            raise
        raise ArtifactError(
            f"can't write {target}: {error.strerror or error}; give a place you may write to, with room for the model"
        ) from error


def move_into_place(written: Sequence[Path], target: Path) -> tuple[Path, ...]:
    """Rename files to the target, the one that is opened last. A failure leaves the older files, or none."""
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
