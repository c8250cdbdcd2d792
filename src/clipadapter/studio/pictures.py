"""Pictures of a project as files, and pictures as bytes that a browser sent."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from clipadapter.data.images import image_bytes, image_format, read_image
from clipadapter.errors import ImageError
from clipadapter.utils.files import IMAGE_SUFFIXES, encodable, safe_file_name, write_atomically

Stamp = tuple[int, int, int, int]
"""Device, inode, size and time of the last change. A move does not change it."""

UPLOAD_NAME = "[0-9a-f]{20}"
"""Pattern of the names that `write_upload` gives."""


@dataclass(frozen=True)
class PictureFile:
    """A file with a picture."""

    # Name in the project: the path relative to it, with slashes, as valid text. The key of a file outside the
    # project begins with "/".
    key: str
    path: Path  # path of the file
    stamp: Stamp  # identifies the content of the file; see `Stamp`

    @property
    def is_external(self) -> bool:
        """Whether the file is in a folder outside the project, where it has to stay."""
        return self.key.startswith("/")


@dataclass(frozen=True)
class Upload:
    """A file that a browser sent. It may be no picture."""

    name: str  # name of the file on the machine of the browser; never used as a path
    data: bytes  # its bytes


def list_picture_files(paths: Iterable[Path], root: Path | None = None) -> tuple[PictureFile, ...]:
    """Return those of the files that exist."""
    files = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue  # removed since the folder was read
        key = path.as_posix() if root is None else path.relative_to(root).as_posix()
        key = key if root is not None else "/" + key.lstrip("/")
        files.append(
            PictureFile(encodable(key), path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        )
    return tuple(files)


def find_rejection_reason(upload: Upload) -> str | None:
    """Return why an upload can't be read as a picture; None if it can."""
    try:
        read_image(Path(upload.name or "picture"), data=upload.data)
    except ImageError as error:
        return error.reason
    return None


def stored_file_name(upload: Upload, used: Collection[str] = ()) -> str:
    r"""Return the file name of an upload in the project: its own name, made safe, with a suffix of pictures.

    Only the part after the last separator counts, since the name comes from a browser. The suffix may be that of
    another format: readers look at the bytes. None of the used names, which `fold_name` gave, is returned.

    >>> stored_file_name(Upload("../IMG 1.PNG", b"\x89PNG..."), used={"img 1.png"})
    'IMG 1-2.PNG'
    >>> stored_file_name(Upload("con", b"\xff\xd8\xff..."))
    'con_.jpeg'
    """
    last_part = re.split(r"[/\\]", upload.name)[-1]
    stem, dot, letters = last_part.rpartition(".")
    suffix = f"{dot}{letters}"
    if suffix.lower() not in IMAGE_SUFFIXES:
        stem, suffix = last_part, f".{image_format(upload.data)}"
    suffix = suffix if suffix.lower() in IMAGE_SUFFIXES else ".jpg"  # for "jpeg2000"
    return free_name(safe_file_name(stem, "picture"), suffix, used)


def free_name(base: str, suffix: str, used: Collection[str]) -> str:
    """Return the name with a number, if it needs one to be none of the used ones, in the form of `fold_name`."""
    name, number = base + suffix, 2
    while fold_name(name) in used:
        name, number = f"{base}-{number}{suffix}", number + 1
    return name


def fold_name(name: str) -> str:
    """Return the same text for names that some file system takes for one: they differ in case or form of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def write_upload(folder: Path, upload: Upload) -> Path:
    """Write an upload into a folder, under the hash of its bytes, and sync it."""
    return write_atomically(folder / blake2b(upload.data, digest_size=10).hexdigest(), upload.data)


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
