"""Multi-label predictions: average precision by class and its mean, and F1 averaged in three ways.

The definitions are scikit-learn's: average precision is the sum of the precisions at each threshold, weighted by the
increase of recall there, without interpolation.

Letters: m pictures, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError
from clipadapter.metrics.evaluation import ClassReport, metrics_for_json, report_classes
from clipadapter.metrics.table import METRICS


@dataclass(frozen=True, eq=False)
class MultiLabelPredictions:
    """Scores and decisions of multi-label pictures: what the multi-label metrics of `METRICS` are computed from.

    Args:
        truth: (m, c) which classes each picture has.
        scores: (m, c) logits or probabilities.
        decisions: (m, c) which classes were predicted.
    """

    truth: NDArray[np.bool_]
    scores: NDArray[np.float64]
    decisions: NDArray[np.bool_]

    @cached_property
    def true_positives(self) -> NDArray[np.int64]:
        """(c,) correct predictions of each class."""
        return np.asarray((self.truth & self.decisions).sum(axis=0))

    @cached_property
    def true_counts(self) -> NDArray[np.int64]:
        """(c,) pictures that have each class."""
        return np.asarray(self.truth.sum(axis=0))

    @cached_property
    def predicted_counts(self) -> NDArray[np.int64]:
        """(c,) pictures for which each class was predicted."""
        return np.asarray(self.decisions.sum(axis=0))

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(m,) whether all decisions of a picture are correct."""
        return np.asarray((self.truth == self.decisions).all(axis=1))

    @cached_property
    def f1_by_picture(self) -> NDArray[np.float64]:
        """(m,) F1 of each picture's decisions; 0 for a picture without labels, as in scikit-learn."""
        counts = self.truth.sum(axis=1) + self.decisions.sum(axis=1)
        return np.asarray(2 * (self.truth & self.decisions).sum(axis=1) / np.maximum(counts, 1))

    @cached_property
    def average_precisions(self) -> list[float | None]:
        """By class; None for a class that no picture has."""
        return [average_precision(self.truth[:, k], self.scores[:, k]) for k in range(self.truth.shape[1])]

    @property
    def mean_average_precision(self) -> float | None:
        """Mean over the classes that some picture has; None if there is no such class."""
        known = [value for value in self.average_precisions if value is not None]
        return float(np.mean(known)) if known else None


@dataclass(frozen=True)
class LabelReport(ClassReport):
    """Metrics of one class; the average precision is None if no picture has the class."""

    average_precision: float | None


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """Metrics of one set of multi-label predictions.

    Args:
        metrics: values by the name of the metric, in the order of `METRICS`; None if one is not defined.
        classes: metrics of each class.
        without: names of the classes that no picture has, which the mean average precision leaves out.
    """

    metrics: dict[str, float | None]
    classes: tuple[LabelReport, ...]
    without: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**metrics_for_json(self.metrics, self.classes), "without": list(self.without)}


def average_precision(truth: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the precision-recall curve of one class as a step function; None if no picture has the class.

    AP = sum over thresholds n of (R_n - R_(n-1)) P_n, as in scikit-learn's ``average_precision_score``.

    Args:
        truth: (m,) whether each picture has the class.
        scores: (m,) higher is more confident; equal scores share one threshold.

    >>> average_precision([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1])
    0.8333333333333333
    """
    has_class, values = np.asarray(truth, bool), np.asarray(scores, np.float64)
    if not has_class.any():
        return None
    order = np.argsort(-values, kind="stable")
    true_positives = np.cumsum(has_class[order])
    thresholds = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)  # last row of each tie
    precision = true_positives[thresholds] / (thresholds + 1)
    recall = true_positives[thresholds] / true_positives[-1]
    return float(np.diff(recall, prepend=0.0) @ precision)


def evaluate_multilabel(
    truth: ArrayLike, scores: ArrayLike, decisions: ArrayLike, class_names: Sequence[str]
) -> MultiLabelEvaluation:
    """Compute all multi-label metrics of `METRICS`.

    Args:
        truth: (m, c) zeros and ones.
        scores: (m, c) logits or probabilities.
        decisions: (m, c) which classes were predicted.
        class_names: all c classes in the order of the columns.

    Raises:
        InputError: if the shapes differ, or a score is not finite.

    >>> result = evaluate_multilabel([[1, 0], [1, 1]], [[0.9, 0.2], [0.8, 0.7]], [[1, 0], [1, 0]], ["cat", "dog"])
    >>> result.metrics["mean_average_precision"], result.metrics["micro_f1"], result.metrics["exact"]
    (1.0, 0.8, 0.5)
    """
    predictions = MultiLabelPredictions(
        np.asarray(truth, bool), np.asarray(scores, np.float64), np.asarray(decisions, bool)
    )
    shapes = [array.shape for array in (predictions.truth, predictions.scores, predictions.decisions)]
    if len(shapes[0]) != 2 or not shapes[0][0] or {*shapes} != {(shapes[0][0], len(class_names))}:
        raise InputError(
            f"truth, scores and decisions must all be (m, {len(class_names)}), but are {', '.join(map(str, shapes))}"
        )
    if not np.isfinite(predictions.scores).all():
        raise InputError("a score is not finite")
    reports = report_classes(class_names, predictions)
    return MultiLabelEvaluation(
        metrics={
            name: metric.function(predictions) for name, metric in METRICS.items() if "multilabel" in metric.tasks
        },
        classes=tuple(
            LabelReport(**vars(report), average_precision=value)
            for report, value in zip(reports, predictions.average_precisions, strict=True)
        ),
        without=tuple(report.name for report in reports if not report.count),
    )
