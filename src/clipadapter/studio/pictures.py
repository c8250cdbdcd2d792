"""Pictures of a project as files, and pictures as bytes that a browser sent."""

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
"""Device, inode, size and time of the last change. A move does not change it."""

SUFFIX_BY_MAGIC = (
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
class PictureFile:
    """A file with a picture.

    Args:
        key: name in the project: the path relative to it, with slashes, as valid text. The key of a file outside the
            project begins with "/".
        path: path of the file.
        stamp: identifies the content of the file; see `Stamp`.
    """

    key: str
    path: Path
    stamp: Stamp

    @property
    def is_external(self) -> bool:
        """Whether the file is in a folder outside the project, where it has to stay."""
        return self.key.startswith("/")


@dataclass(frozen=True)
class Upload:
    """A file that a browser sent. It may be no picture.

    Args:
        name: name of the file; shown, and never used as a path.
        data: its bytes.
    """

    name: str
    data: bytes


def list_picture_files(paths: Iterable[Path], root: Path | None = None) -> tuple[PictureFile, ...]:
    """Return those of the files that exist.

    Args:
        paths: paths of the files.
        root: the project that they are in; None if they are outside.
    """
    files = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue  # removed since the folder was read
        key = path.as_posix() if root is None else path.relative_to(root).as_posix()
        key = key if root is not None else "/" + key.lstrip("/")
        files.append(
            PictureFile(printable(key), path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        )
    return tuple(files)


def find_rejection_reason(upload: Upload) -> str | None:
    """Return why an upload can't be read as a picture; None if it can."""
    try:
        read_image(Path(upload.name or "picture"), data=upload.data)
    except ImageError as error:
        return error.reason
    return None


def stored_file_name(upload: Upload) -> str:
    r"""Return the file name of an upload in the project: the hash of its bytes, and the suffix of their format.

    >>> stored_file_name(Upload("../x.exe", b"\x89PNG..."))
    '52f8e43555fceacc2b17.png'
    """
    start = upload.data[:64]
    suffix = next((suffix for magic, suffix in SUFFIX_BY_MAGIC if re.match(magic, start, re.DOTALL)), "")
    uploaded_suffix = PurePath(upload.name).suffix.lower()
    suffix = suffix or (uploaded_suffix if uploaded_suffix in IMAGE_SUFFIXES else ".jpg")  # readers look at the bytes
    return blake2b(upload.data, digest_size=10).hexdigest() + suffix


def write_upload(folder: Path, upload: Upload) -> Path:
    """Write an upload into a folder and sync it.

    Raises:
        InputError: if it can't be written.
    """
    return write_atomically(folder / stored_file_name(upload), upload.data)


class DuplicateFinder:
    """Finds files with equal bytes. Reads only files of equal size, each of them once."""

    def __init__(self) -> None:
        self._digests: dict[Stamp, bytes] = {}

    def find(self, data: bytes, pictures: Sequence[PictureFile]) -> list[PictureFile]:
        """Return the pictures whose bytes equal these."""
        same_size = [picture for picture in pictures if picture.stamp[2] == len(data)]
        if not same_size:
            return []
        digest = blake2b(data, digest_size=32).digest()
        return [picture for picture in same_size if self.digest(picture) == digest]

    def exclude(self, pictures: Sequence[PictureFile], others: Sequence[PictureFile]) -> tuple[PictureFile, ...]:
        """Return the pictures that equal none of the others."""
        shared_sizes = {one.stamp[2] for one in pictures} & {other.stamp[2] for other in others}
        digests = {self.digest(other) for other in others if other.stamp[2] in shared_sizes}
        return tuple(one for one in pictures if one.stamp[2] not in shared_sizes or self.digest(one) not in digests)

    def digest(self, picture: PictureFile) -> bytes:
        """Return the digest of a file's bytes; empty if it can't be read."""
        if picture.stamp not in self._digests:
            try:
                self._digests[picture.stamp] = blake2b(image_bytes(picture.path), digest_size=32).digest()
            except ImageError:
                return b""
        return self._digests[picture.stamp]
