"""Pictures of a project: as files, as bytes that a browser sent, and by class."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

from clipadapter.data.folders import find_split_folders, read_folder
from clipadapter.data.images import image_bytes, image_format
from clipadapter.errors import ImageError, InputError
from clipadapter.utils.files import (
    IMAGE_SUFFIXES,
    Stamp,
    encodable,
    free_name,
    path_without_links,
    printable,
    safe_file_name,
    stamp_files,
)

STUDIO_FOLDER = ".studio"  # the studio's own folder in a project
UNLABELLED_FOLDER = f"{STUDIO_FOLDER}/unlabelled"


@dataclass(frozen=True)
class PictureFile:
    """A file with a picture."""

    # Name in the project: the path relative to it, with slashes, as valid text. The key of a file outside the
    # project begins with "/".
    key: str
    path: Path  # path of the file
    stamp: Stamp  # identifies the content of the file; see `Stamp`

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.name

    def path_in(self, root: Path) -> str:
        """Its path relative to the project. Unlike the key, it may not be valid text."""
        return self.path.relative_to(root).as_posix()

    @property
    def data(self) -> bytes:
        """Its bytes, read now. Raises ImageError."""
        return image_bytes(self.path)

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
        stamps = stamp_files([path])
        if stamps is None:
            continue  # removed since the folder was read
        key = "/" + path.as_posix().lstrip("/") if root is None else path.relative_to(root).as_posix()
        files.append(PictureFile(encodable(key), path, *stamps))
    return tuple(files)


def stored_file_name(upload: Upload, used: Collection[str] = ()) -> str:
    r"""Return the file name of an upload in the project: its own name, made safe, with a suffix of pictures.

    Only the part after the last separator counts, since the name comes from a browser. The suffix may be that of
    another format: readers look at the bytes. None of the used names, which `fold_name` gave, is returned.
    """
    last_part = re.split(r"[/\\]", upload.name)[-1]
    stem, dot, letters = last_part.rpartition(".")
    suffix = f"{dot}{letters}"
    if suffix.lower() not in IMAGE_SUFFIXES:
        stem, suffix = last_part, f".{image_format(upload.data)}"
    suffix = suffix if suffix.lower() in IMAGE_SUFFIXES else ".jpg"  # for "jpeg2000"
    return free_name(safe_file_name(stem, "picture"), suffix, used)


class DuplicateFinder:
    """Finds files with equal bytes. Reads only files of equal size, each of them once."""

    def __init__(self) -> None:
        self._digests: dict[Stamp, bytes] = {}

    def find(self, data: bytes, pictures: Sequence[PictureFile]) -> list[PictureFile]:
        """Return the pictures whose bytes equal these."""
        same_size = [picture for picture in pictures if picture.stamp[2] == len(data)]
        digest = blake2b(data, digest_size=32).digest() if same_size else b""
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
                self._digests[picture.stamp] = blake2b(picture.data, digest_size=32).digest()
            except ImageError:
                return b""
        return self._digests[picture.stamp]


# ---- The contents of a project's folder ----


@dataclass(frozen=True)
class Contents:
    """What is in a project; immutable."""

    # Pictures by class name, sorted by name
    classes: Mapping[str, tuple[PictureFile, ...]] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)  # class folder by class name
    unlabelled: tuple[PictureFile, ...] = ()  # pictures without a label
    # Pictures of the part "test" by class name; only classes of the project
    test: Mapping[str, tuple[PictureFile, ...]] = field(default_factory=dict)
    class_root: str = ""  # folder of the class folders, relative to the project: "" or "train"
    revision: int = field(default=0, compare=False)  # number of this state; another state has another number

    def pictures(self) -> list[PictureFile]:
        """Return the labelled pictures, then the unlabelled ones."""
        return [*(picture for _, picture in self.labelled()), *self.unlabelled]

    def labelled(self) -> Iterator[tuple[str, PictureFile]]:
        """Iterate over (class name, picture) of the labelled pictures."""
        return ((name, picture) for name, pictures in self.classes.items() for picture in pictures)

    def picture(self, key: str) -> PictureFile:
        """Return the picture with a key."""
        if key not in self._by_key:
            raise InputError(f"the picture {printable(Path(key).name)} does not exist any more")
        return self._by_key[key][0]

    def label(self, key: str) -> str | None:
        """Return the class of a picture; None if it has no label or does not exist."""
        return self._by_key[key][1] if key in self._by_key else None

    @cached_property
    def _by_key(self) -> dict[str, tuple[PictureFile, str | None]]:
        by_key: dict[str, tuple[PictureFile, str | None]] = {one.key: (one, None) for one in self.unlabelled}
        by_key.update((picture.key, (picture, name)) for name, picture in self.labelled())
        return by_key


def read_contents(
    root: Path, names: Mapping[str, str], external: Sequence[PictureFile], duplicates: DuplicateFinder
) -> Contents:
    """Read a project as `load_dataset` does; a class may have no pictures yet."""
    listing = read_folder(root, follow_links=False)
    real = os.path.realpath(root)
    inside = (path for path in _list_visible(root) if Path(os.path.realpath(path)).is_relative_to(real))
    splits = find_split_folders([path.name for path in inside if path.is_dir()])
    # Class folders are in "train", as it is spelled in the project, also if no picture is left there.
    class_root = next((name for name, split in splits.items() if split == "train"), "train") if splits else ""
    paths: dict[str, list[Path]] = {folder: [] for folder in _list_folders(root, class_root)}
    test_paths: dict[str, list[Path]] = {}
    paths_of_split = {"all": paths, "train": paths, "test": test_paths}
    for sample in listing.dataset.samples:
        if sample.label is not None and sample.split in paths_of_split:
            # The label is the name of the folder as valid text.
            folder = sample.path.relative_to(root).parts[0 if sample.split == "all" else 1]
            paths_of_split[sample.split].setdefault(folder, []).append(sample.path)
    folders = _name_folders(sorted(paths), names)
    classes = {name: list_picture_files(paths[folders[name]], root) for name in sorted(folders)}
    labelled = [picture for pictures in classes.values() for picture in pictures]
    own_unlabelled = _list_images(path_without_links(root, *UNLABELLED_FOLDER.split("/")))
    beside_classes = [] if splits else _list_images(root)
    unlabelled = list_picture_files([*beside_classes, *own_unlabelled], root)
    return Contents(
        classes=classes,
        folders={name: folders[name] for name in classes},
        unlabelled=duplicates.exclude((*unlabelled, *external), labelled),
        test={name: list_picture_files(test_paths[one], root) for name, one in folders.items() if one in test_paths},
        class_root=class_root,
    )


def _name_folders(folders: Sequence[str], names: Mapping[str, str]) -> dict[str, str]:
    """Return the folder by class name; no two folders share a name, whatever the table of names has."""
    folder_by_name: dict[str, str] = {}
    for folder in folders:
        name = names.get(folder, encodable(folder))
        is_usable = name not in folder_by_name and (name == folder or name not in folders)
        folder_by_name[name if is_usable else folder] = folder
    return folder_by_name


def _list_folders(root: Path, parent: str) -> list[str]:
    """Return the folders inside a folder of the project, without links that lead elsewhere."""
    resolved = Path(os.path.realpath(root / parent))
    if not resolved.is_relative_to(os.path.realpath(root)):
        return []
    entries = _list_visible(root / parent)
    return sorted(path.name for path in entries if path.is_dir() and Path(os.path.realpath(path)).parent == resolved)


def _list_images(folder: Path) -> list[Path]:
    """Return the pictures directly in a folder; those that are links are left out."""
    paths = [path for path in _list_visible(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def _list_visible(folder: Path) -> list[Path]:
    """Return the entries of a folder that are not hidden; none if it is missing."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"can't read {folder}: {error.strerror or error}") from error
