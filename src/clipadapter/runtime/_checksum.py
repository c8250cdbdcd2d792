"""The SHA-256 at the end of exported files.

`clipadapter.export` writes it, `Predictor` compares it before a backend opens the file. It tells damage, not malice:
who changes a file on purpose can write another checksum.

The last 64 bytes of an ``.onnx`` file are the checksum of all bytes before them, in hexadecimal digits. To readers of
ONNX they are the value of a metadata entry, ``sha256``. An OpenVINO pair has it in a comment at the end of the
``.xml``, over the ``.bin`` and then the ``.xml`` up to the digits, so that a graph with the weights of another export
is noticed as well.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

from clipadapter.errors import ArtifactError
from clipadapter.files import ONNX_SUFFIX, OPENVINO_SUFFIX, OPENVINO_WEIGHTS_SUFFIX, open_regular

ALGORITHM = "sha256"
DIGITS = 64
BLOCK_BYTES = 1 << 20
# Field 14 of ONNX's ModelProto, `metadata_props`: 74 bytes, of which field 1 is the key and field 2 the value.
ENDINGS = {ONNX_SUFFIX: (b"rJ\n\x06sha256\x12@", b""), OPENVINO_SUFFIX: (b"<!--sha256 ", b"-->")}
"""What stands before and behind the digits, by suffix."""
Stamp = tuple[tuple[int, int, int, int], ...]


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that a backend reads: an ``.xml`` comes after its weights, if it has any."""
    if path.suffix.lower() != OPENVINO_SUFFIX:
        return (path,)
    # Weights lie beside the graph, or beside what a link to it leads to.
    beside = (path.with_suffix(OPENVINO_WEIGHTS_SUFFIX), path.resolve().with_suffix(OPENVINO_WEIGHTS_SUFFIX))
    return (*[place for place in beside if place.exists()][:1], path)


def open_model(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.

    Raises:
        ArtifactError: if it is a device, a pipe or a folder, which may never end, or can't be opened.
    """
    try:
        return open_regular(path)
    except OSError as error:
        raise ArtifactError(f"{path} can't be read ({error.strerror or error}): copy the model to a file") from error


def stamp_of(path: Path) -> Stamp:
    """What changes when one of the files is exchanged or written over.

    Raises:
        ArtifactError: if one is gone.
    """
    try:
        stats = [file.stat() for file in files_of(path)]
    except OSError as error:
        raise ArtifactError(f"{path} can't be read: {error.strerror or error}") from error
    return tuple((each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in stats)


def check_file(path: Path) -> str | None:
    """Compare an exported file with the checksum that it ends with.

    Args:
        path: an ``.onnx`` file, or the ``.xml`` of a pair.

    Returns:
        The SHA-256 as hexadecimal digits; None if the file ends with none.

    Raises:
        ArtifactError: if the file was altered, or can't be read.
    """
    total = hashlib.sha256()
    *weights, graph = files_of(path)
    with open_model(graph) as file:
        size = os.fstat(file.fileno()).st_size
        covered, digits = _ending(file, size, path.suffix.lower())
        if digits is None:
            return None
        for part in weights:
            with open_model(part) as bytes_of_weights:
                add_bytes(total, bytes_of_weights)
        file.seek(0)
        add_bytes(total, file, covered)
    if total.hexdigest() != digits:
        raise ArtifactError(
            f"{_named(path)}: SHA-256 is {total.hexdigest()}, but {digits} was written: copy or export it again"
        )
    return digits


def append_checksum(path: Path) -> str:
    """End a file with its checksum.

    Args:
        path: an ``.onnx`` file, or the ``.xml`` of a pair, without a checksum.

    Returns:
        The SHA-256 as hexadecimal digits.

    Raises:
        OSError: if it can't be written.
    """
    before, behind = ENDINGS[path.suffix.lower()]
    total = hashlib.sha256()
    with path.open("ab") as file:
        file.write(before)
    for part in files_of(path):
        with open_model(part) as file:
            add_bytes(total, file)
    with path.open("ab") as file:
        file.write(total.hexdigest().encode("ascii") + behind)
    return total.hexdigest()


def add_bytes(total: hashlib._Hash, file: BinaryIO, size: int | None = None) -> None:
    """Add the first bytes of a file to a hash, all that it has if no size is given; what it grows by is left out."""
    left = os.fstat(file.fileno()).st_size if size is None else size
    while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
        total.update(block)
        left -= len(block)


def _ending(file: BinaryIO, size: int, suffix: str) -> tuple[int, str | None]:
    """How many bytes the checksum covers, and its digits; None if there are none."""
    before, behind = ENDINGS[suffix]
    start = size - len(before) - DIGITS - len(behind)
    if start < 0:
        return size, None
    file.seek(start)
    found = re.fullmatch(re.escape(before) + rb"([0-9a-f]{64})" + re.escape(behind), file.read(size - start))
    return start + len(before), None if found is None else found[1].decode("ascii")


def _named(path: Path) -> str:
    if path.suffix.lower() == OPENVINO_SUFFIX:
        return f"{path} and its .bin are not of one export, or one of them was altered"
    return f"{path} was altered after it was exported"
