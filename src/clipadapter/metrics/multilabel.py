"""Measures of several labels a picture: average precision by class and its mean, and F1 three ways.

The definitions are scikit-learn's: average precision is the sum of precisions at each score, weighted by the rise of
recall there, without interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError


@dataclass(frozen=True)
class LabelReport:
    """Figures of one class.

    Args:
        name: class name.
        count: pictures that have it.
        average_precision: None if no picture has it.
        precision: share of right ones among those it was said of; 0 if of none.
        recall: share of its pictures that were found; 0 if there is none.
        f1: harmonic mean of the two.
    """

    name: str
    count: int
    average_precision: float | None
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """Figures of answers with several labels a picture.

    Args:
        mean_average_precision: mean of the classes that some picture has; None if there is no such class.
        micro_f1: F1 of all answers together.
        macro_f1: mean F1 of the classes that occur, in truth or in answers.
        sample_f1: mean F1 of the pictures; 0 for one without labels, whatever was said, as in scikit-learn.
        exact: share of pictures whose labels are all right.
        classes: figures by class.
        without: names of the classes that no picture has, which the mean average precision leaves out.
    """

    mean_average_precision: float | None
    micro_f1: float
    macro_f1: float
    sample_f1: float
    exact: float
    classes: tuple[LabelReport, ...]
    without: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **{name: value for name, value in vars(self).items() if name not in ("classes", "without")},
            "classes": [vars(report) for report in self.classes],
            "without": list(self.without),
        }


def average_precision(truth: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under precision over recall of one class, in steps; None if no picture has the class.

    Args:
        truth: (m,) whether each picture has it.
        scores: (m,) the higher, the surer; equal scores are one step.

    >>> average_precision([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1])
    0.8333333333333333
    """
    has, s = np.asarray(truth, bool), np.asarray(scores, np.float64)
    if not has.any():
        return None
    order = np.argsort(-s, kind="stable")
    found = np.cumsum(has[order])
    ends = np.append(np.flatnonzero(np.diff(s[order])), len(s) - 1)
    precision, recall = found[ends] / (ends + 1), found[ends] / found[-1]
    return float(np.diff(recall, prepend=0.0) @ precision)


def evaluate_multilabel(
    truth: ArrayLike, scores: ArrayLike, said: ArrayLike, class_names: Sequence[str]
) -> MultiLabelEvaluation:
    """Figures of answers.

    Args:
        truth: (m, c) zeros and ones.
        scores: (m, c) logits or probabilities.
        said: (m, c) which classes were said.
        class_names: all c classes in order.

    Raises:
        InputError: if the shapes differ, or a score is not finite.

    >>> result = evaluate_multilabel([[1, 0], [1, 1]], [[0.9, 0.2], [0.8, 0.7]], [[1, 0], [1, 0]], ["cat", "dog"])
    >>> result.mean_average_precision, result.micro_f1, result.exact
    (1.0, 0.8, 0.5)
    """
    has, score, called = np.asarray(truth, bool), np.asarray(scores, np.float64), np.asarray(said, bool)
    if has.ndim != 2 or not len(has) or len({has.shape, score.shape, called.shape, (len(has), len(class_names))}) > 1:
        shapes = ", ".join(str(array.shape) for array in (has, score, called))
        raise InputError(f"truth, scores and answers must all be (m, {len(class_names)}), but are {shapes}")
    if not np.isfinite(score).all():
        raise InputError("a score is not finite")
    hits, true, answered = (part.sum(axis=0) for part in (has & called, has, called))
    precision, recall, f1 = hits / np.maximum(answered, 1), hits / np.maximum(true, 1), _f1(hits, true, answered)
    areas = [average_precision(has[:, k], score[:, k]) for k in range(len(class_names))]
    known = [area for area in areas if area is not None]
    occurs = (true > 0) | (answered > 0)
    rows = _f1(*(part.sum(axis=1) for part in (has & called, has, called)))
    return MultiLabelEvaluation(
        mean_average_precision=float(np.mean(known)) if known else None,
        micro_f1=float(_f1(hits.sum(), true.sum(), answered.sum())),
        macro_f1=float(f1[occurs].mean()) if occurs.any() else 0.0,
        sample_f1=float(rows.mean()),
        exact=float((has == called).all(axis=1).mean()),
        classes=tuple(
            LabelReport(name, int(true[k]), areas[k], float(precision[k]), float(recall[k]), float(f1[k]))
            for k, name in enumerate(class_names)
        ),
        without=tuple(name for name, count in zip(class_names, true, strict=True) if not count),
    )


def _f1(hits: NDArray[Any], true: NDArray[Any], said: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(2 * hits / np.maximum(true + said, 1))
