"""The contents of a project's folder: classes, their pictures, unlabelled pictures and test pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from clipadapter.data.dataset import SPLIT_ALIASES
from clipadapter.data.folders import read_folder
from clipadapter.errors import InputError
from clipadapter.studio.pictures import DuplicateFinder, PictureFile, list_picture_files
from clipadapter.utils.files import IMAGE_SUFFIXES, encodable, path_without_links, printable


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

    def has(self, key: str) -> bool:
        """Whether there is a picture with this key."""
        return key in self._by_key

    def label(self, key: str) -> str | None:
        """Return the class of a picture; None if it has no label or does not exist."""
        return self._by_key[key][1] if key in self._by_key else None

    def with_revision(self, revision: int) -> Contents:
        """Return the same contents with another revision."""
        return replace(self, revision=revision)

    @cached_property
    def _by_key(self) -> dict[str, tuple[PictureFile, str | None]]:
        by_key: dict[str, tuple[PictureFile, str | None]] = {one.key: (one, None) for one in self.unlabelled}
        by_key.update((picture.key, (picture, name)) for name, picture in self.labelled())
        return by_key


def read_contents(
    root: Path,
    names: Mapping[str, str],
    unlabelled_folder: str,
    external: Sequence[PictureFile],
    duplicates: DuplicateFinder,
) -> Contents:
    """Read a project as `load_dataset` does; a class may have no pictures yet."""
    listing = read_folder(root, follow_links=False)
    is_split = _is_split(root, listing.dataset.splits)
    class_root = _split_folder(root, "train") if is_split else ""
    paths: dict[str, list[Path]] = {folder: [] for folder in _list_folders(root, class_root)}
    folder_of_label = {encodable(folder): folder for folder in paths}
    test_paths: dict[str, list[Path]] = {}
    for sample in listing.dataset.samples:
        folder = None if sample.label is None else folder_of_label.get(sample.label, sample.label)
        if folder is not None and sample.split in ("train", "all"):
            paths.setdefault(folder, []).append(sample.path)
        elif folder is not None and sample.split == "test":
            test_paths.setdefault(folder, []).append(sample.path)
    folders = _name_folders(sorted(paths), names)
    classes = {name: list_picture_files(paths[folders[name]], root) for name in sorted(folders)}
    labelled = [picture for pictures in classes.values() for picture in pictures]
    own_unlabelled = _list_images(path_without_links(root, *unlabelled_folder.split("/")))
    beside_classes = [] if is_split else _list_images(root)
    unlabelled = list_picture_files([*beside_classes, *own_unlabelled], root)
    return Contents(
        classes=classes,
        folders={name: folders[name] for name in classes},
        unlabelled=duplicates.exclude((*unlabelled, *external), labelled),
        test={
            name: list_picture_files(test_paths[folder], root)
            for name, folder in folders.items()
            if folder in test_paths
        },
        class_root=class_root,
    )


def _is_split(root: Path, splits: Sequence[str]) -> bool:
    """Whether class folders are in "train", also if no picture is left there."""
    if splits:
        return "all" not in splits
    folders = _list_folders(root, "")
    return bool(folders) and all(folder.lower() in SPLIT_ALIASES for folder in folders)


def _split_folder(root: Path, split: str) -> str:
    """Return the folder of a part as it is spelled in the project."""
    folders = [path.name for path in root.iterdir() if SPLIT_ALIASES.get(path.name.lower()) == split]
    return sorted(folders)[0] if folders else split


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
