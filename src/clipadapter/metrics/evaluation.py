"""Measures of predictions: accuracy, macro F1, per-class figures, confusions, and mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ClassReport:
    """Figures of one class.

    Args:
        name: class name.
        count: pictures of it.
        precision: share of right ones among those called it; 0 if none was.
        recall: share of it that was found; 0 if there is none.
        f1: harmonic mean of the two.
    """

    name: str
    count: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures of one set of predictions.

    Args:
        accuracy: share of right predictions.
        macro_f1: mean F1 of the classes that occur.
        classes: figures by class.
        confusion: (c, c) counts, rows are true classes, columns predicted ones.
    """

    accuracy: float
    macro_f1: float
    classes: tuple[ClassReport, ...]
    confusion: NDArray[np.int64]

    def confusions(self, limit: int = 10) -> list[tuple[str, str, int]]:
        """The most frequent mistakes: (true class, predicted class, count), most first."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
        pairs = [np.unravel_index(i, wrong.shape) for i in order]
        names = [report.name for report in self.classes]
        return [(names[i], names[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "classes": [vars(report) for report in self.classes],
            "confusions": self.confusions(),
        }


def evaluate(truth: Sequence[str], predicted: Sequence[str], class_names: Sequence[str]) -> Evaluation:
    """Figures of predictions.

    Args:
        truth: m true class names.
        predicted: m predicted ones.
        class_names: all c classes in order.

    Raises:
        KeyError: if a name is no class.

    >>> result = evaluate(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])
    >>> round(result.accuracy, 3), result.confusions()
    (0.667, [('a', 'b', 1)])
    """
    position = {name: i for i, name in enumerate(class_names)}
    confusion = np.zeros((len(class_names),) * 2, dtype=np.int64)
    np.add.at(confusion, ([position[t] for t in truth], [position[p] for p in predicted]), 1)
    hits, true, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = hits / np.maximum(called, 1), hits / np.maximum(true, 1)
    f1 = 2 * hits / np.maximum(true + called, 1)
    present = (true > 0) | (called > 0)
    return Evaluation(
        accuracy=float(hits.sum() / max(confusion.sum(), 1)),
        macro_f1=float(f1[present].mean()) if present.any() else 0.0,
        classes=tuple(
            ClassReport(name, int(true[i]), float(precision[i]), float(recall[i]), float(f1[i]))
            for i, name in enumerate(class_names)
        ),
        confusion=confusion,
    )


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value).

    >>> mean_sd([1.0, 3.0])
    (2.0, 1.4142135623730951)
    """
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
