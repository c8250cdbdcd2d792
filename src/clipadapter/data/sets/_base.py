"""What a benchmark data set is: where its files lie, how they are read, and what it is known to hold."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from clipadapter.cache import default_cache_dir
from clipadapter.data.dataset import Dataset, Sample, format_list
from clipadapter.data.split_file import missing_pictures, read_split
from clipadapter.errors import DataError

ROOT_VARIABLE = "CLIPADAPTER_DATA"
INSTRUCTIONS = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"

Content = tuple[tuple[Sample, ...], tuple[str, ...]]
"""Samples, and the class names in order."""


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds the data sets; it need not exist yet.

    Args:
        root: the folder; by default what the environment variable CLIPADAPTER_DATA names, else ``data`` in the
            user's cache folder.
    """
    said = root or os.environ.get(ROOT_VARIABLE)
    return Path(said).expanduser() if said else default_cache_dir() / "data"


@dataclass(frozen=True)
class Need:
    """A file or folder that a data set consists of.

    Args:
        path: where it belongs; a set says it relative to its own folder.
        how: where it is to be had.
        fetched: whether `prepare` downloads it.
    """

    path: Path
    how: str
    fetched: bool = False


@dataclass(frozen=True)
class Download:
    """How torchvision fetches the pictures.

    Args:
        dataset: name of a class of ``torchvision.datasets``.
        kept: the folder, under the one that torchvision was given, whose contents go into the set's own.
        checksum: whether torchvision knows the archive's checksum; else a whole archive can't be told from half a one.
    """

    dataset: str
    kept: str
    checksum: bool = True


class BenchmarkSet(ABC):
    """A data set that papers measure on. A subclass is its description and the way its files are read.

    Attributes:
        name: set by `register_set`.
        title: name in the papers.
        folder: its folder under the root.
        n_classes: how many classes the papers have.
        counts: pictures by part.
        counted: whether `counts` come from the split file or the authors; else they are hearsay and never compared.
        templates: name of a set of prompt templates.
        paper: address.
        homepage: address.
        licence: of the pictures, a short phrase.
        download: how the pictures are fetched, None if they can't be.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    folder: ClassVar[str]
    n_classes: ClassVar[int]
    counts: ClassVar[Mapping[str, int]]
    counted: ClassVar[bool] = True
    templates: ClassVar[str]
    paper: ClassVar[str]
    homepage: ClassVar[str]
    licence: ClassVar[str]
    download: ClassVar[Download | None] = None

    @abstractmethod
    def _needs(self) -> tuple[Need, ...]:
        """What must be there, with paths relative to the set's folder."""

    @abstractmethod
    def _read(self, folder: Path) -> Content:
        """Samples and class names; all that is needed is there."""

    def needs(self, root: str | Path | None = None) -> tuple[Need, ...]:
        """All that the set consists of, with full paths.

        Args:
            root: as for `data_root`.
        """
        folder = data_root(root) / self.folder
        return tuple(Need(folder / need.path, need.how, need.fetched) for need in self._needs())

    def missing(self, root: str | Path | None = None) -> tuple[Need, ...]:
        """What is not there, or is an empty folder; no picture is looked for.

        Args:
            root: as for `data_root`.
        """
        return tuple(need for need in self.needs(root) if not is_filled(need.path))

    def where(self, root: str | Path | None = None) -> str:
        """What to put where, a line for each file or folder.

        Args:
            root: as for `data_root`.
        """
        return "\n".join(f"{need.path}: {need.how}" for need in self.needs(root))

    def load(self, root: str | Path | None = None) -> Dataset:
        """Read the set; no picture is opened, but each must be there.

        Args:
            root: as for `data_root`.

        Raises:
            DataError: if something is missing or damaged.
        """
        gone = self.missing(root)
        if gone:
            lacks = "; ".join(f"there is no {need.path} ({need.how})" for need in gone)
            run = f". Run 'clipadapter data prepare {self.name}'" if any(need.fetched for need in gone) else ""
            raise DataError(f"the data set '{self.name}' is not ready: {lacks}{run}")
        folder = data_root(root) / self.folder
        try:
            samples, class_names = self._read(folder)
        except OSError as error:
            raise DataError(f"{error.filename} can't be opened: {error.strerror}") from error
        return Dataset(self.name, folder, samples, class_names)

    def differences(self, dataset: Dataset) -> list[str]:
        """How a loaded set differs from the one of the papers, as sentences; empty if it does not.

        Args:
            dataset: what `load` gave.
        """
        found = []
        if len(dataset.class_names) != self.n_classes:
            found.append(f"{len(dataset.class_names)} classes are there, the papers have {self.n_classes}")
        there = {part: sum(sample.split == part for sample in dataset.samples) for part in self.counts}
        for part, count in self.counts.items():
            if self.counted and there[part] != count:
                found.append(f"{there[part]} pictures of {part} are there, the papers have {count}")
        return found


class SplitFileSet(BenchmarkSet):
    """A set whose parts are listed in a split file of CoOp.

    Attributes:
        pictures: folder of the pictures under the set's own, in which the paths of the split file start.
        source: where the pictures are to be had.
        split_file: its name.
        section: where CoOp's instructions link to it.
    """

    pictures: ClassVar[str]
    source: ClassVar[str]
    split_file: ClassVar[str]
    section: ClassVar[str]

    def _needs(self) -> tuple[Need, ...]:
        return (
            Need(Path(self.pictures), self.source, fetched=self.download is not None),
            Need(Path(self.split_file), f"linked in {INSTRUCTIONS}#{self.section}"),
        )

    def _read(self, folder: Path) -> Content:
        samples, names = read_split(folder / self.split_file, folder / self.pictures)
        check_pictures(self.name, samples, folder / self.pictures)
        return samples, names


def check_pictures(name: str, samples: tuple[Sample, ...], root: Path) -> None:
    """Refuse a set of which pictures are missing.

    Args:
        name: of the set.
        samples: its pictures.
        root: the folder they lie in.

    Raises:
        DataError: if so.
    """
    gone = missing_pictures((sample.path for sample in samples), root)
    if gone:
        lacks = f"{len(gone)} of its {len(samples)} pictures are not there: {format_list(gone, limit=3)}"
        raise DataError(f"the data set '{name}' is not whole: {lacks}. Unpack its archive again, into {root}")


def is_filled(path: Path) -> bool:
    """Whether there is a file, or a folder that is not empty as far as can be seen."""
    try:
        return path.is_file() or (path.is_dir() and any(path.iterdir()))
    except OSError:  # reading it will say why
        return True


def split_counts(train: int, val: int, test: int) -> Mapping[str, int]:
    """Pictures by part."""
    return MappingProxyType({"train": train, "val": val, "test": test})
