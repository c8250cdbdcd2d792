"""The data sets of the papers, and their layouts: CoOp's split files, ImageNet's class folders, FGVC-Aircraft's lists.

Each set is described by a TOML file of this folder. A new data set of a known layout is one such file.

A split file of CoOp is a JSON object with lists ``train``, ``val`` and ``test`` of rows ``[path, label, class name]``,
which keep their order, since the draw of the shots refers to rows by number.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path, PureWindowsPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, ValidationError

from clipadapter.data.dataset import Dataset, Sample
from clipadapter.errors import DataError, brief
from clipadapter.utils.files import IMAGE_SUFFIXES, default_cache_dir, printable
from clipadapter.utils.formatting import format_list
from clipadapter.utils.imagenet import clip_names, wordnet_names
from clipadapter.utils.parsing import parse_toml, read_json, read_text
from clipadapter.utils.registry import unknown

ROOT_VARIABLE = "CLIPADAPTER_DATA"
INSTRUCTIONS_URL = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
"""CoOp's instructions. They link to the split files and define the folder layouts."""
SPLITS = ("train", "val", "test")
_ADVICE = "a split file has lists train, val and test of [path, label, class name]; download it again"

SamplesAndClasses = tuple[tuple[Sample, ...], tuple[str, ...]]  # the samples, and the class names in order


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

    path: Path  # where it must be
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
    def list_sources(self) -> Mapping[str, str]:
        """Where to get the files and folders that the set needs, by their paths in its folder."""

    @abstractmethod
    def read_samples(self, folder: Path) -> SamplesAndClasses:
        """Read samples and class names from the folder of the set. All required paths exist."""

    def required_paths(self, root: str | Path | None = None) -> tuple[RequiredPath, ...]:
        """The files and folders that the set needs, with full paths; for the root see `data_root`."""
        folder, urls = data_root(root) / self.folder, {"homepage": self.homepage, "instructions": INSTRUCTIONS_URL}
        return tuple(
            # torchvision has nothing of what CoOp's instructions link to.
            RequiredPath(folder / path, text.format(**urls), self.download is not None and "{instructions}" not in text)
            for path, text in self.list_sources().items()
        )

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
        if missing := self.missing_paths(root):
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
    if missing := missing_pictures((sample.path for sample in samples), folder):
        reason = f"{len(missing)} of its {len(samples)} pictures are missing: {format_list(missing, limit=3)}"
        raise DataError(f"the data set '{name}' is incomplete: {reason}. Unpack its archive again, into {folder}")


def has_content(path: Path) -> bool:
    """Whether there is a file, or a folder that is not empty."""
    try:
        return path.is_file() or (path.is_dir() and any(path.iterdir()))
    except OSError:  # reading the folder later raises an error with the reason
        return True


class SplitFileSet(BenchmarkSet):
    """A data set whose splits are listed in a split file of CoOp."""

    image_folder: str  # under the set's own. The paths of the split file are relative to it
    sources: dict[str, str]  # where to get the pictures, by folder; ``{homepage}`` and ``{instructions}`` become URLs
    split_file: str
    instructions_section: str  # of CoOp's instructions, which links to the split file
    has_class_folders: bool = False  # the image folder has one folder per class: it can be read without a split file

    def list_sources(self) -> Mapping[str, str]:
        return {**self.sources, self.split_file: f"linked in {{instructions}}#{self.instructions_section}"}

    def read_samples(self, folder: Path) -> SamplesAndClasses:
        samples, class_names = read_split(folder / self.split_file, folder / self.image_folder)
        check_pictures_exist(self.name, samples, folder / self.image_folder)
        return samples, class_names


class ImageNetSet(BenchmarkSet):
    """ImageNet or a shifted test set of it: one folder per class. The class names are CLIP's."""

    split_folders: dict[str, str]  # folder under the set's own, by split
    class_folders: Literal["synset", "index"] = "synset"  # they are named by synset, or by the number of the output
    source: str  # where to get the pictures; ``{homepage}`` becomes the URL
    templates: str = "imagenet"

    def list_sources(self) -> Mapping[str, str]:
        return dict.fromkeys(self.split_folders.values(), self.source)

    def read_samples(self, folder: Path) -> SamplesAndClasses:
        names = clip_names()
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
        synsets = tuple(wordnet_names())
        keys = synsets if self.class_folders == "synset" else map(str, range(len(synsets)))
        synset_by_folder = dict(zip(keys, synsets, strict=True))
        for path in folders:
            if path.name not in synset_by_folder:
                raise DataError(f"{root}: no class of ImageNet has a folder '{path.name}'; remove it")
        return {synset_by_folder[path.name]: path for path in folders}


class AircraftSet(BenchmarkSet):
    """FGVC-Aircraft. The authors' lists define the splits, not a split file of CoOp."""

    def list_sources(self) -> Mapping[str, str]:
        names = ["images", "variants.txt", *(f"images_variant_{split}.txt" for split in SPLITS)]
        return {name: name + " in the folder data of fgvc-aircraft-2013b.tar.gz of {homepage}" for name in names}

    def read_samples(self, folder: Path) -> SamplesAndClasses:
        class_names = tuple(line for _, line in _read_lines(folder / "variants.txt"))
        samples = []
        for split in SPLITS:
            path = folder / f"images_variant_{split}.txt"
            for number, line in _read_lines(path):
                picture, _, variant = line.partition(" ")
                if variant not in class_names or not is_inside(picture):
                    expected = "expected a picture and a variant of variants.txt, such as '1025794 707-320'"
                    raise DataError(f"{path}, line {number}: {expected}, got '{line[:80]}'")
                samples.append(Sample(folder / "images" / f"{picture}.jpg", variant, split))
        check_pictures_exist(self.name, tuple(samples), folder / "images")
        return tuple(samples), class_names


def _list_pictures(folder: Path) -> list[Path]:
    # ImageNet has a million files: suffixes of names are faster to read than those of paths.
    names = sorted(name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)  # noqa: PTH122, PTH208
    if not names:
        raise DataError(f"{folder} has no pictures: was its archive unpacked to the end?")
    return [folder / name for name in names]


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers from 1."""
    return [(number, line.strip()) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]


LAYOUTS: Mapping[str, type[BenchmarkSet]] = {
    "split-file": SplitFileSet,
    "imagenet": ImageNetSet,
    "aircraft": AircraftSet,
}
"""Class by the value of ``layout``. Its attributes are the other fields of the file."""


def list_sets() -> list[str]:
    """The names of the data sets, sorted."""
    return sorted(_sets())


def find_set(name: str) -> BenchmarkSet | None:
    """The data set of this name; None if there is none.

    >>> find_set("dtd").templates
    'dtd'
    >>> find_set("shots/") is None
    True
    """
    return _sets().get(name)


def get_set(name: str) -> BenchmarkSet:
    """The data set of this name.

    Raises:
        UnknownNameError: if there is none.
    """
    if name not in _sets():
        raise unknown("data set", name, list_sets())
    return _sets()[name]


def parse_description(name: str, text: str) -> BenchmarkSet:
    """The data set of this name from its description: TOML with ``layout`` and the fields of the layout's class."""
    where = f"data set '{name}'"
    fields = parse_toml(text, where)
    layout = fields.pop("layout", None)
    if layout not in LAYOUTS:
        raise unknown(f"layout of {where}", str(layout), list(LAYOUTS))
    try:
        return LAYOUTS[layout].model_validate({**fields, "name": name})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg'].lower()}" for one in error.errors())
        raise DataError(f"{where}: {faults}") from error


@cache
def _sets() -> dict[str, BenchmarkSet]:
    found = (file for file in files(__package__).iterdir() if file.name.endswith(".toml"))
    texts = {file.name.removesuffix(".toml"): file.read_text(encoding="utf-8") for file in found}
    return {name: parse_description(name, text) for name, text in texts.items()}


def is_inside(name: str) -> bool:
    r"""Whether a relative path of any operating system stays in its folder.

    >>> [is_inside(name) for name in ("a/1.jpg", "/a/1.jpg", "a/../../1.jpg", "..\\1.jpg", "C:\\1.jpg", "")]
    [True, False, False, False, False, False]
    """
    path = PureWindowsPath(name)  # accepts both kinds of slashes
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in name


def _check_inside(name: str) -> str:
    if not is_inside(name):
        raise ValueError("the path must be inside the folder of the pictures")
    return name


Row = tuple[
    Annotated[str, AfterValidator(_check_inside)],
    Annotated[StrictInt, Field(ge=0)],
    Annotated[str, Field(pattern=r"\S")],
]
"""Path, label and class name of a picture."""


class SplitFile(BaseModel):
    """The content of a split file."""

    model_config = ConfigDict(extra="forbid")

    train: list[Row] = Field(min_length=1)
    val: list[Row] = []
    test: list[Row] = Field(min_length=1)


def read_split(path: Path, image_folder: Path) -> SamplesAndClasses:
    """The samples of a split file, whose pictures need not exist, and the class names in the order of their labels.

    Its paths are relative to ``image_folder``; those that leave it are refused.
    """
    where = printable(path)
    try:
        content = SplitFile.model_validate(read_json(path, "download the file again"))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the content"
        raise DataError(f"{where}: {place}: {fault['msg']}, got {brief(fault['input'])}; {_ADVICE}") from error
    names: dict[int, str] = {}
    samples = []
    for split in SPLITS:
        for number, (name, label, class_name) in enumerate(getattr(content, split)):
            if names.setdefault(label, class_name) != class_name:
                conflict = f"gives label {label} the name '{class_name}', but an earlier row '{names[label]}'"
                raise DataError(f"{where}: row {number} of {split} {conflict}")
            samples.append(Sample(image_folder / name, class_name, split))
    class_names = tuple(names[label] for label in sorted(names))
    if duplicates := sorted({name for name in class_names if class_names.count(name) > 1}):
        raise DataError(f"{where}: two labels have the same class name: {format_list(duplicates)}")
    return tuple(samples), class_names


def missing_pictures(paths: Iterable[Path], root: Path) -> list[Path]:
    """The paths without a file. Each folder is listed once; a link that leads out of the root counts as missing."""
    real_root = Path(os.path.realpath(root))
    names_by_folder: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        if path.parent not in names_by_folder:
            names_by_folder[path.parent] = set(_list_file_names(path.parent, real_root))
        if path.name not in names_by_folder[path.parent]:
            missing.append(path)
    return missing


def _list_file_names(folder: Path, real_root: Path) -> Iterator[str]:
    if not Path(os.path.realpath(folder)).is_relative_to(real_root):
        return
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_within_root = not entry.is_symlink() or Path(os.path.realpath(entry)).is_relative_to(real_root)
                if is_within_root and entry.is_file():
                    yield entry.name
    except OSError:
        return
