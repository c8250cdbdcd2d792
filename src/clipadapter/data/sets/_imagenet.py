"""What ImageNet and its shifted test sets share: folders named by synset, and CLIP's class names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from clipadapter.data.dataset import Sample, format_list
from clipadapter.data.sets._base import BenchmarkSet, Content, Need
from clipadapter.errors import DataError
from clipadapter.files import IMAGE_SUFFIXES
from clipadapter.imagenet import imagenet_names, imagenet_synsets


class ImageNetSet(BenchmarkSet):
    """Pictures in one folder a synset.

    Attributes:
        parts: part to its folder under the set's own.
        source: where the pictures are to be had.
    """

    parts: ClassVar[Mapping[str, str]]
    source: ClassVar[str]
    templates = "imagenet"

    def _needs(self) -> tuple[Need, ...]:
        return tuple(Need(Path(folder), self.source) for folder in self.parts.values())

    def _read(self, folder: Path) -> Content:
        names = dict(zip(imagenet_synsets(), imagenet_names("clip"), strict=True))
        samples: list[Sample] = []
        found: list[list[str]] = []
        for part, inner in self.parts.items():
            folders = self._class_folders(folder / inner)
            found.append(sorted(folders))
            for synset in found[-1]:
                samples += [Sample(path, names[synset], part) for path in _pictures(folders[synset])]
        if any(synsets != found[0] for synsets in found):
            some_of = format_list(sorted(set(found[0]) ^ set(found[-1])), limit=3)
            raise DataError(f"{folder}: the parts {', '.join(self.parts)} have different classes, such as {some_of}")
        return tuple(samples), tuple(names[synset] for synset in found[0])

    def _class_folders(self, root: Path) -> dict[str, Path]:
        """Synset to folder."""
        folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        found = {self._synset(path.name): path for path in folders}
        if not found:
            raise DataError(f"{root} has no class folders: sort its pictures into folders such as n01440764")
        wrong = [path.name for synset, path in found.items() if synset is None]
        if wrong:
            raise DataError(f"{root}: no class of ImageNet has a folder '{wrong[0]}'; take it away")
        return {synset: path for synset, path in found.items() if synset is not None}

    def _synset(self, folder: str) -> str | None:
        """The synset that a folder's name stands for."""
        return folder if folder in imagenet_synsets() else None


def _pictures(folder: Path) -> list[Path]:
    names = sorted(name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)  # noqa: PTH122, PTH208 - a million names, not paths
    if not names:
        raise DataError(f"{folder} has no pictures: was its archive unpacked to the end?")
    return [folder / name for name in names]
