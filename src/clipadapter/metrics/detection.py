"""Metrics of out-of-distribution detection and of selective prediction.

An out-of-distribution score is higher for pictures that are less like the classes. A confidence is higher for
predictions that are more certain.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError


def auroc(known: ArrayLike, unknown: ArrayLike) -> float:
    """Area under the ROC curve: the probability that an unknown picture scores above a known one; ties count half.

    Computed from ranks (Mann and Whitney, 1947), in O(n log n).

    Args:
        known: scores of pictures of the classes.
        unknown: scores of pictures of none of the classes.

    Raises:
        InputError: if an argument is empty, not a list of numbers, or has a NaN.

    >>> auroc([0.1, 0.2, 0.3], [0.3, 0.9])  # of 6 pairs 5 are ordered correctly and one is a tie
    0.9166666666666666
    """
    a, b = _check_scores(known, "known scores"), _check_scores(unknown, "unknown scores")
    ordered = np.sort(a)
    below, not_above = np.searchsorted(ordered, b, "left"), np.searchsorted(ordered, b, "right")
    return float((below + not_above).sum() / (2 * len(a) * len(b)))


def fpr_at(known: ArrayLike, unknown: ArrayLike, tpr: float = 0.95) -> float:
    """False positive rate at the strictest threshold that accepts at least ``tpr`` of the known pictures.

    At 0.95 it is FPR95 of the papers on out-of-distribution detection (Hendrycks and Gimpel, 2017), where known
    pictures are the positives.

    Args:
        known: scores of pictures of the classes.
        unknown: scores of pictures of none of the classes.
        tpr: share of known pictures to accept, above 0 and at most 1.

    Raises:
        InputError: if an argument is empty, not a list of numbers, or has a NaN, or ``tpr`` is out of range.

    >>> fpr_at([1, 2, 3, 4], [3, 4, 5, 6], tpr=0.75)  # scores up to 3 are accepted
    0.25
    """
    a, b = _check_scores(known, "known scores"), _check_scores(unknown, "unknown scores")
    if not 0 < tpr <= 1:
        raise InputError(f"tpr must be above 0 and at most 1, but is {tpr}")
    # 0.95 * 20 is slightly above 19 in binary: without the margin one picture too many would be accepted.
    count = int(np.ceil(tpr * len(a) - 1e-9))
    threshold = np.partition(a, count - 1)[count - 1]
    return float((b <= threshold).mean())


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The risk-coverage curve: error rate of the most confident predictions by their share.

    El-Yaniv and Wiener (2010). Predictions with equal confidence have no order: within a tie, errors occur at the mean
    rate of the tie.

    Args:
        confidence: (m,) higher is more certain.
        correct: (m,) whether each prediction is correct.

    Returns:
        Coverage (m,), 1/m to 1, and risk (m,).

    Raises:
        InputError: if there is no prediction, the counts differ, or a confidence is NaN.

    >>> risk_coverage([0.9, 0.8, 0.1, 0.1], [True, True, False, True])
    (array([0.25, 0.5 , 0.75, 1.  ]), array([0.        , 0.        , 0.16666667, 0.25      ]))
    """
    values = _check_scores(confidence, "confidences")
    wrong = 1.0 - np.asarray(correct, dtype=bool)
    if wrong.shape != values.shape:
        raise InputError(f"{len(values)} confidences and predictions of shape {wrong.shape}: give one for each")
    _, tie, count = np.unique(-values, return_inverse=True, return_counts=True)
    rate = np.bincount(tie, weights=wrong) / count
    n_accepted = np.arange(1, len(values) + 1)
    return n_accepted / len(values), np.cumsum(np.repeat(rate, count)) / n_accepted


def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve: the mean risk over all coverages; lower is better (Geifman et al., 2019).

    Arguments and errors are those of `risk_coverage`.

    >>> aurc([0.9, 0.8, 0.1], [True, True, False])
    0.1111111111111111
    """
    return float(risk_coverage(confidence, correct)[1].mean())


def _check_scores(values: ArrayLike, what: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise InputError(f"{what} must be a list of at least one number, but have shape {array.shape}")
    if np.isnan(array).any():
        raise InputError(f"{what} have {int(np.isnan(array).sum())} NaN: check how they were computed")
    return array
