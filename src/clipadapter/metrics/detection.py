"""How well a score tells unknown pictures from known ones, and what refusing to answer buys.

A score is higher for what is stranger; a confidence is higher for what is surer. Ties count half, or go together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError


def auroc(known: ArrayLike, unknown: ArrayLike) -> float:
    """Area under the ROC curve: the chance that an unknown picture scores above a known one, ties counting half.

    Computed from ranks (Mann and Whitney, 1947), in O(n log n).

    Args:
        known: scores of pictures of the classes, higher is stranger.
        unknown: scores of others.

    Raises:
        InputError: if either is empty, no list of numbers, or has a NaN.

    >>> auroc([0.1, 0.2, 0.3], [0.3, 0.9])  # of 6 pairs 5 are right and one is a tie
    0.9166666666666666
    """
    a, b = _scores(known, "known scores"), _scores(unknown, "unknown scores")
    ordered = np.sort(a)
    below, not_above = np.searchsorted(ordered, b, "left"), np.searchsorted(ordered, b, "right")
    return float((below + not_above).sum() / (2 * len(a) * len(b)))


def fpr_at(known: ArrayLike, unknown: ArrayLike, tpr: float = 0.95) -> float:
    """Share of unknown pictures that pass at the strictest threshold that lets a share ``tpr`` of the known ones pass.

    At 0.95 it is the FPR95 of the papers on out-of-distribution pictures (Hendrycks and Gimpel, 2017), where the known
    are the positives.

    Args:
        known: scores of pictures of the classes, higher is stranger.
        unknown: scores of others.
        tpr: share of known ones to be let pass, above 0 and at most 1.

    Raises:
        InputError: if either is empty, no list of numbers, or has a NaN, or ``tpr`` is out of range.

    >>> fpr_at([1, 2, 3, 4], [3, 4, 5, 6], tpr=0.75)  # up to 3 pass
    0.25
    """
    a, b = _scores(known, "known scores"), _scores(unknown, "unknown scores")
    if not 0 < tpr <= 1:
        raise InputError(f"tpr is a share above 0 and at most 1, but is {tpr}")
    # 0.95 * 20 is a hair above 19 in binary: without the margin one more than needed would have to pass.
    count = int(np.ceil(tpr * len(a) - 1e-9))
    threshold = np.partition(a, count - 1)[count - 1]
    return float((b <= threshold).mean())


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of wrong answers among those given, by the share that is given, the surest first.

    The risk-coverage curve of El-Yaniv and Wiener (2010). Pictures of equal confidence are answered in no order of
    their own: within a tie errors come at the tie's mean rate.

    Args:
        confidence: (m,) higher is surer.
        correct: (m,) whether each answer is right.

    Returns:
        Coverage (m,), 1/m to 1, and risk (m,).

    Raises:
        InputError: if there is nothing, the counts differ, or a confidence is NaN.

    >>> risk_coverage([0.9, 0.8, 0.1, 0.1], [True, True, False, True])
    (array([0.25, 0.5 , 0.75, 1.  ]), array([0.        , 0.        , 0.16666667, 0.25      ]))
    """
    sure = _scores(confidence, "confidences")
    wrong = 1.0 - np.asarray(correct, dtype=bool)
    if wrong.shape != sure.shape:
        raise InputError(f"{len(sure)} confidences came with answers of shape {wrong.shape}: give one for each")
    _, tie, count = np.unique(-sure, return_inverse=True, return_counts=True)
    rate = np.bincount(tie, weights=wrong) / count
    given = np.arange(1, len(sure) + 1)
    return given / len(sure), np.cumsum(np.repeat(rate, count)) / given


def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve: the mean risk over all coverages; lower is better (Geifman et al., 2019).

    Args:
        confidence: (m,) higher is surer.
        correct: (m,) whether each answer is right.

    Raises:
        InputError: as `risk_coverage`.

    >>> aurc([0.9, 0.8, 0.1], [True, True, False])
    0.1111111111111111
    """
    return float(risk_coverage(confidence, correct)[1].mean())


def excess_aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """What the area is above that of the best order, all right answers before all wrong ones (Geifman et al., 2019).

    So it judges the order of the confidences alone, whatever the accuracy; 0 is best.

    Args:
        confidence: (m,) higher is surer.
        correct: (m,) whether each answer is right.

    Raises:
        InputError: as `risk_coverage`.

    >>> excess_aurc([0.9, 0.8, 0.1], [True, True, False])
    0.0
    """
    return aurc(confidence, correct) - aurc(np.asarray(correct, dtype=float), correct)


def _scores(values: ArrayLike, what: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise InputError(f"{what} must be a list of at least one number, but have shape {array.shape}")
    if np.isnan(array).any():
        raise InputError(f"{what} have {int(np.isnan(array).sum())} NaN: look at what made them")
    return array
