"""A data set: paths of pictures, their labels and their splits. No picture is opened here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from clipadapter.data.prompts import check_class_names
from clipadapter.errors import DataError
from clipadapter.utils.files import printable
from clipadapter.utils.formatting import describe_classes, format_count, format_list, html_block, html_table
from clipadapter.utils.registry import unknown

SPLIT_ALIASES: Mapping[str, str] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Name of a split by what folders and manifests call it, in lower case."""

_SPLIT_ORDER = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Sample:
    """One picture.

    Args:
        path: of the file.
        label: class name; None if it is unknown.
        split: ``"train"``, ``"val"``, ``"test"``, or ``"all"`` if the data are not split.
        label_set: all class names of a multi-label picture, possibly none; None for single-label data.
    """

    path: Path
    label: str | None
    split: str
    label_set: tuple[str, ...] | None = None


MAX_SHOWN_CLASSES = 10  # classes that a notebook shows
THUMBNAILS_PER_CLASS = 4
THUMBNAIL_SIDE = 72
THUMBNAIL_QUALITY = 75


@dataclass(frozen=True, repr=False)
class Dataset:
    """Pictures with class names and splits. A notebook shows the classes with a few pictures of each.

    >>> samples = [Sample(Path("1.jpg"), "cat", "train"), Sample(Path("2.jpg"), "dog", "test")]
    >>> make_dataset("pets", Path("pets"), samples)
    <Dataset 'pets': 2 pictures of 2 classes (cat, dog); train 1, test 1>

    Args:
        name: for messages.
        root: folder of the pictures.
        samples: the pictures, in the same order in every run.
        class_names: each class once, in the order of a classifier's outputs.
    """

    name: str
    root: Path
    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have pictures, in the order train, val, test, all."""
        present = {sample.split for sample in self.samples}
        return tuple(split for split in _SPLIT_ORDER if split in present)

    @property
    def paths(self) -> list[Path]:
        """Paths of all pictures."""
        return [sample.path for sample in self.samples]

    @property
    def labels(self) -> list[str]:
        """Class names of all pictures.

        Raises:
            DataError: if a picture has no label, or the data are multi-label: see `label_sets`.
        """
        if self.multilabel:
            raise DataError(
                f"'{self.name}' is multi-label (it has a column 'labels'), but this needs one label per picture: give "
                "a table with a column 'label' ('fit', 'predict' and 'eval' take several labels)"
            )
        if unlabelled := [sample.path for sample in self.samples if sample.label is None]:
            count = f"{len(unlabelled)} of {len(self.samples)} pictures of '{self.name}'"
            raise DataError(
                f"{count} have no label: {format_list(unlabelled)}. "
                "Put each class into its own folder, or give a table with a column 'label'."
            )
        return [sample.label for sample in self.samples if sample.label is not None]

    @property
    def multilabel(self) -> bool:
        """Whether a picture can have several labels, or none."""
        return any(sample.label_set is not None for sample in self.samples)

    @property
    def label_sets(self) -> list[tuple[str, ...]]:
        """All class names of each picture: none, one or several.

        Raises:
            DataError: if a picture has no label, and the data are not multi-label.
        """
        if not self.multilabel:
            return [(label,) for label in self.labels]
        return [sample.label_set or () for sample in self.samples]

    def __repr__(self) -> str:
        counts = Counter(sample.split for sample in self.samples)
        splits = ", ".join(f"{name} {counts[name]}" for name in self.splits)
        classes = describe_classes(self.class_names) if self.class_names else "no class"
        labels = ", several labels each" if self.multilabel else ""
        return (
            f"<Dataset '{printable(self.name)}': {format_count(len(self.samples), 'picture')}{labels} of {classes}"
            f"{'' if self.splits in ((), ('all',)) else f'; {splits}'}>"
        )

    def _repr_html_(self) -> str:
        """For notebooks: a table of the classes with thumbnails. Unreadable pictures have none."""
        from clipadapter.data.thumbnails import encode_thumbnails  # late: Pillow is not needed to list pictures

        by_class: dict[str, list[Sample]] = {name: [] for name in self.class_names}
        for sample in self.samples:
            for name in (sample.label,) if sample.label_set is None else sample.label_set:
                by_class.setdefault("without a label" if name is None else name, []).append(sample)
        shown = dict(islice(by_class.items(), MAX_SHOWN_CLASSES))
        paths = [sample.path for samples in shown.values() for sample in samples[:THUMBNAILS_PER_CLASS]]
        thumbnails = iter(encode_thumbnails(paths, THUMBNAIL_SIDE, THUMBNAIL_QUALITY))
        rows: list[list[object]] = []
        for name, samples in shown.items():
            counts = Counter(sample.split for sample in samples)
            pictures = [next(thumbnails) for _ in samples[:THUMBNAILS_PER_CLASS]]
            rows.append([name, *(counts[split] for split in self.splits), pictures])
        more = f"and {len(by_class) - len(shown)} more" if len(by_class) > len(shown) else ""
        return html_block(repr(self)[1:-1], html_table(["class", *self.splits, ""], rows), more)

    def split(self, name: str) -> Dataset:
        """The pictures of one split. All classes are kept, in the same order.

        Raises:
            DataError: if there is no such split.
        """
        samples = tuple(sample for sample in self.samples if sample.split == name)
        if not samples:
            raise DataError(f"'{self.name}' has no split '{name}'; it has: {', '.join(self.splits) or 'none'}")
        return replace(self, samples=samples)

    def rename(self, mapping: Mapping[str, str]) -> Dataset:
        """The same data with other class names, in the same order.

        Classes that are not in the mapping keep their name.

        Args:
            mapping: old class name, such as that of a folder, to the new one.

        Raises:
            UnknownNameError: if a key is not a class.
            DataError: if two classes would get the same name.
        """
        for key in mapping:
            if key not in self.class_names:
                raise unknown("class", key, list(self.class_names))
        names = tuple(mapping.get(name, name) for name in self.class_names)
        check_class_names(names)
        old_names: dict[str, str] = {}
        for old, new in zip(self.class_names, names, strict=True):
            if new in old_names:
                raise DataError(f"the classes '{old_names[new]}' and '{old}' would both be called '{new}'")
            old_names[new] = old
        return replace(self, samples=tuple(_renamed(sample, mapping) for sample in self.samples), class_names=names)


@dataclass(frozen=True)
class Listing:
    """A data set that was read from a folder or manifest, and the files that were left out, each with the reason."""

    dataset: Dataset
    left_out: tuple[tuple[Path, str], ...] = ()


def make_dataset(name: str, root: Path, samples: Iterable[Sample]) -> Dataset:
    """Build a data set whose classes are the sorted labels of its samples."""
    samples = tuple(samples)
    labels = {sample.label for sample in samples if sample.label is not None}
    labels |= {label for sample in samples for label in sample.label_set or ()}
    check_class_names(sorted(labels))
    return Dataset(name, root, samples, tuple(sorted(labels)))


def _renamed(sample: Sample, mapping: Mapping[str, str]) -> Sample:
    label = None if sample.label is None else mapping.get(sample.label, sample.label)
    label_set = None if sample.label_set is None else tuple(mapping.get(name, name) for name in sample.label_set)
    return replace(sample, label=label, label_set=label_set)
