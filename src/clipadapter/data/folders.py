"""Folders of pictures: one folder a class, optionally under train, val and test, or no classes at all."""

from __future__ import annotations

import os
from pathlib import Path

from clipadapter.data.dataset import SPLIT_ALIASES, Listing, Sample, make_dataset
from clipadapter.files import IMAGE_SUFFIXES, printable

_UNSUPPORTED = {".svg": "SVG", ".heic": "HEIC", ".heif": "HEIC", ".pdf": "PDF", ".eps": "PostScript"}


def read_folder(root: Path) -> Listing:
    """The pictures of a folder.

    ``ROOT/CLASS/**/*.jpg``, ``ROOT/train/CLASS/**/*.jpg`` (also val, test), or ``ROOT/*.jpg`` without labels.
    Files in nested folders belong to the first-level class. A folder is divided into parts if all folders in
    it have names of parts, or at least two of them: one class may well be called "train".
    """
    walk = _Walk(root)
    images, folders = walk.entries(root)
    parts = {folder: SPLIT_ALIASES[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_ALIASES}
    if len(parts) >= 2 or (parts and len(parts) == len(folders)):
        walk.leave(images, "not in a class folder")
        walk.leave([folder for folder in folders if folder not in parts], "folder beside train, val and test")
        samples = []
        for split in dict.fromkeys(SPLIT_ALIASES.values()):
            for folder in (folder for folder in parts if parts[folder] == split):
                samples += walk.classes(*walk.entries(folder), split)
    else:
        samples = walk.classes(images, folders, "all")
    return Listing(make_dataset(printable(root.resolve().name), root, samples), tuple(sorted(walk.left_out)))


def list_images(root: str | Path) -> list[Path]:
    """All pictures under a folder, whatever its layout, sorted; no hidden files, no links that lead out."""
    return sorted(_Walk(Path(root)).images(Path(root), frozenset()))


class _Walk:
    """Walks a folder in sorted order and notes what it leaves out, and why."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
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
            reason = self._why_not(path)
            if reason:
                self.leave([path], reason)
            elif path.is_dir():
                folders.append(path)
            else:
                images.append(path)
        return images, folders

    def _why_not(self, path: Path) -> str | None:
        if path.name.startswith("."):
            return "hidden"
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(self.root):
            return "link that leads out of the folder"
        if path.is_dir():
            return None
        if not path.is_file():
            return "not a file"
        suffix = path.suffix.lower()
        if suffix in _UNSUPPORTED:
            return f"unsupported type ({_UNSUPPORTED[suffix]})"
        return None if suffix in IMAGE_SUFFIXES else "not an image file"

    def images(self, folder: Path, above: frozenset[str]) -> list[Path]:
        """All pictures in a folder and below; `above` are the real paths on the way: a link must not loop."""
        real = os.path.realpath(folder)
        if real in above:
            self.leave([folder], "link to a folder above it")
            return []
        images, folders = self.entries(folder)
        for inner in folders:
            images += self.images(inner, above | {real})
        return images

    def classes(self, images: list[Path], folders: list[Path], split: str) -> list[Sample]:
        """Samples of the class folders; if none holds a picture, the pictures beside them, without labels."""
        found = {folder: self.images(folder, frozenset({str(self.root)})) for folder in folders}
        self.leave([folder for folder, inside in found.items() if not inside], "folder without pictures")
        if not any(found.values()):
            return [Sample(path, None, split) for path in images]
        self.leave(images, "not in a class folder")
        return [Sample(path, printable(folder.name), split) for folder, inside in found.items() for path in inside]
