"""The base class of benchmark data sets: its files, how they are read, and what the papers count in it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from clipadapter.data.dataset import Dataset, Sample
from clipadapter.data.split_file import missing_pictures
from clipadapter.errors import DataError
from clipadapter.utils.files import default_cache_dir
from clipadapter.utils.formatting import format_list

ROOT_VARIABLE = "CLIPADAPTER_DATA"
INSTRUCTIONS_URL = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
"""CoOp's instructions. They link to the split files and define the folder layouts."""

SamplesAndClasses = tuple[tuple[Sample, ...], tuple[str, ...]]
"""The samples, and the class names in order."""


def data_root(root: str | Path | None = None) -> Path:
    """The folder of the benchmark data sets; it need not exist.

    Args:
        root: the folder. None: the value of the environment variable CLIPADAPTER_DATA, else ``data`` in the user's
            cache folder.
    """
    chosen = root or os.environ.get(ROOT_VARIABLE)
    return Path(chosen).expanduser() if chosen else default_cache_dir() / "data"


@dataclass(frozen=True)
class RequiredPath:
    """A file or folder that a data set needs."""

    path: Path  # where it must be. `BenchmarkSet.list_required` gives it relative to the set's folder
    source: str  # where to get it, a phrase
    downloadable: bool = False  # whether `prepare` downloads it


class Described(BaseModel):
    """What a TOML file describes: each field has the type that is stated, and no other field is allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Download(Described):
    """How torchvision downloads the pictures."""

    dataset: str  # name of a class of ``torchvision.datasets``
    folder: str  # what to move into the set's folder: the contents of this folder, under torchvision's root
    # Whether torchvision knows the checksum of the archive. If not, an incomplete archive can't be recognised, and an
    # interrupted download starts again from the beginning.
    has_checksum: bool = True
    arguments: dict[str, str] = {}  # further arguments of torchvision's class


class BenchmarkSet(Described, ABC):
    """A data set that papers measure on. A subclass reads one layout of files."""

    name: str
    title: str  # name in the papers
    summary: str  # a sentence
    folder: str  # of the set under the root
    n_classes: int  # in the papers
    counts: dict[str, int]  # pictures by split
    counts_verified: bool = True  # they come from the split file or the authors; other counts are not compared
    templates: str  # name of a set of prompt templates
    paper: str  # URL
    homepage: str  # URL
    licence: str  # of the pictures, a short phrase
    download: Download | None = None  # None if that is impossible

    @abstractmethod
    def list_required(self) -> tuple[RequiredPath, ...]:
        """The files and folders that the set needs, with paths relative to its folder."""

    @abstractmethod
    def read_samples(self, folder: Path) -> SamplesAndClasses:
        """Read samples and class names from the folder of the set. All required paths exist."""

    def required_paths(self, root: str | Path | None = None) -> tuple[RequiredPath, ...]:
        """The files and folders that the set needs, with full paths; for the root see `data_root`."""
        folder = data_root(root) / self.folder
        return tuple(replace(required, path=folder / required.path) for required in self.list_required())

    def missing_paths(self, root: str | Path | None = None) -> tuple[RequiredPath, ...]:
        """The required files that do not exist and folders that are empty. Single pictures are not checked."""
        return tuple(required for required in self.required_paths(root) if not has_content(required.path))

    def describe_paths(self, root: str | Path | None = None) -> str:
        """Where to put what, one line per file or folder."""
        return "\n".join(f"{required.path}: {required.source}" for required in self.required_paths(root))

    def load(self, root: str | Path | None = None) -> Dataset:
        """Read the set. No picture is opened, but each must exist.

        Raises:
            DataError: if a file is missing or damaged.
        """
        missing = self.missing_paths(root)
        if missing:
            reasons = "; ".join(f"there is no {required.path} ({required.source})" for required in missing)
            downloadable = any(required.downloadable for required in missing)
            advice = f". Run 'clipadapter data prepare {self.name}'" if downloadable else ""
            raise DataError(f"the data set '{self.name}' is not ready: {reasons}{advice}")
        folder = data_root(root) / self.folder
        try:
            samples, class_names = self.read_samples(folder)
        except OSError as error:
            raise DataError(f"{error.filename} can't be opened: {error.strerror}") from error
        return Dataset(self.name, folder, samples, class_names)

    def differences(self, dataset: Dataset) -> list[str]:
        """How a loaded set differs from the one of the papers, as sentences; empty if it does not."""
        sentences = []
        if len(dataset.class_names) != self.n_classes:
            sentences.append(f"{len(dataset.class_names)} classes found, but the papers have {self.n_classes}")
        for split, expected in self.counts.items() if self.counts_verified else ():
            count = sum(sample.split == split for sample in dataset.samples)
            if count != expected:
                sentences.append(f"{count} pictures of {split} found, but the papers have {expected}")
        return sentences


def check_pictures_exist(name: str, samples: tuple[Sample, ...], folder: Path) -> None:
    """Refuse a set of this name with missing pictures."""
    missing = missing_pictures((sample.path for sample in samples), folder)
    if missing:
        reason = f"{len(missing)} of its {len(samples)} pictures are missing: {format_list(missing, limit=3)}"
        raise DataError(f"the data set '{name}' is incomplete: {reason}. Unpack its archive again, into {folder}")


def has_content(path: Path) -> bool:
    """Whether there is a file, or a folder that is not empty."""
    try:
        return path.is_file() or (path.is_dir() and any(path.iterdir()))
    except OSError:  # reading the folder later raises an error with the reason
        return True
