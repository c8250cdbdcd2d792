"""The SHA-256 at the end of exported files.

`clipadapter.export` writes it, and `Predictor` checks it before a backend opens the file. It shows damage, not malice:
whoever changes a file on purpose can write another checksum.

The digits are at the end of the file to open, between the two parts of `ExportFormat.checksum_ending`. They cover the
companion files first, then the file itself up to the digits, so that a graph with the weights of another export is
noticed as well.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

from clipadapter.backends.formats import ExportFormat, export_suffixes, find_format
from clipadapter.errors import ArtifactError
from clipadapter.utils.files import open_regular

ALGORITHM = "sha256"
N_DIGITS = 64
BLOCK_BYTES = 1 << 20
Stamp = tuple[tuple[int, int, int, int], ...]


def check_file(path: Path) -> str | None:
    """Compare an exported file with the checksum at its end, which is returned; None if it has none."""
    export_format = _format_of(path)
    total = hashlib.sha256()
    *companions, main = export_format.existing_files(path)
    with open_model(main) as file:
        size = os.fstat(file.fileno()).st_size
        covered_bytes, digits = _read_ending(file, size, export_format)
        if digits is None:
            return None
        for companion in companions:
            with open_model(companion) as companion_file:
                add_bytes(total, companion_file)
        file.seek(0)
        add_bytes(total, file, covered_bytes)
    if total.hexdigest() != digits:
        names = f" and its {' and '.join(export_format.companion_suffixes)}" if export_format.companion_suffixes else ""
        fault = (
            f"{names} are not of one export, or one of them was altered" if names else " was altered after its export"
        )
        raise ArtifactError(
            f"{path}{fault}: SHA-256 is {total.hexdigest()}, but {digits} was written: copy or export it again"
        )
    return digits


def append_checksum(path: Path) -> str:
    """Append its checksum to a file."""
    export_format = _format_of(path)
    before, after = export_format.checksum_ending
    total = hashlib.sha256()
    with path.open("ab") as file:
        file.write(before)
    for part in export_format.existing_files(path):
        with open_model(part) as file:
            add_bytes(total, file)
    with path.open("ab") as file:
        file.write(total.hexdigest().encode("ascii") + after)
    return total.hexdigest()


def stamp_files(path: Path) -> Stamp:
    """A value that changes when one of the files of a model is replaced or overwritten."""
    try:
        stats = [file.stat() for file in _format_of(path).existing_files(path)]
    except OSError as error:
        raise ArtifactError(f"{path} can't be read: {error.strerror or error}") from error
    return tuple((each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in stats)


def open_model(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading; devices and pipes are refused, which may never end."""
    try:
        return open_regular(path)
    except OSError as error:
        raise ArtifactError(f"{path} can't be read ({error.strerror or error}): copy the model to a file") from error


def add_bytes(total: hashlib._Hash, file: BinaryIO, n_bytes: int | None = None) -> None:
    """Add the first bytes of a file to a hash; by default as many as the file has now, even if it grows meanwhile."""
    remaining = os.fstat(file.fileno()).st_size if n_bytes is None else n_bytes
    while remaining > 0 and (block := file.read(min(remaining, BLOCK_BYTES))):
        total.update(block)
        remaining -= len(block)


def _format_of(path: Path) -> ExportFormat:
    export_format = find_format(path)
    if export_format is None:
        raise ArtifactError(f"{path} is not an exported model: those end in {' or '.join(export_suffixes())}")
    return export_format


def _read_ending(file: BinaryIO, size: int, export_format: ExportFormat) -> tuple[int, str | None]:
    """How many bytes the checksum covers, and its digits; None if there is no checksum."""
    before, after = export_format.checksum_ending
    start = size - len(before) - N_DIGITS - len(after)
    if start < 0:
        return size, None
    file.seek(start)
    match = re.fullmatch(re.escape(before) + rb"([0-9a-f]{64})" + re.escape(after), file.read(size - start))
    return start + len(before), None if match is None else match[1].decode("ascii")
