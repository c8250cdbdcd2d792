"""What a project's folder holds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from clipadapter.data.dataset import SPLIT_ALIASES
from clipadapter.data.folders import read_folder
from clipadapter.errors import InputError
from clipadapter.files import IMAGE_SUFFIXES, printable
from clipadapter.studio._pictures import Equal, Picture, pictures


@dataclass(frozen=True)
class Contents:
    """What is in a project; never changed.

    Args:
        classes: pictures by class name, classes sorted by it.
        folders: class folder by class name.
        pool: pictures without a label.
        test: pictures of the part "test" by class name; only classes that there are.
        home: the folder that the class folders lie in, from the project on: "" or "train".
        revision: another one is not the same.
    """

    classes: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    pool: tuple[Picture, ...] = ()
    test: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)
    home: str = ""
    revision: int = field(default=0, compare=False)

    def all(self) -> list[Picture]:
        """Those with a label, then those without."""
        return [*(one for each in self.classes.values() for one in each), *self.pool]

    def shots(self) -> Iterator[tuple[str, Picture]]:
        """Every labelled picture with its class."""
        return ((name, one) for name, each in self.classes.items() for one in each)

    def picture(self, key: str) -> Picture:
        """The picture of this name.

        Raises:
            InputError: if there is none.
        """
        if key not in self._by_key:
            raise InputError(f"the picture {printable(Path(key).name)} is not there any more")
        return self._by_key[key][0]

    def has(self, key: str) -> bool:
        """Whether there is such a picture."""
        return key in self._by_key

    def label(self, key: str) -> str | None:
        """The class of a picture; None if it has no label, or is not there."""
        return self._by_key[key][1] if key in self._by_key else None

    def numbered(self, revision: int) -> Contents:
        """The same with another revision."""
        return replace(self, revision=revision)

    @cached_property
    def _by_key(self) -> dict[str, tuple[Picture, str | None]]:
        found: dict[str, tuple[Picture, str | None]] = {one.key: (one, None) for one in self.pool}
        found.update((one.key, (one, name)) for name, one in self.shots())
        return found


def read_contents(
    root: Path, names: Mapping[str, str], pool: str, outside: Sequence[Picture], equal: Equal
) -> Contents:
    """Read a project, as `load_dataset` does; a class may have no picture yet.

    Args:
        root: the project.
        names: class names by folder, where they differ.
        pool: the folder of unlabelled pictures within.
        outside: unlabelled pictures elsewhere.
        equal: tells which of these have a label by now.
    """
    listing = read_folder(root)
    divided = _divided(root, listing.dataset.splits)
    home = _part(root, "train") if divided else ""
    inside: dict[str, list[Path]] = {folder: [] for folder in _folders(root, home)}
    of_label = {printable(folder): folder for folder in inside}
    test: dict[str, list[Path]] = {}
    for sample in listing.dataset.samples:
        folder = None if sample.label is None else of_label.get(sample.label, sample.label)
        if folder is not None and sample.split in ("train", "all"):
            inside.setdefault(folder, []).append(sample.path)
        elif folder is not None and sample.split == "test":
            test.setdefault(folder, []).append(sample.path)
    called = _called(sorted(inside), names)
    classes = {name: pictures(inside[called[name]], root) for name in sorted(called)}
    labelled = [one for each in classes.values() for one in each]
    waiting = pictures([*([] if divided else _loose(root)), *_files(root / pool)], root)
    return Contents(
        classes=classes,
        folders={name: called[name] for name in classes},
        pool=equal.without((*waiting, *outside), labelled),
        test={name: pictures(test[folder], root) for name, folder in called.items() if folder in test},
        home=home,
    )


def _divided(root: Path, splits: Sequence[str]) -> bool:
    """Whether class folders lie in "train"; also if no picture is left there."""
    if splits:
        return "all" not in splits
    folders = _folders(root, "")
    return bool(folders) and all(folder.lower() in SPLIT_ALIASES for folder in folders)


def _part(root: Path, part: str) -> str:
    """The folder of a part, as it is written there."""
    named = [path.name for path in root.iterdir() if SPLIT_ALIASES.get(path.name.lower()) == part]
    return sorted(named)[0] if named else part


def _called(folders: Sequence[str], names: Mapping[str, str]) -> dict[str, str]:
    """Folder by class name; one name a folder, whatever was written into the table of names."""
    found: dict[str, str] = {}
    for folder in folders:
        name = names.get(folder, printable(folder))
        found[name if name not in found and (name == folder or name not in folders) else folder] = folder
    return found


def _folders(root: Path, home: str) -> list[str]:
    """Folders in one of the project, which are not elsewhere in truth."""
    real = Path(os.path.realpath(root / home))
    if not real.is_relative_to(os.path.realpath(root)):
        return []
    found = _entries(root / home)
    return sorted(path.name for path in found if path.is_dir() and Path(os.path.realpath(path)).parent == real)


def _loose(home: Path) -> list[Path]:
    """Pictures beside the class folders."""
    return [path for path in _files(home) if not path.is_symlink()]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _entries(folder: Path) -> list[Path]:
    """What is not hidden in a folder that may be missing."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"can't read {folder}: {error.strerror or error}") from error
