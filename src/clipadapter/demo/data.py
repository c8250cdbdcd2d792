"""The pictures of the demo: those of fabric, which come with a package, a named data set, or a folder."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.data import Dataset, load_dataset, textiles
from clipadapter.data.sets import BenchmarkSet, data_root, get_set, list_sets, prepare
from clipadapter.data.sets.layouts import SplitFileSet
from clipadapter.errors import DataError
from clipadapter.utils.formatting import format_count

if TYPE_CHECKING:
    from clipadapter.bench.tables import Reference

MAX_TEST_PICTURES = 300
"""More are not encoded: the demo must end within a minute on two cores, also if each picture is looked at twice."""
MAX_LISTED_CLASSES = 6
OFFLINE = "'clipadapter demo' without --data needs no network: its pictures of fabric come with a package"
TEXTILE_TASK = (
    "Inspection of fabric: is a piece flawless, has it a local defect (a small spot), or a global one (the whole weave "
    "is changed)? The names say little of how the defects look, so examples must decide."
)


@dataclass(frozen=True)
class DemoData:
    """The pictures of the demo, and what a reader must know of them."""

    name: str  # for titles
    task: str  # what is to be told apart, in words; empty if only the class names say it
    train: Dataset  # pictures that shots are drawn from
    test: Dataset  # pictures that heads are measured on
    rule: str  # how both were chosen, a sentence
    templates: str = "default"  # name of the prompt templates

    @cached_property
    def test_counts(self) -> dict[str, int]:
        """Test pictures of each class, the largest class first."""
        return dict(Counter(self.test.labels).most_common())

    @property
    def chance(self) -> float:
        """Accuracy, plain or balanced, of an answer by a die."""
        return 1 / len(self.train.class_names)

    @property
    def largest_class(self) -> str:
        """The class with the most test pictures."""
        return next(iter(self.test_counts))

    @property
    def metric(self) -> str:
        """Accuracy, or balanced accuracy if classes have different numbers of test pictures."""
        counts = list(self.test_counts.values())
        is_equal = len(counts) == len(self.train.class_names) and counts[0] == counts[-1]
        return "accuracy" if is_equal else "balanced_accuracy"

    @property
    def constant_answer(self) -> Reference:
        """Metrics of the same answer for every picture, the largest class."""
        from clipadapter.bench.tables import Reference

        metrics = {
            "accuracy": self.test_counts[self.largest_class] / len(self.test.samples),
            "balanced_accuracy": 1 / len(self.test_counts),
        }
        name = "always the largest class" if self.metric == "balanced_accuracy" else "always the same class"
        return Reference(name, metrics)

    def describe(self, shots: Sequence[int], seeds: int) -> str:
        """The task, the pictures, and what chance is: the first lines of the demo."""
        names, counts = self.train.class_names, Counter([*self.train.labels, *self.test.labels])
        listed = ", ".join(f"{name} ({counts[name]:,})" for name in names[:MAX_LISTED_CLASSES])
        more = f" and {len(names) - MAX_LISTED_CLASSES} more" if len(names) > MAX_LISTED_CLASSES else ""
        each = f"{shots[0]}" if len(shots) == 1 else f"{min(shots)} to {max(shots)}"
        draws = "once" if seeds == 1 else f"{seeds} times"
        return "\n".join(
            [
                *([self.task] if self.task else []),
                f"{counts.total():,} pictures of {len(names)} classes: {listed}{more}.",
                f"{self.rule} Models learn from {each} of each class, drawn {draws}, and are measured on "
                f"{format_count(len(self.test.samples), 'test picture')}.",
                self._describe_chance(),
            ]
        )

    def _describe_chance(self) -> str:
        chance = f"{100 * self.chance:.1f} %"
        if self.metric == "accuracy":
            return f"Chance is {chance}: all classes have the same number of test pictures."
        accuracy, balanced = (
            f"{100 * self.constant_answer.metrics[name]:.1f} %" for name in ("accuracy", "balanced_accuracy")
        )
        counts = list(self.test_counts.values())
        largest = "The largest class" if counts.count(counts[0]) == 1 else "One of the largest classes"
        return (
            f"Chance is {chance}. {largest}, '{self.largest_class}', has {accuracy} of the test pictures: "
            f"always answering it has {accuracy} accuracy and {balanced} balanced accuracy. So balanced accuracy is "
            "shown: the mean, over classes, of the share of a class that is recognised."
        )

    def to_dict(self) -> dict[str, Any]:
        """The same facts for JSON."""
        return {
            "data": self.name,
            "task": self.task,
            "chance": self.chance,
            "largest_class": self.largest_class,
            "constant_answer": dict(self.constant_answer.metrics),
            "test_pictures": self.test_counts,
        }


def open_demo_data(source: Path | None, note: Callable[[str], None], *, progress: bool = False) -> DemoData:
    """Open the pictures of the demo. A named data set that is not there is downloaded, if that is possible.

    If the data has the splits train and test, shots are drawn from train; else every other picture of each class is a
    test picture.

    `note` is called with what the user should know before a download.
    """
    if source is None:
        return _divide(textiles(), "fabric", TEXTILE_TASK)
    name = source.as_posix()
    if source.exists() or name not in list_sets():
        return _divide(load_dataset(source), source.absolute().name)
    known = get_set(name)
    return _divide(_open_set(known, note, progress), known.title, known.summary, known.templates)


def _divide(dataset: Dataset, name: str, task: str = "", templates: str = "default") -> DemoData:
    from clipadapter.bench.sources import split_in_halves, split_train_test

    if {"train", "test"} <= set(dataset.splits):
        train, test = split_train_test(dataset)
        rule = "Examples come from its training pictures."
    else:
        train, test = split_in_halves(dataset)
        rule = "Every other picture of a class is for tests; examples come from the rest."
    if len(test.samples) > MAX_TEST_PICTURES:
        n_all, test = len(test.samples), draw_test_pictures(test, MAX_TEST_PICTURES)
        rule += f" Of {n_all:,} test pictures, {len(test.samples):,} were drawn."
    if not test.samples:
        raise DataError(f"'{name}' has no test pictures: each class needs at least two pictures")
    return DemoData(name, task, train, test, rule, templates)


def draw_test_pictures(test: Dataset, count: int) -> Dataset:
    """Draw pictures at random, from each class in proportion to its size, and at least one."""
    rng, rows_by_class = random.Random(0), dict[str, list[int]]()
    for row, label in enumerate(test.labels):
        rows_by_class.setdefault(label, []).append(row)
    share = count / len(test.samples)
    drawn = [row for rows in rows_by_class.values() for row in rng.sample(rows, max(1, round(share * len(rows))))]
    return replace(test, samples=tuple(test.samples[row] for row in sorted(drawn)))


def _open_set(known: BenchmarkSet, note: Callable[[str], None], progress: bool) -> Dataset:
    """Open a named data set, after a download if its pictures are missing."""
    missing = known.missing_paths()
    by_hand = [need for need in missing if not need.downloadable]
    folder = data_root() / known.folder
    has_class_folders = isinstance(known, SplitFileSet) and known.has_class_folders
    if by_hand and not has_class_folders:
        need = by_hand[0]
        ready = ", ".join(
            one.name
            for one in map(get_set, list_sets())
            if (isinstance(one, SplitFileSet) and one.has_class_folders)
            or all(need.downloadable for need in one.list_required())
        )
        raise DataError(
            f"the data set '{known.name}' needs a file that can't be downloaded by a program, {need.path} "
            f"({need.source}). These need none: {ready}. {OFFLINE}"
        )
    if any(need.downloadable for need in missing):
        sources = "; ".join(dict.fromkeys(need.source for need in missing if need.downloadable))
        note(f"downloading {known.title} to {folder}: {sources}. An interrupted download starts again.")
        try:
            prepare(known.name, progress=progress)
        except DataError as error:
            raise DataError(f"{error}. Tried: {sources}. {OFFLINE}") from error
    if by_hand and isinstance(known, SplitFileSet):
        note(
            f"the split file of the papers, {by_hand[0].path.name}, is missing: classes are folders, and every other "
            "picture is a test picture. Figures can't be compared with the papers'."
        )
        return load_dataset(folder / known.image_folder)
    return known.load()
