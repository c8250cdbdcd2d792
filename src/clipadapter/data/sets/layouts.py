"""The two folder layouts that a data set of a TOML file can have: CoOp's split files, and ImageNet's class folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from clipadapter.data.dataset import Sample
from clipadapter.data.sets.base import (
    INSTRUCTIONS_URL,
    BenchmarkSet,
    RequiredPath,
    SamplesAndClasses,
    check_pictures_exist,
)
from clipadapter.data.split_file import read_split
from clipadapter.errors import DataError
from clipadapter.files import IMAGE_SUFFIXES
from clipadapter.formatting import format_list
from clipadapter.imagenet import imagenet_names, imagenet_synsets


class SplitFileSet(BenchmarkSet):
    """A data set whose splits are listed in a split file of CoOp.

    Attributes:
        image_folder: folder under the set's own. The paths of the split file are relative to it.
        sources: where to get the pictures, by folder under the set's own. ``{homepage}`` and ``{instructions}`` are
            replaced by URLs.
        split_file: name of the split file.
        instructions_section: section of CoOp's instructions that links to the split file.
        has_class_folders: whether the image folder has one folder per class, so that it can be read without the split
            file.
    """

    image_folder: ClassVar[str]
    sources: ClassVar[Mapping[str, str]]
    split_file: ClassVar[str]
    instructions_section: ClassVar[str]
    has_class_folders: ClassVar[bool] = False

    def list_required(self) -> tuple[RequiredPath, ...]:
        """See `BenchmarkSet.list_required`."""
        urls = {"homepage": self.homepage, "instructions": INSTRUCTIONS_URL}
        downloadable = self.download is not None
        return (
            *(RequiredPath(Path(path), text.format(**urls), downloadable) for path, text in self.sources.items()),
            RequiredPath(Path(self.split_file), f"linked in {INSTRUCTIONS_URL}#{self.instructions_section}"),
        )

    def read_samples(self, folder: Path) -> SamplesAndClasses:
        """See `BenchmarkSet.read_samples`."""
        samples, class_names = read_split(folder / self.split_file, folder / self.image_folder)
        check_pictures_exist(self.name, samples, folder / self.image_folder)
        return samples, class_names


class ImageNetSet(BenchmarkSet):
    """ImageNet or a shifted test set of it: one folder per class. The class names are CLIP's.

    Attributes:
        split_folders: folder under the set's own, by split.
        class_folders: whether class folders are named by synset, or by the index of the class among ImageNet's outputs.
        source: where to get the pictures. ``{homepage}`` is replaced by the URL.
    """

    split_folders: ClassVar[Mapping[str, str]]
    class_folders: ClassVar[Literal["synset", "index"]] = "synset"
    source: ClassVar[str]
    templates = "imagenet"

    def list_required(self) -> tuple[RequiredPath, ...]:
        """See `BenchmarkSet.list_required`."""
        source = self.source.format(homepage=self.homepage)
        downloadable = self.download is not None
        return tuple(RequiredPath(Path(folder), source, downloadable) for folder in self.split_folders.values())

    def read_samples(self, folder: Path) -> SamplesAndClasses:
        """See `BenchmarkSet.read_samples`."""
        names = dict(zip(imagenet_synsets(), imagenet_names("clip"), strict=True))
        samples: list[Sample] = []
        synsets_by_split: list[list[str]] = []
        for split, split_folder in self.split_folders.items():
            folders = self._find_class_folders(folder / split_folder)
            synsets_by_split.append(sorted(folders))
            for synset in synsets_by_split[-1]:
                samples += [Sample(path, names[synset], split) for path in _list_pictures(folders[synset])]
        first, last = synsets_by_split[0], synsets_by_split[-1]
        if any(synsets != first for synsets in synsets_by_split):
            different = format_list(sorted(set(first) ^ set(last)), limit=3)
            splits = ", ".join(self.split_folders)
            raise DataError(f"{folder}: the splits {splits} have different classes, such as {different}")
        return tuple(samples), tuple(names[synset] for synset in first)

    def _find_class_folders(self, root: Path) -> dict[str, Path]:
        """The folders of the classes by synset."""
        folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        if not folders:
            raise DataError(f"{root} has no class folders: sort its pictures into folders such as n01440764")
        synsets = imagenet_synsets()
        keys = synsets if self.class_folders == "synset" else map(str, range(len(synsets)))
        synset_by_folder = dict(zip(keys, synsets, strict=True))
        for path in folders:
            if path.name not in synset_by_folder:
                raise DataError(f"{root}: no class of ImageNet has a folder '{path.name}'; remove it")
        return {synset_by_folder[path.name]: path for path in folders}


def _list_pictures(folder: Path) -> list[Path]:
    # ImageNet has a million files: suffixes of names are faster to read than those of paths.
    names = sorted(name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)  # noqa: PTH122, PTH208
    if not names:
        raise DataError(f"{folder} has no pictures: was its archive unpacked to the end?")
    return [folder / name for name in names]
