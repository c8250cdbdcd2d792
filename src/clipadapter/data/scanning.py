"""A report on a data set before it is used: counts, unreadable files, duplicates, imbalance."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from clipadapter.data.dataset import Dataset, Sample
from clipadapter.data.folders import link_warnings
from clipadapter.data.image_notes import ImageNotes, find_image_notes
from clipadapter.data.images import image_bytes, read_image
from clipadapter.data.layout import find_layout_fault
from clipadapter.data.load import read_listing
from clipadapter.errors import ImageError
from clipadapter.utils.files import encodable, printable
from clipadapter.utils.formatting import format_list

MIN_IMBALANCE_RATIO = 5
"""Ratio of the pictures of the largest class to those of the smallest from which a scan warns. It is our choice."""


@dataclass(frozen=True)
class Duplicate:
    """Files with equal bytes in more than one class or split."""

    paths: tuple[str, ...]  # the files, relative to the data set's root
    labels: tuple[str | None, ...]  # class of each, None where unknown
    splits: tuple[str, ...]  # split of each


@dataclass(frozen=True)
class ScanReport:
    """The result of `scan`. All paths are relative to the data set's root.

    Args:
        name: the data set's name.
        splits: the splits that have pictures.
        readable: number of pictures that can be read.
        unlabelled: number of these that have no label.
        classes: number of readable pictures by class name and split.
        unreadable: picture files that can't be read, each with the reason.
        left_out: files and folders that are not pictures, each with the reason.
        duplicates: files with equal bytes in several classes or splits.
        imbalance: smallest and largest number of pictures per class in the first split; None without classes.
        warnings: problems, as sentences.
    """

    name: str
    splits: tuple[str, ...]
    readable: int
    unlabelled: int
    classes: dict[str, dict[str, int]]
    unreadable: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]
    duplicates: tuple[Duplicate, ...]
    imbalance: tuple[int, int] | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary for JSON."""
        return asdict(self)


def scan(source: str | Path) -> ScanReport:
    """Read every picture of a folder or manifest completely, and report on the data set.

    Args:
        source: as for `load_dataset`. No pictures, or only one class, is reported and not an error.

    Raises:
        DataError: if there is no such path, or a manifest is invalid.
    """
    listing = read_listing(source)
    dataset = listing.dataset

    def read_sample(sample: Sample) -> tuple[bytes, str | None, list[str]]:
        try:
            data = image_bytes(sample.path)
            read_image(sample.path, data=data)
        except ImageError as error:
            return b"", error.reason, []
        return blake2b(data, digest_size=16).digest(), None, find_image_notes(data)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(read_sample, dataset.samples))
    notes = ImageNotes()
    for sample, (_, _, image_notes) in zip(dataset.samples, results, strict=True):
        notes.add(_relative(sample.path, dataset.root), image_notes)
    pairs = [(sample, result[:2]) for sample, result in zip(dataset.samples, results, strict=True)]
    readable = [sample for sample, (_, reason) in pairs if reason is None]
    counts = Counter((label, sample.split) for sample in readable for label in (sample.label_set or (sample.label,)))
    classes = {name: {split: counts[name, split] for split in dataset.splits} for name in dataset.class_names}
    unreadable = [(_relative(s.path, dataset.root), reason) for s, (_, reason) in pairs if reason is not None]
    duplicates = _find_duplicates(dataset, ((s, digest) for s, (digest, reason) in pairs if reason is None))
    first = [parts[dataset.splits[0]] for parts in classes.values()]
    layout = []
    if fault := find_layout_fault(Path(source), dataset):
        layout.append(fault.text + (f". Did you mean '{printable(fault.folders[0])}'?" if fault.folders else ""))
    return ScanReport(
        name=dataset.name,
        splits=dataset.splits,
        readable=len(readable),
        unlabelled=sum(sample.label is None and sample.label_set is None for sample in readable),
        classes=classes,
        unreadable=tuple(unreadable),
        left_out=tuple((_relative(path, dataset.root), reason) for path, reason in listing.left_out),
        duplicates=duplicates,
        imbalance=(min(first), max(first)) if first else None,
        warnings=(
            *layout,
            *_warnings(dataset, classes, len(unreadable), duplicates),
            *map(str, (*link_warnings(listing.left_out), *notes.warnings())),
        ),
    )


def _relative(path: Path, root: Path) -> str:
    return encodable(path.relative_to(root).as_posix() if path.is_relative_to(root) else path)


def _find_duplicates(dataset: Dataset, digests: Iterable[tuple[Sample, bytes]]) -> tuple[Duplicate, ...]:
    groups: dict[bytes, list[Sample]] = defaultdict(list)
    for sample, digest in digests:
        groups[digest].append(sample)
    return tuple(
        Duplicate(
            paths=tuple(_relative(sample.path, dataset.root) for sample in group),
            labels=tuple(_joined_labels(sample) for sample in group),
            splits=tuple(sample.split for sample in group),
        )
        for group in groups.values()
        if len({(_joined_labels(sample), sample.split) for sample in group}) > 1
    )


def _joined_labels(sample: Sample) -> str | None:
    """The label of a picture; several labels are joined by a bar, as in manifests."""
    return sample.label if sample.label_set is None else "|".join(sorted(sample.label_set))


def _warnings(
    dataset: Dataset, classes: dict[str, dict[str, int]], unreadable: int, duplicates: tuple[Duplicate, ...]
) -> Iterable[str]:
    if not dataset.samples:
        yield "There are no pictures."
        return
    if unreadable:
        yield f"{unreadable} of {len(dataset.samples)} pictures can't be read."
    if not classes:
        yield "No picture has a label: put each class into its own folder."
    if len(classes) == 1:
        yield f"There is only one class, '{dataset.class_names[0]}'; a classifier needs at least two."
    for split in dataset.splits if classes else ():
        yield from _imbalance_warnings(split, {name: parts[split] for name, parts in classes.items()})
    if n_groups := sum(len(set(group.labels)) > 1 for group in duplicates):
        yield f"Equal files in more than one class: {n_groups}."
    if n_groups := sum(len(set(group.splits)) > 1 for group in duplicates):
        yield f"Equal files in more than one of {', '.join(dataset.splits)}: {n_groups}."


def _imbalance_warnings(split: str, counts: dict[str, int]) -> Iterable[str]:
    if without := [name for name, count in counts.items() if not count]:
        yield f"{len(without)} of {len(counts)} classes have no readable picture in {split}: {format_list(without)}."
    few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[few] and counts[many] >= MIN_IMBALANCE_RATIO * counts[few]:
        sizes = f"'{few}' has {counts[few]} and '{many}' has {counts[many]} pictures"
        yield f"The classes are unequal in {split}: {sizes}."
