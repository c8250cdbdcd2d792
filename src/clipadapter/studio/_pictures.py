"""Pictures of a project: files that are there, and bytes that a browser sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePath

from clipadapter.data.images import image_bytes, read_image
from clipadapter.errors import ImageError
from clipadapter.files import IMAGE_SUFFIXES, printable, write_atomically

Stamp = tuple[int, int, int, int]
"""Device, number of the file there, size and time of the last change: stays when a file is moved."""

_SUFFIXES = (
    (rb"\xff\xd8\xff", ".jpg"),
    (rb"\x89PNG", ".png"),
    (rb"RIFF....WEBP", ".webp"),
    (rb"GIF8", ".gif"),
    (rb"BM", ".bmp"),
    (rb"II\*\0|II\+\0|MM\0", ".tif"),
    (rb"P[14]\s", ".pbm"),
    (rb"P[25]\s", ".pgm"),
    (rb"P[36]\s", ".ppm"),
    (rb"....ftypavi", ".avif"),
    (rb"\0\0\0\x0cjP|\xff\x4f\xff\x51", ".jp2"),
)


@dataclass(frozen=True)
class Picture:
    """A file.

    Args:
        key: names it in the project: the path from there, with slashes, as text that can be sent; one that begins with
            "/" lies elsewhere.
        path: where it lies.
        stamp: tells it from others, and from itself before a change.
    """

    key: str
    path: Path
    stamp: Stamp

    @property
    def outside(self) -> bool:
        """Whether it lies in a folder that is not the project's, and is to stay there."""
        return self.key.startswith("/")


@dataclass(frozen=True)
class Upload:
    """What somebody wants to have taken for a picture.

    Args:
        name: what they call it; shown, and never used for a path.
        data: its bytes.
    """

    name: str
    data: bytes


def pictures(paths: Iterable[Path], root: Path | None = None) -> tuple[Picture, ...]:
    """Files that are there.

    Args:
        paths: of the files.
        root: the project that they lie in; None if they lie elsewhere.
    """
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue  # gone since the folder was read
        key = path.as_posix() if root is None else path.relative_to(root).as_posix()
        key = key if root is not None else "/" + key.lstrip("/")
        found.append(Picture(printable(key), path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)))
    return tuple(found)


def why_not(upload: Upload) -> str | None:
    """Why something can't be taken for a picture; None if it can."""
    try:
        read_image(Path(upload.name or "picture"), data=upload.data)
    except ImageError as error:
        return error.reason
    return None


def stored_name(upload: Upload) -> str:
    r"""The name of the file that a picture becomes: its hash, and the suffix that its bytes ask for.

    >>> stored_name(Upload("../x.exe", b"\x89PNG..."))
    '52f8e43555fceacc2b17.png'
    """
    start = upload.data[:64]
    suffix = next((end for magic, end in _SUFFIXES if re.match(magic, start, re.DOTALL)), "")
    given = PurePath(upload.name).suffix.lower()
    suffix = suffix or (given if given in IMAGE_SUFFIXES else ".jpg")  # files are read by their bytes
    return blake2b(upload.data, digest_size=10).hexdigest() + suffix


class Equal:
    """Finds files of equal bytes; reads only those of equal size, and each of them once."""

    def __init__(self) -> None:
        self._digests: dict[Stamp, bytes] = {}

    def among(self, data: bytes, others: Sequence[Picture]) -> list[Picture]:
        """Those of the others that are equal to these bytes."""
        same = [other for other in others if other.stamp[2] == len(data)]
        if not same:
            return []
        wanted = blake2b(data, digest_size=32).digest()
        return [other for other in same if self.digest(other) == wanted]

    def without(self, those: Sequence[Picture], others: Sequence[Picture]) -> tuple[Picture, ...]:
        """Those that are equal to none of the others."""
        sizes = {other.stamp[2] for other in others}
        close = {one.stamp[2] for one in those} & sizes
        known = {self.digest(other) for other in others if other.stamp[2] in close}
        return tuple(one for one in those if one.stamp[2] not in close or self.digest(one) not in known)

    def digest(self, picture: Picture) -> bytes:
        """Of a file's bytes; empty if it can't be read."""
        if picture.stamp not in self._digests:
            try:
                self._digests[picture.stamp] = blake2b(image_bytes(picture.path), digest_size=32).digest()
            except ImageError:
                return b""
        return self._digests[picture.stamp]


def write_picture(folder: Path, upload: Upload) -> Path:
    """Put a picture's bytes into a folder, whole and on the disk.

    Raises:
        InputError: if it can't be written.
    """
    return write_atomically(folder / stored_name(upload), upload.data)
