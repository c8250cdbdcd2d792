"""Mistakes in the layout of a folder: its folders are taken for classes, but the classes are one level deeper.

Nested folders are legitimate: ``cat/session1`` and ``dog/session1`` belong to the classes cat and dog. ``shots/cat``
and ``test/cat`` look the same, so names decide: of the folders, and those that several of them have in common.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations, count
from pathlib import Path

from clipadapter.data.dataset import SPLIT_ALIASES, Dataset, Sample
from clipadapter.data.folders import find_split_folders
from clipadapter.utils.files import printable
from clipadapter.utils.formatting import format_list

LEARNED_NAMES = ("shots", "train", "training", "support")
"""Names of folders with the pictures to learn from, the likeliest first."""
PART_NAMES = frozenset({"shots", "testing", "eval", "holdout", *SPLIT_ALIASES}) - {"train"}
"""Names of folders above classes that are hardly the name of a class. Among vehicles a class can be called "train"."""
CONTAINER_NAMES = PART_NAMES.union(LEARNED_NAMES, ("images", "imgs", "pictures", "data", "dataset", "query"))
"""Names of folders above classes that may also be names of classes."""
MIN_CLASSES = 2
MAX_COMPARED_FOLDERS = 100  # folders that are compared in pairs. A mistake shows in a few


@dataclass(frozen=True)
class LayoutFault:
    """Folders that are taken for classes, but are none, as it seems."""

    text: str  # the folders, and what they hold
    folders: tuple[Path, ...]  # those that may be meant, the likeliest first; empty if pictures must be moved
    is_certain: bool = True  # False if the folders may be classes all the same


def find_layout_fault(source: Path, dataset: Dataset) -> LayoutFault | None:
    """Folders that are taken for classes, but hold the folders of classes; None in tables. Each split is searched."""
    if not dataset.class_names or not source.is_dir():
        return None
    labelled = [sample for sample in dataset.samples if sample.label is not None]
    if dataset.splits == ("all",):
        return _find_fault(source, labelled)
    by_split: dict[str, list[Sample]] = defaultdict(list)
    for sample in labelled:
        by_split[sample.path.parts[len(source.parts)]].append(sample)
    for name, samples in by_split.items():
        root = source / name
        if inner := find_split_folders({sample.path.parts[len(root.parts)] for sample in samples}):
            text = f"'{printable(root)}' is a split, but holds the splits {format_list(sorted(inner), 3)}"
            return LayoutFault(text, (root,))
        if fault := _find_fault(root, samples, is_split=True):
            return fault
    return None


def _find_fault(root: Path, samples: Sequence[Sample], is_split: bool = False) -> LayoutFault | None:
    """The fault of one folder of classes, which may be a split."""
    folders = _list_folders(root, samples)
    nested = sorted((folder for folder in folders if len(folder.inner) >= MIN_CLASSES), key=lambda each: each.order)
    names = {folder.name for folder in folders}
    for folder in nested:
        repeated = folder.inner & (names - {folder.name})
        if len(repeated) >= MIN_CLASSES:
            is_in_train = is_split or SPLIT_ALIASES.get(root.absolute().name.lower()) == "train"
            name = folder.name if is_in_train else f"{root.absolute().name}-{folder.name}"
            above = Path(os.path.normpath(root / os.pardir))
            candidates = chain([name], (f"{name}-{number}" for number in count(2)))
            beside = str(next(above / free for free in candidates if not os.path.lexists(above / free)))
            return LayoutFault(
                f"'{printable(folder.path)}' is taken for a class, but holds folders with the names of the classes "
                f"beside it ({format_list(sorted(repeated), 3)}). Move it, and repeat the command: "
                f"{shlex.join(['mv', str(folder.path), beside])}",
                (),
            )
    if parts := nested if len(folders) == 1 else _find_parts(nested):
        return _describe(parts, is_certain=True)
    pairs = (pair for pair in combinations(nested[:MAX_COMPARED_FOLDERS], 2) if pair[0].shares_classes(pair[1]))
    return next((_describe(pair, is_certain=False) for pair in pairs), None)


def find_similar_names(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Find names that differ by case, spaces, underscores, hyphens or the s of a plural only.

    >>> find_similar_names(["glass", "Glass", "t-shirt", "T shirts", "cup"])
    [('glass', 'Glass'), ('t-shirt', 'T shirts')]
    """
    by_spelling: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_spelling[re.sub(r"s$", "", re.sub(r"[\s_-]+", "", name.lower()))].append(name)
    return [tuple(similar) for similar in by_spelling.values() if len(similar) > 1]


@dataclass(frozen=True)
class _Folder:
    """A folder that is taken for a class."""

    name: str  # of the folder directly below the root
    path: Path  # the folder; of a chain of folders with one folder each the last
    inner: frozenset[str]  # names of the folders in it, if it has no pictures beside them

    @property
    def names(self) -> set[str]:
        """The names of the chain of folders, in lower case."""
        return {self.name.lower(), self.path.name.lower()}

    @property
    def order(self) -> tuple[int, str]:
        """Sort key: folders with the pictures to learn from come first, those of other splits last."""
        learned = [LEARNED_NAMES.index(name) for name in self.names if name in LEARNED_NAMES]
        return min(learned, default=len(LEARNED_NAMES) + bool(self.names & PART_NAMES)), self.name

    def shares_classes(self, other: _Folder) -> bool:
        """Whether two folders have folders in common that are no days, sessions or other numbered parts of a class."""
        return len([name for name in self.inner & other.inner if not re.search(r"\d", name)]) >= MIN_CLASSES


def _list_folders(root: Path, samples: Sequence[Sample]) -> list[_Folder]:
    chains: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for folder in {os.path.dirname(sample.path) for sample in samples}:  # noqa: PTH120 - for millions of pictures
        top, *inner = Path(folder).parts[len(root.parts) :]
        chains[top].append(tuple(inner))
    folders = []
    for top, below in chains.items():
        chain = tuple(os.path.commonprefix(below))
        inner = [] if chain in below else [each[len(chain)] for each in below]
        folders.append(_Folder(top, root.joinpath(top, *chain), frozenset(inner)))
    return folders


def _find_parts(nested: Sequence[_Folder]) -> list[_Folder]:
    """Folders that must hold classes, by their name or since another one holds the same; the likeliest first."""
    for folder in nested:
        if not folder.names & CONTAINER_NAMES:
            continue
        others = [
            other
            for other in nested
            if other != folder and (other.names & CONTAINER_NAMES or folder.shares_classes(other))
        ]
        if others or (folder.names & PART_NAMES and folder.shares_classes(folder)):
            return [folder, *others]
    return []


def _describe(folders: Sequence[_Folder], is_certain: bool) -> LayoutFault:
    named = " and ".join(f"'{printable(folder.path)}'" for folder in folders[:2])
    verb = "is taken for a class, but holds" if len(folders) == 1 else "are taken for classes, but hold"
    text = f"{named} {verb} only folders ({format_list(sorted(folders[0].inner), 3)})"
    return LayoutFault(text, tuple(folder.path for folder in folders), is_certain)
