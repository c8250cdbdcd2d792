"""How far probabilities can be taken at their word: calibration errors, proper scores, bins of a reliability diagram.

Letters: m pictures, c classes, b bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError

Mass = Literal["equal-width", "equal-mass"]
BINS = 15
"""As in Guo et al. 2017."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Bins of a reliability diagram; empty bins are left out.

    Args:
        confidence: (b,) mean probability of the answers in a bin.
        accuracy: (b,) share of them that are right.
        count: (b,) how many they are.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Mean distance between confidence and accuracy, bins weighted by their count."""
        return float((np.abs(self.confidence - self.accuracy) * self.count).sum() / self.count.sum())


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS, mass: Mass = "equal-width") -> Reliability:
    """Answers sorted into bins by their probability.

    Args:
        confidence: (m,) probability of each answer.
        correct: (m,) whether it is right.
        bins: how many.
        mass: "equal-width" divides the line from 0 to 1 (Guo et al. 2017), "equal-mass" the sorted answers (Nixon et
            al. 2019), each bin with as many of them; answers of one probability stay in one bin.

    Raises:
        InputError: if there is no answer, the lengths differ, or a value is no probability.

    >>> found = reliability([0.55, 0.65, 0.95, 0.95], [True, False, True, True], bins=2)
    >>> found.confidence.round(3), found.accuracy, found.count
    (array([0.775]), array([0.75]), array([4]))
    """
    p, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if p.ndim != 1 or p.shape != right.shape or not len(p):
        raise InputError(f"one probability an answer is needed, but there are {p.shape} of {right.shape} answers")
    if not (np.isfinite(p) & (p >= 0) & (p <= 1 + 1e-9)).all():
        raise InputError("probabilities must lie between 0 and 1: give softmax outputs, not logits")
    if mass == "equal-width":
        at = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    elif mass == "equal-mass":
        last = np.array([len(p) * i // bins - 1 for i in range(1, bins)], np.int64)  # of each bin but the final one
        at = np.searchsorted(np.sort(p)[last[last >= 0]], p, side="left")
    else:
        raise InputError(f"bins are of 'equal-width' or 'equal-mass', not {mass!r}")
    count = np.bincount(at, minlength=bins)
    there = count > 0
    sums = [np.bincount(at, weights=x, minlength=bins)[there] / count[there] for x in (p, right)]
    return Reliability(sums[0], sums[1], count[there])


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS, mass: Mass = "equal-mass"
) -> float:
    """Mean distance between the probability of the best class and how often it is right (Guo et al. 2017, eq. 3).

    Args:
        probabilities: (m, c).
        labels: (m,) positions of the true classes.
        bins: how many.
        mass: see `reliability`. Bins of equal mass are less biased: few pictures in a bin look badly calibrated by
            chance alone.

    Raises:
        InputError: as `reliability`.

    >>> expected_calibration_error([[0.8, 0.2], [0.8, 0.2]], [0, 1], bins=1)
    0.30000000000000004
    """
    p, y = _checked(probabilities, labels)
    return reliability(p.max(axis=1), p.argmax(axis=1) == y, bins, mass).error


def classwise_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS, mass: Mass = "equal-mass"
) -> float:
    """Mean over classes of the distance between a class's probability and its frequency (Kull et al. 2019, eq. 3).

    Args:
        probabilities: (m, c).
        labels: (m,) positions of the true classes.
        bins: how many a class.
        mass: see `reliability`.

    Raises:
        InputError: as `reliability`.

    >>> classwise_calibration_error([[0.8, 0.2], [0.8, 0.2]], [0, 1], bins=1)
    0.30000000000000004
    """
    p, y = _checked(probabilities, labels)
    return float(np.mean([reliability(p[:, k], y == k, bins, mass).error for k in range(p.shape[1])]))


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared distance of the probabilities from the truth, summed over classes (Brier 1950): 0 to 2.

    Args:
        probabilities: (m, c).
        labels: (m,) positions of the true classes.

    >>> round(brier([[0.8, 0.2]], [1]), 6)
    1.28
    """
    p, y = _checked(probabilities, labels)
    return float((p**2).sum(axis=1).mean() - 2 * p[np.arange(len(y)), y].mean() + 1)


def log_loss(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-probability of the true class, in nats; a probability of zero counts as the least float.

    Args:
        probabilities: (m, c).
        labels: (m,) positions of the true classes.

    >>> round(log_loss([[0.5, 0.5]], [1]), 4)
    0.6931
    """
    p, y = _checked(probabilities, labels)
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], np.finfo(np.float64).tiny)).mean())


def _checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim != 2 or y.shape != (len(p),) or not len(p):
        raise InputError(f"probabilities (m, c) and labels (m,) don't go together: {p.shape} and {y.shape}")
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= p.shape[1]:
        raise InputError(f"labels must be positions of the {p.shape[1]} classes, 0 to {p.shape[1] - 1}")
    return p, y.astype(np.int64)
