"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from clipadapter.errors import InputError


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
