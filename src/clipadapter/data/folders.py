"""Folders of pictures: one folder per class, optionally under train, val and test, or without classes."""

from __future__ import annotations

import errno
import os
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from clipadapter.data.dataset import SPLIT_ALIASES, Listing, Sample, make_dataset
from clipadapter.errors import DataWarning
from clipadapter.utils.files import IMAGE_SUFFIXES, encodable, fold_name, free_name, printable, safe_file_name

_UNSUPPORTED = {".svg": "SVG", ".pdf": "PDF", ".eps": "PostScript"}
LINK_TO_NOTHING = "link to a file that does not exist"
LINK_LOOP = "link that leads to itself or to a folder above it"
LINK_NOTES = {
    LINK_TO_NOTHING: "links to files that do not exist, perhaps because their content was not fetched, are left out",
    LINK_LOOP: "links that lead to themselves or to a folder above them are left out",
}


def read_folder(root: Path, follow_links: bool = True) -> Listing:
    """Read ``ROOT/CLASS/**/*.jpg``, ``ROOT/{train,val,test}/CLASS/**/*.jpg``, or ``ROOT/*.jpg`` without labels."""
    reader = _FolderReader(root, follow_links)
    images, folders = reader.entries(root)
    split_names = find_split_folders([folder.name for folder in folders])
    if split_folders := {folder: split_names[folder.name] for folder in folders if folder.name in split_names}:
        reader.leave(images, "not in a class folder")
        reader.leave(
            [folder for folder in folders if folder not in split_folders], "folder next to train, val and test"
        )
        samples = []
        for split in dict.fromkeys(SPLIT_ALIASES.values()):
            for folder in (folder for folder in split_folders if split_folders[folder] == split):
                samples += reader.classes(*reader.entries(folder), split)
    else:
        samples = reader.classes(images, folders, "all")
    return Listing(make_dataset(printable(root.resolve().name), root, samples), tuple(sorted(reader.left_out)))


def find_split_folders(names: Collection[str]) -> dict[str, str]:
    """Find the folders that are splits, among the different names of all folders of a data set.

    The data set has splits if all its folders, or at least two, have the name of a split: a single class can be called
    "train".

    >>> find_split_folders(["Train", "valid", "extra"]), find_split_folders(["train", "car"])
    ({'Train': 'train', 'valid': 'val'}, {})
    """
    splits = {name: SPLIT_ALIASES[name.lower()] for name in names if name.lower() in SPLIT_ALIASES}
    return splits if len(splits) >= 2 or len(splits) == len(names) else {}


def list_images(root: str | Path, follow_links: bool = True) -> list[Path]:
    """List all pictures under a folder, sorted, without hidden files. A linked folder is read once.

    Args:
        root: folder to read.
        follow_links: also follow links that lead out of the folder. False where others may have made the links.
    """
    reader = _FolderReader(Path(root), follow_links)
    paths = sorted(reader.images(Path(root)))
    for warning in link_warnings(reader.left_out):
        warnings.warn(warning)
    return paths


def link_warnings(left_out: Iterable[tuple[Path, str]]) -> list[DataWarning]:
    """Warnings of links that lead nowhere or form a loop, one per kind, from paths with their reasons."""
    names = defaultdict(list)
    for path, reason in left_out:
        names[reason].append(printable(path))
    return [DataWarning(note, tuple(names[reason])) for reason, note in LINK_NOTES.items() if reason in names]


class _FolderReader:
    """Reads a folder in sorted order, and records the files that it leaves out with the reasons."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root = Path(os.path.realpath(root))
        self.follow_links = follow_links
        self.left_out: list[tuple[Path, str]] = []

    def leave(self, paths: list[Path], reason: str) -> None:
        self.left_out += [(path, reason) for path in paths]

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Pictures and folders directly in a folder."""
        images, folders = [], []
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths, are wanted
        except OSError as error:
            self.leave([folder], f"can't be opened: {error.strerror}")
            return [], []
        for path in (folder / name for name in names):
            if reason := self._find_reason(path):
                self.leave([path], reason)
            elif path.is_dir():
                folders.append(path)
            else:
                images.append(path)
        return images, folders

    def _find_reason(self, path: Path) -> str | None:
        if path.name.startswith("."):
            return "hidden"
        if path.is_symlink() and (reason := self._find_link_reason(path)):
            return reason
        if path.is_dir():
            return None
        if not path.is_file():
            return "not a file"
        suffix = path.suffix.lower()
        if suffix in _UNSUPPORTED:
            return f"unsupported type ({_UNSUPPORTED[suffix]})"
        return None if suffix in IMAGE_SUFFIXES else "not an image file"

    def _find_link_reason(self, path: Path) -> str | None:
        try:
            path.stat()
        except OSError as error:
            reasons = {errno.ELOOP: LINK_LOOP, errno.ENOENT: LINK_TO_NOTHING, errno.ENOTDIR: LINK_TO_NOTHING}
            return reasons.get(error.errno or 0, f"can't be opened: {error.strerror}")
        is_inside = self.follow_links or Path(os.path.realpath(path)).is_relative_to(self.root)
        return None if is_inside else "link that leads out of the folder"

    def images(self, folder: Path, above: tuple[str, ...] = (), read: set[str] | None = None) -> list[Path]:
        """All pictures in a folder and below, of which the real paths of the folders above are known."""
        # Each folder is read once: n links to each other can make 2^n paths.
        real, read = os.path.realpath(folder), set() if read is None else read
        if real in above:
            self.leave([folder], LINK_LOOP)
            return []
        if real in read:
            self.leave([folder], "link to a folder that is read already")
            return []
        read.add(real)
        images, folders = self.entries(folder)
        for inner in folders:
            images += self.images(inner, (*above, real), read)
        return images

    def classes(self, images: list[Path], folders: list[Path], split: str) -> list[Sample]:
        """Samples of the class folders; if none has a picture, the pictures next to them, without labels."""
        images_by_folder = {folder: self.images(folder, (str(self.root),)) for folder in folders}
        self.leave(
            [folder for folder, folder_images in images_by_folder.items() if not folder_images],
            "folder without pictures",
        )
        if not any(images_by_folder.values()):
            return [Sample(path, None, split) for path in images]
        self.leave(images, "not in a class folder")
        return [
            Sample(path, encodable(folder.name), split)
            for folder, folder_images in images_by_folder.items()
            for path in folder_images
        ]


def safe_folder_name(name: str, used: Collection[str] = ()) -> str:
    """Return a folder name for a class: its own name, if every system allows it and data sets read it as a class.

    Slashes, leading dots, names of devices, names of parts such as "test", and long names are changed.
    """
    base = safe_file_name(name)
    base += "_" if base.casefold() in SPLIT_ALIASES else ""
    return free_name(base, "", {fold_name(other) for other in used})
