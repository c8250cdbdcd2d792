"""What a data set is: pictures on disk, their class names and their parts; and how its files are opened."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TextIO

from clipadapter.errors import DataError
from clipadapter.registry import unknown

SPLITS: Mapping[str, str] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""How parts are written, in lower case, and what they are called here."""

_ORDER = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Sample:
    """One picture.

    Args:
        path: where it lies.
        label: its class name, or None if it is not known.
        split: ``"train"``, ``"val"``, ``"test"``, or ``"all"`` where the data are not divided.
        labels: all its class names, none or several, where pictures have more than one; else None.
    """

    path: Path
    label: str | None
    split: str
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Dataset:
    """Pictures with class names and parts.

    Args:
        name: what messages call it.
        root: folder that the pictures belong to.
        samples: the pictures, in an order that does not change between runs.
        class_names: every class once; their order is the order of a classifier's outputs.
    """

    name: str
    root: Path
    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The parts that hold pictures, in the order train, val, test."""
        there = {sample.split for sample in self.samples}
        return tuple(split for split in _ORDER if split in there)

    @property
    def paths(self) -> list[Path]:
        """Paths of all pictures."""
        return [sample.path for sample in self.samples]

    @property
    def labels(self) -> list[str]:
        """Class names of all pictures.

        Raises:
            DataError: if a picture has none, or may have several: see `label_sets`.
        """
        if self.multilabel:
            raise DataError(
                f"pictures of '{self.name}' have several labels each (a column 'labels'), but here one a picture is "
                "needed: give a manifest with a column 'label' ('fit', 'predict' and 'eval' take several)"
            )
        without = [sample.path for sample in self.samples if sample.label is None]
        if without:
            count = f"{len(without)} of {len(self.samples)} pictures of '{self.name}'"
            raise DataError(
                f"{count} have no label: {some(without)}. "
                "Put each class into its own folder, or give a manifest with a column 'label'."
            )
        return [sample.label for sample in self.samples if sample.label is not None]

    @property
    def multilabel(self) -> bool:
        """Whether pictures may have several labels, or none of the classes."""
        return any(sample.labels is not None for sample in self.samples)

    @property
    def label_sets(self) -> list[tuple[str, ...]]:
        """All class names of each picture, none, one or several.

        Raises:
            DataError: if a picture's labels are not known.
        """
        if not self.multilabel:
            return [(label,) for label in self.labels]
        without = [sample.path for sample in self.samples if sample.labels is None]
        if without:
            raise DataError(f"{len(without)} pictures of '{self.name}' have no column 'labels': {some(without)}")
        return [sample.labels for sample in self.samples if sample.labels is not None]

    def split(self, name: str) -> Dataset:
        """One part; the class names and their order stay those of the whole.

        Raises:
            DataError: if there is no such part.
        """
        samples = tuple(sample for sample in self.samples if sample.split == name)
        if not samples:
            raise DataError(f"'{self.name}' has no split '{name}'; it has: {', '.join(self.splits) or 'none'}")
        return replace(self, samples=samples)

    def rename(self, mapping: Mapping[str, str]) -> Dataset:
        """The same pictures under readable class names; the order of the classes stays.

        A class that is not named keeps its name.

        Args:
            mapping: class name (such as a folder's) to the new one.

        Raises:
            UnknownNameError: if a key is no class.
            DataError: if two classes would get the same name.
        """
        for key in mapping:
            if key not in self.class_names:
                raise unknown("class", key, list(self.class_names))
        names = tuple(mapping.get(name, name) for name in self.class_names)
        taken: dict[str, str] = {}
        for old, new in zip(self.class_names, names, strict=True):
            if new in taken:
                raise DataError(f"the classes '{taken[new]}' and '{old}' would both be called '{new}'")
            taken[new] = old
        samples = tuple(_renamed(sample, mapping) for sample in self.samples)
        return replace(self, samples=samples, class_names=names)


@dataclass(frozen=True)
class Listing:
    """What reading a folder or manifest gave: the data set, and each thing left out with the reason."""

    dataset: Dataset
    left_out: tuple[tuple[Path, str], ...] = ()


def make_dataset(name: str, root: Path, samples: Iterable[Sample]) -> Dataset:
    """A data set whose classes are the sorted labels of its samples."""
    kept = tuple(samples)
    labels = {sample.label for sample in kept if sample.label is not None}
    labels |= {label for sample in kept for label in sample.labels or ()}
    return Dataset(name, root, kept, tuple(sorted(labels)))


def _renamed(sample: Sample, mapping: Mapping[str, str]) -> Sample:
    label = None if sample.label is None else mapping.get(sample.label, sample.label)
    labels = None if sample.labels is None else tuple(mapping.get(name, name) for name in sample.labels)
    return replace(sample, label=label, labels=labels)


def shown(path: str | Path) -> str:
    r"""A path as text that can be printed and written anywhere, even if its bytes are no valid UTF-8.

    >>> shown("caf\udce9.jpg")
    'caf\\udce9.jpg'
    """
    return os.fspath(path).encode(errors="backslashreplace").decode()


def some(items: Iterable[object], limit: int = 5) -> str:
    """The first few of many things, for a message.

    >>> some("abcdefg", limit=2)
    'a, b and 5 more'
    """
    texts = [shown(str(item)) for item in items]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file to read bytes, unless it is a pipe, a device or the like, which could wait or go on forever.

    Raises:
        OSError: if there is none, it can't be opened, or it is not a regular file.
        ValueError: if the path has a null character.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a device can already act on it
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # A file that is exchanged for a pipe meanwhile must not block, and is looked at again.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def open_text(path: str | Path, newline: str | None = None) -> TextIO:
    """As `open_regular`, to read text in UTF-8, with or without a byte order mark as spreadsheets write it.

    Raises:
        OSError: if there is none, it can't be opened, or it is not a regular file.
    """
    return io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline=newline)
