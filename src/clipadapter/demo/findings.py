"""What the figures of the demo say, as sentences. Each sentence is chosen by the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench import Run
from clipadapter.bench.statistics import difference_on_pictures
from clipadapter.demo.data import DemoData

Z_95 = 2.0
"""Differences below this many standard errors are called unclear."""


@dataclass(frozen=True)
class Results:
    """The figures of the demo.

    Args:
        metric: name of the metric of `values`: "accuracy" or "balanced_accuracy".
        shots: numbers of shots per class, rising.
        values: by head and number of shots, the metric of each draw, in the order of the seeds; 0 to 1.
        accuracy: by head, mean accuracy with the most shots.
        correct: by head and number of shots, and by seed, (m,) whether each test picture is right.
        labels: (m,) class of each test picture.
        n_classes: number of classes.
        test_counts: test pictures of each class, the largest class first.
    """

    metric: str
    shots: Sequence[int]
    values: Mapping[tuple[str, int], Sequence[float]]
    accuracy: Mapping[str, float]
    correct: Mapping[tuple[str, int], Mapping[int, NDArray[np.bool_]]]
    labels: Sequence[str]
    n_classes: int
    test_counts: Mapping[str, int]

    @classmethod
    def from_runs(cls, runs: Sequence[Run], data: DemoData, labels: Sequence[str]) -> Results:
        """Collect the figures of the runs that did not fail; ``labels`` are those of the pictures that can be read."""
        correct: dict[tuple[str, int], dict[int, NDArray[np.bool_]]] = {}
        values: dict[tuple[str, int], list[float]] = {}
        accuracies: dict[str, list[float]] = {}
        shots = sorted({run.shots for run in runs})
        for run in sorted(runs, key=lambda run: run.seed):
            if run.metrics is None:
                continue
            values.setdefault((run.head, run.shots), []).append(run.metrics[data.metric])
            if (pictures := run.correct_pictures) is not None:
                correct.setdefault((run.head, run.shots), {})[run.seed] = pictures
            if run.shots == shots[-1]:
                accuracies.setdefault(run.head, []).append(run.metrics.accuracy)
        means = {head: fmean(values) for head, values in accuracies.items()}
        n_classes = len(data.train.class_names)
        return cls(data.metric, shots, values, means, correct, labels, n_classes, data.test_counts)

    @property
    def chance(self) -> float:
        """Value of the metric by a die."""
        return 1 / self.n_classes

    def mean(self, head: str, shots: int) -> float | None:
        """Mean over the draws; None if all runs failed."""
        values = self.values.get((head, shots), ())
        return fmean(values) if values else None

    def standard_error(self, value: float) -> float:
        """Standard error of the metric by the choice of the test pictures, at a value that all classes have."""
        spread = value * (1 - value)
        if self.metric == "accuracy":
            return sqrt(spread / sum(self.test_counts.values()))
        return sqrt(sum(spread / count for count in self.test_counts.values())) / len(self.test_counts)

    def difference(self, first: tuple[str, int], second: tuple[str, int]) -> Difference | None:
        """The difference of two (head, shots) on the same pictures and draws; None if one of them failed."""
        difference = difference_on_pictures(self.correct.get(first, {}), self.correct.get(second, {}), self.labels)
        return None if difference is None else Difference(difference[0], Z_95 * difference[1])


@dataclass(frozen=True)
class Difference:
    """A difference of two figures.

    Args:
        value: first less second.
        margin: differences up to this are unclear: about the 95 % margin of error.
    """

    value: float
    margin: float

    @property
    def sign(self) -> int:
        """1 if the first is clearly above, -1 if clearly below, else 0."""
        return 0 if abs(self.value) <= self.margin else 1 if self.value > 0 else -1


def describe_findings(results: Results) -> list[str]:
    """What was learned: one paragraph per entry. What failed is left out."""
    most = results.shots[-1]
    paragraphs = [
        [_auto_sentence(results, most), _zero_shot_sentence(results, most), _gain_sentence(results, most)],
        [_more_shots_sentence(results), _adapter_sentence(results)],
        [_constant_answer_sentence(results, most)],
    ]
    texts = [" ".join(sentence for sentence in paragraph if sentence) for paragraph in paragraphs]
    return [text for text in texts if text]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * abs(value):.1f} points"


def _pictures(shots: int) -> str:
    return f"{shots} picture{'s' if shots > 1 else ''} of each class"


def _auto_sentence(results: Results, most: int) -> str:
    value = results.mean("auto", most)
    if value is None:
        return ""
    where = "in {} of each class on average" if results.metric == "balanced_accuracy" else "on {} of the test pictures"
    sentence = f"With {_pictures(most)}, auto is right {where.format(_percent(value))}"
    above = Difference(value - results.chance, Z_95 * results.standard_error(results.chance))
    if above.sign > 0:
        return f"{sentence}."
    return f"{sentence}, which is {'below' if above.sign else 'not clearly above'} chance ({_percent(results.chance)})."


def _zero_shot_sentence(results: Results, most: int) -> str:
    value = results.mean("zero-shot", most)
    if value is None:
        return ""
    above = Difference(value - results.chance, Z_95 * results.standard_error(results.chance))
    relation = {
        -1: "below chance ({}): the names mislead this encoder",
        0: "not clearly different from chance ({}): the names tell this encoder little or nothing",
        1: "above chance ({}): the names alone help this encoder",
    }[above.sign]
    text = relation.format(_percent(results.chance))
    return f"zero-shot, which has only the class names, is at {_percent(value)}, {text}."


def _gain_sentence(results: Results, most: int) -> str:
    gain = results.difference(("auto", most), ("zero-shot", most))
    if gain is None:
        return ""
    if gain.sign > 0:
        return f"The pictures add {_points(gain.value)}."
    if gain.sign < 0:
        return f"The pictures do harm here: auto is {_points(gain.value)} below the names alone."
    return (
        f"The pictures add nothing that is clear here: the difference is {100 * gain.value:+.1f} points, with a margin "
        f"of error of {_points(gain.margin)}."
    )


def _more_shots_sentence(results: Results) -> str:
    fewest, most = results.shots[0], results.shots[-1]
    gain = None if fewest == most else results.difference(("auto", most), ("auto", fewest))
    if gain is None:
        return ""
    first, last = (_percent(results.mean("auto", n) or 0.0) for n in (fewest, most))
    change = f"auto goes from {first} with {_pictures(fewest)} to {last} with {most}"
    if gain.sign > 0:
        return f"More pictures help: {change}."
    if gain.sign < 0:
        return f"More pictures did not help: {change}."
    return f"More pictures did not clearly help: {change}, with a margin of error of {_points(gain.margin)}."


def _adapter_sentence(results: Results) -> str:
    """CLIP-Adapter against the linear probe, with the most and the fewest shots."""
    parts: dict[int, list[str]] = {}
    for shots in sorted({results.shots[0], results.shots[-1]}, reverse=True):
        gap = results.difference(("clip-adapter", shots), ("linear-probe", shots))
        if gap is not None:
            adapter, probe = (results.mean(head, shots) or 0.0 for head in ("clip-adapter", "linear-probe"))
            lead = "" if gap.sign == 0 else f"by {_points(gap.value)} "
            part = (
                f"{lead}with {shots} picture{'s' if shots > 1 else ''} ({_percent(adapter)} against {_percent(probe)})"
            )
            parts.setdefault(gap.sign, []).append(part)
    relations = {1: "clip-adapter is ahead", -1: "the linear probe is ahead", 0: "the two can't be told apart"}
    texts = [f"{relations[sign]} {' and '.join(places)}" for sign, places in parts.items()]
    if not texts:
        return ""
    return f"clip-adapter starts from the class names, the linear probe ignores them: {'; '.join(texts)}."


def _constant_answer_sentence(results: Results, most: int) -> str:
    accuracy = results.accuracy.get("auto")
    if results.metric == "accuracy" or accuracy is None:
        return ""
    name, count = next(iter(results.test_counts.items()))
    constant = count / sum(results.test_counts.values())
    relation = "more" if accuracy > constant else "not more"
    return (
        f"Always answering '{name}' is right on {_percent(constant)} of the test pictures and finds no other class; "
        f"auto with {_pictures(most)} is right on {_percent(accuracy)}, {relation} than that."
    )
