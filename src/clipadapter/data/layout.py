"""Mistakes in the layout of a folder: its folders are taken for classes, but the classes are one level deeper.

Nested folders are legitimate: ``cat/session1`` and ``dog/session1`` belong to the classes cat and dog. ``shots/cat``
and ``test/cat`` look the same, so names decide: of the folders, and those that several of them have in common.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from clipadapter.data.dataset import SPLIT_ALIASES, Sample
from clipadapter.files import printable
from clipadapter.formatting import format_list

LEARNED_NAMES = ("shots", "train", "training", "support")
PART_NAMES = frozenset({"shots", "eval", "holdout", *SPLIT_ALIASES}) - {"train"}
"""Names of folders above classes that are hardly the name of a class. Among vehicles a class can be called "train"."""
CONTAINER_NAMES = PART_NAMES.union(LEARNED_NAMES, ("images", "imgs", "pictures", "data", "dataset", "query"))
"""Names of folders above classes that may also be names of classes."""
MIN_CLASSES = 2


@dataclass(frozen=True)
class LayoutFault:
    """Folders that are taken for classes, but are none, as it seems.

    Args:
        text: the folders, and what they hold.
        folders: those that may be meant, the likeliest first; empty if pictures must be moved.
        is_certain: False if the folders may be classes all the same.
    """

    text: str
    folders: tuple[Path, ...]
    is_certain: bool = True


def find_layout_fault(root: Path, samples: Sequence[Sample]) -> LayoutFault | None:
    """Find folders that are taken for classes, but hold the folders of classes.

    Args:
        root: the folder that was read, without splits.
        samples: its pictures. The folder directly below the root is the label.

    Returns:
        The fault; None if there is none.
    """
    top_folders, nested = _read_folders(root, samples)
    for top, inner in nested.items():
        repeated = inner & (top_folders - {top})
        if len(repeated) >= MIN_CLASSES:
            return LayoutFault(
                f"'{printable(root / top)}' is taken for a class, but holds folders with the names of the classes "
                f"beside it ({format_list(sorted(repeated), 3)}): move it elsewhere, or move the others into "
                f"'{printable(root / 'train')}'",
                (),
            )
    if len(top_folders) == 1 and nested:
        return _describe(root, list(nested), nested, True)
    if parts := _find_parts(nested):
        return _describe(root, parts, nested, True)
    for one, other in combinations(sorted(nested), 2):
        if _share_classes(nested[one], nested[other]):
            return _describe(root, [one, other], nested, False)
    return None


def _read_folders(root: Path, samples: Sequence[Sample]) -> tuple[set[str], dict[str, set[str]]]:
    """The folders directly below the root; and of those that hold nothing but folders, the names of these folders."""
    nested: dict[str, set[str]] = {}
    with_pictures = set()
    for sample in samples:
        top, *inner = sample.path.relative_to(root).parts
        nested.setdefault(top, set()).update(inner[:-1][:1])
        if len(inner) == 1:
            with_pictures.add(top)
    only_folders = {
        top: inner for top, inner in nested.items() if top not in with_pictures and len(inner) >= MIN_CLASSES
    }
    return set(nested), only_folders


def _find_parts(nested: Mapping[str, set[str]]) -> list[str]:
    """Folders that must hold classes, by their name or since another one holds the same; the likeliest first."""
    for top in sorted(nested, key=_order):
        if top.lower() not in CONTAINER_NAMES:
            continue
        others = [
            other
            for other in sorted(nested, key=_order)
            if other != top and (other.lower() in CONTAINER_NAMES or _share_classes(nested[top], nested[other]))
        ]
        if others or (top.lower() in PART_NAMES and _share_classes(nested[top], nested[top])):
            return [top, *others]
    return []


def _share_classes(one: set[str], other: set[str]) -> bool:
    """Whether two folders have folders in common that are no days, sessions or other numbered parts of a class."""
    return len([name for name in one & other if not re.search(r"\d", name)]) >= MIN_CLASSES


def _order(name: str) -> tuple[int, str]:
    """Sort key: folders that hold the pictures to learn from come first, those of other splits last."""
    position = LEARNED_NAMES.index(name.lower()) if name.lower() in LEARNED_NAMES else len(LEARNED_NAMES)
    return position + (name.lower() in SPLIT_ALIASES), name


def _describe(root: Path, tops: Sequence[str], nested: Mapping[str, set[str]], is_certain: bool) -> LayoutFault:
    folders = tuple(root / top for top in tops)
    named = " and ".join(f"'{printable(folder)}'" for folder in folders[:2])
    verb = "is taken for a class, but holds" if len(tops) == 1 else "are taken for classes, but hold"
    text = f"{named} {verb} only folders ({format_list(sorted(nested[tops[0]]), 3)})"
    return LayoutFault(text, folders, is_certain)
