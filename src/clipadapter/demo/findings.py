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
from clipadapter.metrics import mean_sd
from clipadapter.utils.formatting import format_count

UNCLEAR_STANDARD_ERRORS = 2.0
"""Differences below this many standard errors are called unclear."""


@dataclass(frozen=True)
class Results:
    """The figures of the demo; those of a head are by its name and the number of shots per class."""

    data: DemoData
    shots: Sequence[int]  # rising
    values: Mapping[tuple[str, int], Sequence[float]]  # the metric of each draw, in the order of the seeds; 0 to 1
    correct: Mapping[tuple[str, int], Mapping[int, NDArray[np.bool_]]]  # by seed, (m,) whether a test picture is right
    labels: Sequence[str]  # (m,) class of each test picture that can be read

    @classmethod
    def from_runs(cls, runs: Sequence[Run], data: DemoData, labels: Sequence[str]) -> Results:
        """Collect the figures of the runs that did not fail."""
        correct: dict[tuple[str, int], dict[int, NDArray[np.bool_]]] = {}
        values: dict[tuple[str, int], list[float]] = {}
        shots = sorted({run.shots for run in runs})
        for run in sorted(runs, key=lambda run: run.seed):
            if run.metrics is None:
                continue
            values.setdefault((run.head, run.shots), []).append(run.metrics[data.metric])
            if (pictures := run.correct_pictures) is not None:
                correct.setdefault((run.head, run.shots), {})[run.seed] = pictures
        return cls(data, shots, values, correct, labels)

    def mean(self, head: str, shots: int) -> float | None:
        """Mean over the draws; None if all runs failed."""
        values = self.values.get((head, shots), ())
        return fmean(values) if values else None

    def standard_error(self, value: float) -> float:
        """Standard error of the metric by the choice of the test pictures, at a value that all classes have."""
        spread, counts = value * (1 - value), self.data.test_counts.values()
        if self.data.metric == "accuracy":
            return sqrt(spread / sum(counts))
        return sqrt(sum(spread / count for count in counts)) / len(counts)

    def difference(self, first: tuple[str, int], second: tuple[str, int]) -> tuple[float, float] | None:
        """The difference of two (head, shots) on the same pictures and draws, and the margin up to which it is unclear.

        None if one of them failed.
        """
        difference = difference_on_pictures(self.correct.get(first, {}), self.correct.get(second, {}), self.labels)
        return None if difference is None else (difference[0], UNCLEAR_STANDARD_ERRORS * difference[1])


def _sign(difference: float, margin: float) -> int:
    """1 if the first figure is clearly above the second, -1 if clearly below, else 0."""
    return 0 if abs(difference) <= margin else 1 if difference > 0 else -1


def describe_table(results: Results) -> str:
    """The class names alone, about four pictures of each class, and the most: mean and deviation over the draws."""
    few, most = min(results.shots, key=lambda shots: abs(shots - 4)), results.shots[-1]
    rows = {"class names alone": ("zero-shot", most), **{_pictures(n): ("auto", n) for n in (few, most)}}
    n_pictures = format_count(sum(results.data.test_counts.values()), "test picture")
    lines = [f"{results.data.metric.replace('_', ' ')} on {n_pictures}"]
    for name, key in rows.items():
        values = results.values.get(key, ())
        mean, spread = (100 * value for value in mean_sd(values)) if values else (0.0, 0.0)
        figure = f"{mean:5.1f} %" if values else "failed"
        lines.append(f"{name:>25}  {figure}" + (f" ± {spread:.1f}" if len(values) > 1 else ""))
    return "\n".join(lines)


def describe_findings(results: Results) -> list[str]:
    """What was learned, in two sentences. What failed is left out."""
    sentences = [_names_sentence(results, results.shots[-1]), _more_shots_sentence(results)]
    return [sentence for sentence in sentences if sentence]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * abs(value):.1f} points"


def _pictures(shots: int) -> str:
    return f"{shots} picture{'s' if shots > 1 else ''} of each class"


def _names_sentence(results: Results, most: int) -> str:
    """How far the class names alone lead, and what the pictures add."""
    names, value = (results.mean(head, most) for head in ("zero-shot", "auto"))
    gain = results.difference(("auto", most), ("zero-shot", most))
    if names is None or value is None or gain is None:
        return ""
    added = {
        1: f"{_pictures(most)} add {_points(gain[0])}",
        -1: f"{_pictures(most)} do harm, {_points(gain[0])}",
        0: f"{_pictures(most)} add nothing that is clear ({100 * gain[0]:+.1f} points, margin of error "
        f"{_points(gain[1])})",
    }[_sign(*gain)]
    return f"The class names alone reach {_above_chance(results, names)}; {added}: {_above_chance(results, value)}."


def _above_chance(results: Results, value: float) -> str:
    """A figure beside what a die reaches."""
    above = _sign(value - results.data.chance, UNCLEAR_STANDARD_ERRORS * results.standard_error(results.data.chance))
    relation = {-1: "below chance", 0: "not clearly different from chance", 1: "above chance"}[above]
    return f"{_percent(value)}, {relation} ({_percent(results.data.chance)})"


def _more_shots_sentence(results: Results) -> str:
    fewest, most = results.shots[0], results.shots[-1]
    gain = None if fewest == most else results.difference(("auto", most), ("auto", fewest))
    if gain is None:
        return ""
    first, last = (_percent(results.mean("auto", n) or 0.0) for n in (fewest, most))
    change = f"auto goes from {first} with {_pictures(fewest)} to {last} with {most}"
    if _sign(*gain) > 0:
        return f"More pictures help: {change}."
    if _sign(*gain) < 0:
        return f"More pictures did not help: {change}."
    return f"More pictures did not clearly help: {change}, with a margin of error of {_points(gain[1])}."
