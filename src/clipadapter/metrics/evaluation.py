"""Predictions with one label per picture: accuracy, balanced accuracy, macro F1, reports by class, confusion matrix.

Letters: m pictures, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.metrics.table import METRICS

MAX_CONFUSIONS = 10  # pairs of classes that are listed


@dataclass(frozen=True, eq=False)
class Predictions:
    """Class probabilities of labelled pictures: what the metrics of `METRICS` are computed from.

    Args:
        labels: (m,) positions of the true classes.
        log_probabilities: (m, c) natural logarithms of the class probabilities.
        weights: (m,) weight of each picture; None: all weigh the same. A bootstrap resample is a weight per picture.
    """

    labels: NDArray[np.int64]
    log_probabilities: NDArray[np.float64]
    weights: NDArray[np.float64] | None = None

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(m, c)."""
        return np.exp(self.log_probabilities)

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """(m,) positions of the most probable classes."""
        return np.asarray(self.log_probabilities.argmax(axis=1))

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(m,) whether the most probable class is the true one."""
        return np.asarray(self.predicted == self.labels)

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """(m,) negative log-probabilities of the true classes."""
        return np.asarray(-self.log_probabilities[np.arange(len(self.labels)), self.labels])

    @cached_property
    def squared_errors(self) -> NDArray[np.float64]:
        """(m,) squared distances between the probabilities and the one-hot true classes (Brier 1950)."""
        true = self.probabilities[np.arange(len(self.labels)), self.labels]
        return np.asarray((self.probabilities**2).sum(axis=1) - 2 * true + 1)

    @cached_property
    def true_positives(self) -> NDArray[Any]:
        """(c,) correct predictions of each class."""
        return self._count(self.labels, self.correct)

    @cached_property
    def true_counts(self) -> NDArray[Any]:
        """(c,) pictures of each class."""
        return self._count(self.labels)

    @cached_property
    def predicted_counts(self) -> NDArray[Any]:
        """(c,) predictions of each class."""
        return self._count(self.predicted)

    def mean(self, values: NDArray[Any]) -> float:
        """Weighted mean of one value per picture.

        Args:
            values: (m,).
        """
        return float(values.mean() if self.weights is None else self.weights @ values / self.weights.sum())

    def reweighted(self, weights: NDArray[np.float64]) -> Predictions:
        """The same predictions with other weights. Values that do not depend on the weights are not computed again."""
        other = replace(self, weights=weights)
        for name in ("probabilities", "predicted", "correct", "losses", "squared_errors"):
            other.__dict__[name] = getattr(self, name)
        return other

    def _count(self, classes: NDArray[np.int64], rows: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        weights = self.weights if rows is None or self.weights is None else self.weights[rows]
        return np.bincount(classes if rows is None else classes[rows], weights, self.log_probabilities.shape[1])


@dataclass(frozen=True)
class ClassReport:
    """Metrics of one class.

    Args:
        name: class name.
        count: pictures of the class.
        precision: TP / (TP + FP); 0 if the class was never predicted.
        recall: TP / (TP + FN); 0 if no picture has the class.
        f1: 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall.
    """

    name: str
    count: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics of one set of predictions.

    Args:
        metrics: values by the name of the metric, in the order of `METRICS`.
        classes: metrics of each class.
        confusion: (c, c) counts; rows are true classes, columns are predicted classes.
        predictions: the predictions that were evaluated.
    """

    metrics: dict[str, float]
    classes: tuple[ClassReport, ...]
    confusion: NDArray[np.int64]
    predictions: Predictions = field(repr=False)

    def confusions(self) -> list[tuple[str, str, int]]:
        """The most frequent errors: (true class, predicted class, count), in descending order of the count."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]
        pairs = [np.unravel_index(i, wrong.shape) for i in order]
        names = [report.name for report in self.classes]
        return [(names[i], names[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**metrics_for_json(self.metrics, self.classes), "confusions": self.confusions()}


def evaluate(labels: Sequence[str], log_probabilities: NDArray[np.float64], class_names: Sequence[str]) -> Evaluation:
    """Compute all single-label metrics of `METRICS`.

    Args:
        labels: m true class names.
        log_probabilities: (m, c) natural logarithms of the class probabilities.
        class_names: all c classes in the order of the columns.

    Raises:
        KeyError: if a label is not a class.

    >>> probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    >>> result = evaluate(["a", "a", "b"], np.log(probabilities), ["a", "b"])
    >>> round(result.metrics["accuracy"], 3), result.metrics["balanced_accuracy"], result.confusions()
    (0.667, 0.75, [('a', 'b', 1)])
    """
    position = {name: i for i, name in enumerate(class_names)}
    predictions = Predictions(np.array([position[label] for label in labels], np.int64), log_probabilities)
    confusion = np.zeros((len(class_names),) * 2, dtype=np.int64)
    np.add.at(confusion, (predictions.labels, predictions.predicted), 1)
    return Evaluation(
        metrics={
            name: float(metric.function(predictions) or 0.0)
            for name, metric in METRICS.items()
            if "single-label" in metric.tasks
        },
        classes=tuple(report_classes(class_names, predictions)),
        confusion=confusion,
        predictions=predictions,
    )


def report_classes(names: Sequence[str], predictions: Any) -> list[ClassReport]:
    """Metrics of each class, from predictions that have the counts of `Predictions`."""
    true_positives, true, predicted = predictions.true_positives, predictions.true_counts, predictions.predicted_counts
    precision, recall = true_positives / np.maximum(predicted, 1), true_positives / np.maximum(true, 1)
    f1 = 2 * true_positives / np.maximum(true + predicted, 1)
    return [
        ClassReport(name, int(true[i]), float(precision[i]), float(recall[i]), float(f1[i]))
        for i, name in enumerate(names)
    ]


def metrics_for_json(metrics: Mapping[str, float | None], classes: Sequence[ClassReport]) -> dict[str, Any]:
    """The metrics that JSON output has, and those of each class."""
    shown = {name: value for name, value in metrics.items() if "metrics.json" in METRICS[name].shown}
    return {**shown, "classes": [vars(report) for report in classes]}


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value).

    >>> mean_sd([1.0, 3.0])
    (2.0, 1.4142135623730951)
    """
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
