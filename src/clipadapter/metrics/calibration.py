"""Calibration errors, the log-loss and the bins of a reliability diagram.

Letters: m pictures, c classes, b bins. All metrics take probabilities (m, c) and labels (m,), the positions of the true
classes, and raise InputError if these don't match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError, brief

Binning = Literal["equal-width", "equal-mass"]
DEFAULT_BINS = 15  # as in Guo et al. 2017.


@dataclass(frozen=True, eq=False)
class Reliability:
    """Bins of a reliability diagram; empty bins are left out.

    Args:
        confidence: (b,) mean probability of the predictions in a bin.
        accuracy: (b,) share of them that are correct.
        count: (b,) number of predictions in a bin.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Mean distance between confidence and accuracy, bins weighted by their count."""
        return float((np.abs(self.confidence - self.accuracy) * self.count).sum() / self.count.sum())


def reliability(
    confidence: ArrayLike, correct: ArrayLike, bins: int = DEFAULT_BINS, mass: Binning = "equal-width"
) -> Reliability:
    """Sort predictions into bins by their probability.

    Args:
        confidence: (m,) probability of each prediction.
        correct: (m,) whether it is correct.
        bins: how many.
        mass: "equal-width" divides the interval from 0 to 1 (Guo et al. 2017), "equal-mass" the sorted predictions into
            bins of equal size (Nixon et al. 2019). Predictions with equal probabilities stay in one bin.

    Raises:
        InputError: if there is no prediction, the lengths differ, or a value is not a probability.

    >>> bins = reliability([0.55, 0.65, 0.95, 0.95], [True, False, True, True], bins=2)
    >>> bins.confidence.round(3), bins.accuracy, bins.count
    (array([0.775]), array([0.75]), array([4]))
    """
    p, is_correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if p.ndim != 1 or p.shape != is_correct.shape or not len(p):
        raise InputError(f"give one probability per prediction: got shape {p.shape} for {is_correct.shape} predictions")
    if not (np.isfinite(p) & (p >= 0) & (p <= 1 + 1e-9)).all():
        raise InputError("probabilities must lie between 0 and 1: give softmax outputs, not logits")
    if mass == "equal-width":
        bin_numbers = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    elif mass == "equal-mass":
        last_rows = len(p) * np.arange(1, bins) // bins - 1  # of all bins but the final one
        bin_numbers = np.searchsorted(np.sort(p)[last_rows[last_rows >= 0]], p, side="left")
    else:
        raise InputError(f"mass must be 'equal-width' or 'equal-mass', not {brief(mass)}")
    count = np.bincount(bin_numbers, minlength=bins)
    has_rows = count > 0
    means = [np.bincount(bin_numbers, weights=x, minlength=bins)[has_rows] / count[has_rows] for x in (p, is_correct)]
    return Reliability(means[0], means[1], count[has_rows])


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = DEFAULT_BINS, mass: Binning = "equal-mass"
) -> float:
    """Mean distance between the probability of the best class and its accuracy (Guo et al. 2017, eq. 3).

    For ``bins`` and ``mass`` see `reliability`. Bins of equal mass are less biased: a bin with few pictures seems badly
    calibrated by chance alone.

    >>> expected_calibration_error([[0.8, 0.2], [0.8, 0.2]], [0, 1], bins=1)
    0.30000000000000004
    """
    p, y = _check(probabilities, labels)
    return reliability(p.max(axis=1), p.argmax(axis=1) == y, bins, mass).error


def log_loss(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-probability of the true class, in nats. A probability of zero counts as the smallest float.

    >>> round(log_loss([[0.5, 0.5]], [1]), 4)
    0.6931
    """
    p, y = _check(probabilities, labels)
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], np.finfo(np.float64).tiny)).mean())


def _check(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim != 2 or y.shape != (len(p),) or not len(p):
        raise InputError(f"probabilities (m, c) and labels (m,) don't match: {p.shape} and {y.shape}")
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= p.shape[1]:
        raise InputError(f"labels must be positions of the {p.shape[1]} classes, 0 to {p.shape[1] - 1}")
    return p, y.astype(np.int64)
