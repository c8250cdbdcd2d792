"""The parts of ``clipadapter demo``: its pictures, what its figures say in words, and its sheet of answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from clipadapter.data import Dataset, Sample, load_dataset, textiles
from clipadapter.data.sets import BenchmarkSet, data_root, get_set, list_sets, prepare
from clipadapter.data.sets.layouts import SplitFileSet
from clipadapter.errors import DataError, ImageError
from clipadapter.utils.files import path_without_links
from clipadapter.utils.formatting import format_count, format_list

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from clipadapter.bench import Run
    from clipadapter.bench.tables import Reference
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.explain import Explanation
    from clipadapter.features import FeatureSet

MAX_TEST_PICTURES = 300
"""More are not encoded: the demo must end within a minute on two cores, also if each picture is looked at twice."""
OFFLINE = "'clipadapter demo' without --data needs no network: its pictures of fabric come with a package"
TEXTILE_TASK = (
    "Inspection of fabric: is a piece flawless, has it a local defect (a small spot), or a global one (the whole weave "
    "is changed)? The names say little of how the defects look, so examples must decide."
)

# ---- The pictures: those of fabric, which come with a package, a named data set, or a folder ----


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
        is_equal = len(self.test_counts) == len(self.train.class_names) and len(set(self.test_counts.values())) == 1
        return "accuracy" if is_equal else "balanced_accuracy"

    @property
    def constant_answer(self) -> Reference:
        """Metrics of the same answer for every picture, the largest class."""
        from clipadapter.bench.tables import Reference

        accuracy = self.test_counts[self.largest_class] / len(self.test.samples)
        name = "always the largest class" if self.metric == "balanced_accuracy" else "always the same class"
        return Reference(name, {"accuracy": accuracy, "balanced_accuracy": 1 / len(self.test_counts)})

    def describe(self, shots: Sequence[int], seeds: int) -> str:
        """The task, the pictures, and what chance is: the first lines of the demo."""
        names, counts = self.train.class_names, Counter([*self.train.labels, *self.test.labels])
        listed = format_list(f"{name} ({counts[name]:,})" for name in names)
        each = f"{shots[0]}" if len(shots) == 1 else f"{min(shots)} to {max(shots)}"
        draws = "once" if seeds == 1 else f"{seeds} times"
        lines = [
            self.task,
            f"{counts.total():,} pictures of {len(names)} classes: {listed}.",
            f"{self.rule} Models learn from {each} of each class, drawn {draws}, and are measured on "
            f"{format_count(len(self.test.samples), 'test picture')}.",
            self._describe_chance(),
        ]
        return "\n".join(filter(None, lines))

    def _describe_chance(self) -> str:
        if self.metric == "accuracy":
            return f"Chance is {_percent(self.chance)}: all classes have the same number of test pictures."
        accuracy, balanced = map(_percent, self.constant_answer.metrics.values())
        most, *others = self.test_counts.values()
        largest = "One of the largest classes" if most in others else "The largest class"
        return (
            f"Chance is {_percent(self.chance)}. {largest}, '{self.largest_class}', has {accuracy} of the test "
            f"pictures: always answering it has {accuracy} accuracy and {balanced} balanced accuracy. So balanced "
            "accuracy is shown: the mean, over classes, of the share of a class that is recognised."
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
    """Open the pictures of the demo; `note` gets what the user should know before a data set is downloaded."""
    if source is None:
        return _divide(textiles(), "fabric", TEXTILE_TASK)
    name = source.as_posix()
    if source.exists() or name not in list_sets():
        return _divide(load_dataset(source), source.absolute().name)
    known = get_set(name)
    return _divide(_open_set(known, note, progress), known.title, known.summary, known.templates)


def _divide(dataset: Dataset, name: str, task: str = "", templates: str = "default") -> DemoData:
    from clipadapter.bench.sources import split_in_halves

    if {"train", "test"} <= set(dataset.splits):
        train, test = dataset.split("train"), dataset.split("test")
        rule = "Examples come from its training pictures."
    else:
        train, test = split_in_halves(dataset)
        rule = "Every other picture of a class is for tests; examples come from the rest."
    if len(test.samples) > MAX_TEST_PICTURES:
        # At random, from each class in proportion to its size, and at least one.
        rng, rows_by_class, n_all = random.Random(0), dict[str, list[int]](), len(test.samples)
        for row, label in enumerate(test.labels):
            rows_by_class.setdefault(label, []).append(row)
        share = MAX_TEST_PICTURES / n_all
        drawn = [row for rows in rows_by_class.values() for row in rng.sample(rows, max(1, round(share * len(rows))))]
        test = replace(test, samples=tuple(test.samples[row] for row in sorted(drawn)))
        rule += f" Of {n_all:,} test pictures, {len(drawn):,} were drawn."
    if not test.samples:
        raise DataError(f"'{name}' has no test pictures: each class needs at least two pictures")
    return DemoData(name, task, train, test, rule, templates)


def _open_set(known: BenchmarkSet, note: Callable[[str], None], progress: bool) -> Dataset:
    """Open a named data set, after a download if its pictures are missing."""
    missing = known.missing_paths()
    by_hand = [need for need in missing if not need.downloadable]
    sources = "; ".join(dict.fromkeys(need.source for need in missing if need.downloadable))
    folder = data_root() / known.folder
    reads_folders = isinstance(known, SplitFileSet) and known.has_class_folders
    if by_hand and not reads_folders:
        raise DataError(
            f"the data set '{known.name}' needs a file that can't be downloaded by a program, {by_hand[0].path} "
            f"({by_hand[0].source}). imagenette needs none. {OFFLINE}"
        )
    if sources:
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


# ---- What the figures say, as a table and in words ----

MARGIN_STANDARD_ERRORS = 2.0  # the margin of error of a difference, in standard errors


class Results:
    """The figures of the demo, by a head and the number of shots per class, without runs that failed."""

    def __init__(self, runs: Sequence[Run], data: DemoData, labels: Sequence[str]) -> None:
        """``labels`` (m,) are the classes of the test pictures that can be read."""
        self.data, self.labels, self.shots = data, labels, sorted({run.shots for run in runs})
        self._runs: dict[tuple[str, int], list[Run]] = {}
        for run in sorted(runs, key=lambda run: run.seed):
            if run.metrics is not None:
                self._runs.setdefault((run.head, run.shots), []).append(run)

    def values(self, head: str, shots: int) -> list[float]:
        """The metric of each draw; 0 to 1."""
        return [run.metrics[self.data.metric] for run in self._runs.get((head, shots), ()) if run.metrics is not None]

    def difference(self, first: tuple[str, int], second: tuple[str, int]) -> tuple[float, float] | None:
        """The difference of two (head, shots) on the same pictures and draws, and its margin; None if one failed."""
        from clipadapter.metrics.intervals import difference_on_pictures

        correct: list[Mapping[int, Any]] = []
        for key in (first, second):
            pictures = ((run.seed, run.correct_pictures) for run in self._runs.get(key, ()))
            correct.append({seed: own for seed, own in pictures if own is not None})
        difference = difference_on_pictures(correct[0], correct[1], self.labels)
        return None if difference is None else (difference[0], MARGIN_STANDARD_ERRORS * difference[1])

    def table(self) -> str:
        """The class names alone, about four pictures of each class, and the most: mean and deviation over the draws."""
        from clipadapter.metrics import mean_sd

        few, most = min(self.shots, key=lambda shots: abs(shots - 4)), self.shots[-1]
        rows = {"class names alone": ("zero-shot", most), **{_pictures(n): ("auto", n) for n in (few, most)}}
        n_pictures = format_count(sum(self.data.test_counts.values()), "test picture")
        lines = [f"{self.data.metric.replace('_', ' ')} on {n_pictures}"]
        for name, key in rows.items():
            figure, values = "failed", self.values(*key)
            if values:
                mean, spread = (100 * value for value in mean_sd(values))
                figure = f"{mean:5.1f} %" + (f" ± {spread:.1f}" if len(values) > 1 else "")
            lines.append(f"{name:>25}  {figure}")
        return "\n".join(lines)

    def findings(self) -> list[str]:
        """What pictures add to the class names alone, and what the most add to the fewest. What failed is left out."""
        fewest, most = self.shots[0], self.shots[-1]
        sentences = [
            self._compare(("zero-shot", most), f"The class names alone (chance is {_percent(self.data.chance)})", most),
            self._compare(("auto", fewest), _pictures(fewest), most) if fewest < most else "",
        ]
        return list(filter(None, sentences))

    def _compare(self, before: tuple[str, int], name: str, most: int) -> str:
        gain = self.difference(("auto", most), before)
        if gain is None:
            return ""
        first, last = (_percent(fmean(self.values(*key))) for key in (before, ("auto", most)))
        relation = "more than" if abs(gain[0]) > gain[1] else "within"
        return (
            f"{name}: {first}. {_pictures(most)}: {last}. That is {100 * gain[0]:+.1f} points, {relation} the margin "
            f"of error ({100 * gain[1]:.1f})."
        )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _pictures(shots: int) -> str:
    return f"{format_count(shots, 'picture')} of each class"


# ---- The sheet: the answer for each picture, whether it is right, and the place to look at, marked and enlarged ----

COLUMNS = 3
SHEET_PICTURES, SHEET_MISTAKES = 9, 3
"""Pictures that are drawn at random from all, and beside them from those that are wrong."""
SQUARE_INCHES, GAP_INCHES, CAPTION_INCHES, TITLE_INCHES = 1.75, 0.22, 0.52, 0.72
BORDER_INCHES = 0.06  # between a picture and its enlarged place
MIN_WIDTH_INCHES = 9.0  # below, the title would not fit
PLACE_SHARE = 0.2  # side of the enlarged place, as a share of the side of the picture
PLACE_COLOUR = "#f0e442"
"""Yellow of Okabe and Ito's palette, which the other two colours are from."""


@dataclass(frozen=True, eq=False)
class SheetAnswer:
    """The answer for one picture of the sheet."""

    path: Path
    truth: str  # its class
    explanation: Explanation

    @property
    def is_right(self) -> bool:
        """Whether the answer is the true class."""
        return self.explanation.prediction.label == self.truth

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        prediction = self.explanation.prediction
        answer = {"answer": prediction.label, "probability": prediction.probability, "right": self.is_right}
        return {"path": str(self.path), "class": self.truth, **answer}


def draw_answers(
    model: FewShotClassifier, test: Dataset, features: FeatureSet, about: str, folder: Path
) -> tuple[list[SheetAnswer], Path]:
    """Explain the answers for some pictures at random and for some that are wrong, and draw them."""
    blocks = [block.name for block in model.encoder_.info.blocks]
    best = model.classify_features(features.select_blocks(blocks).plain).best
    truth = zip(best, features.y, features.provenance["rows"], strict=True)
    wrong = [test.samples[row] for k, label, row in truth if model.class_names_[k] != label]
    answers = explain_some(model, test)
    n_right = sum(answer.is_right for answer in answers)
    title = f"{format_count(len(answers), 'test picture')} drawn at random, {n_right} right"
    shown = {answer.path for answer in answers}
    others = replace(test, samples=tuple(sample for sample in wrong if sample.path not in shown))
    if mistakes := explain_some(model, others, SHEET_MISTAKES):
        answers += mistakes
        title += f"; below, {len(mistakes)} of the {len(wrong)} mistakes on {len(features)}"
    is_rare = answers[0].explanation.rare_patches is not None
    place = "that differs most from the rest of its picture" if is_rare else "with the most evidence for the answer"
    title += f" ({about})\nMarked, and enlarged: the place {place}"
    return answers, draw_sheet(answers, path_without_links(folder, "answers.png"), title)


def explain_some(model: FewShotClassifier, test: Dataset, count: int = SHEET_PICTURES) -> list[SheetAnswer]:
    """Explain the answers for pictures drawn at random, as far as possible the same number of each class."""
    from clipadapter.explain import explain

    rng, by_class = random.Random(0), dict[str | None, list[Sample]]()
    for sample in rng.sample(test.samples, len(test.samples)):
        by_class.setdefault(sample.label, []).append(sample)
    answers: list[SheetAnswer] = []
    for sample in filter(None, chain.from_iterable(zip_longest(*by_class.values()))):  # classes take turns
        if len(answers) == count:
            break
        with suppress(ImageError):
            answers.append(SheetAnswer(sample.path, str(sample.label), explain(model, sample.path, neighbours=0)))
    return sorted(answers, key=lambda answer: test.class_names.index(answer.truth))


def draw_sheet(answers: Sequence[SheetAnswer], path: str | Path, title: str) -> Path:
    """Draw pictures with answers, and beside each its place to look at (`Explanation.place`), enlarged."""
    from clipadapter.rendering.plots import create_figure, save_plot, set_title

    across, rows = 2 if any(answer.explanation.place for answer in answers) else 1, -(-len(answers) // COLUMNS)
    # All positions are given: captions are wider than the pictures, and the automatic layout would make room for them.
    cell_width, cell_height = across * (SQUARE_INCHES + BORDER_INCHES) + GAP_INCHES, SQUARE_INCHES + CAPTION_INCHES
    width = max(MIN_WIDTH_INCHES, COLUMNS * cell_width + GAP_INCHES)
    height = TITLE_INCHES + rows * cell_height
    figure = create_figure(width, height)
    figure.set_layout_engine("none")
    side = SQUARE_INCHES / width, SQUARE_INCHES / height
    for i, answer in enumerate(answers):
        left, bottom = GAP_INCHES + i % COLUMNS * cell_width, (rows - 1 - i // COLUMNS) * cell_height + GAP_INCHES
        picture, place = (
            figure.add_axes(((left + shift) / width, bottom / height, *side), xticks=[], yticks=[])
            for shift in (0, SQUARE_INCHES + BORDER_INCHES)
        )
        _draw_answer(picture, answer)
        _draw_place(picture, place, answer.explanation)
    set_title(figure, title)
    return save_plot(figure, path, "demo")


def _draw_place(picture: Axes, enlarged: Axes, explanation: Explanation) -> None:
    """Mark the place in the picture, and show it enlarged."""
    if explanation.place is None or explanation.square is None:
        enlarged.remove()
        return
    from matplotlib.patches import Rectangle

    pixels = len(explanation.square)
    side = max(2, round(PLACE_SHARE * pixels))
    x, y = (min(max(round(share * pixels - side / 2), 0), pixels - side) for share in explanation.place)
    picture.add_patch(Rectangle((x - 0.5, y - 0.5), side, side, fill=False, edgecolor=PLACE_COLOUR, linewidth=2))
    enlarged.imshow(explanation.square[y : y + side, x : x + side], interpolation="bicubic")
    enlarged.spines[:].set(color=PLACE_COLOUR, linewidth=3)


def _draw_answer(axes: Axes, answer: SheetAnswer) -> None:
    from clipadapter.rendering.plots import BLUE, GREY, VERMILION, darken, truncate

    explanation, prediction = answer.explanation, answer.explanation.prediction
    # The sign is for readers who can't tell the colours apart.
    colour, sign = (BLUE, "✓") if answer.is_right else (VERMILION, "✗")
    axes.imshow(explanation.picture if explanation.square is None else explanation.square)
    axes.spines[:].set(color=colour, linewidth=3)
    name = truncate(prediction.label or "none of these", 30)
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    for text, height, size, weight, ink in (
        (f"{sign} {name}  {prediction.probability:.2f}", 15, 9, "bold", darken(colour)),
        (f"true: {truncate(answer.truth, 32)}", 4, 8, "normal", GREY),
    ):
        axes.annotate(
            text, (0, 1), xytext=(0, height), fontsize=size, fontweight=weight, color=ink, parse_math=False, **place
        )
