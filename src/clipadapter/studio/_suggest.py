"""Which unlabelled pictures to label next: those that the classifier is unsure of, no two of them alike.

Margin: the smaller the difference between the two best probabilities, the more a label tells (Scheffer et al., IDA
2001; Settles, "Active Learning Literature Survey", 2009, section 3.1). Diversity: the farthest-point rule of Gonzalez
(Theoretical Computer Science 38, 1985), which Sener and Savarese use for batches, with the labelled pictures as the
first centres (ICLR 2018, https://arxiv.org/abs/1708.00489). Their product is ours; Ash et al. (ICLR 2020,
https://arxiv.org/abs/1906.03671) weigh distance by doubt in a like manner, in the space of gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError

Array = NDArray[Any]


def margins(probabilities: ArrayLike) -> Array:
    """Difference between the best and the second probability.

    Args:
        probabilities: (u, c), two classes or more.

    Returns:
        (u,) in 0..1; 0 is a picture that could as well be called otherwise.

    >>> margins([[0.5, 0.5], [0.1, 0.9]]).round(3)
    array([0. , 0.8])
    """
    ordered = np.sort(np.asarray(probabilities, np.float64), axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def suggest(features: ArrayLike, doubt: ArrayLike, count: int = 8, known: ArrayLike | None = None) -> list[int]:
    """Rows to label next, the most wanted first.

    One after the other, the row with the greatest ``doubt_i * distance_i``, where the distance is that of its unit
    feature to the nearest one that is known or was taken before; without any of these the first is the most doubtful.

    Args:
        features: (u, d) of the unlabelled pictures.
        doubt: (u,) weights >= 0, such as one less the margin; all ones ask for diversity alone.
        count: how many rows, at most u.
        known: (k, d) features of the labelled pictures.

    Raises:
        InputError: if there is not one weight a feature, or a weight is negative or not finite.

    >>> suggest([[1, 0], [1, 0.1], [0, 1]], doubt=[0.9, 0.8, 0.2], count=2)
    [0, 2]
    """
    rows, weights = _unit(features), np.asarray(doubt, np.float64)
    if weights.shape != (len(rows),) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise InputError(f"doubt must be {len(rows)} finite weights of 0 or more, one a picture")
    centres = _unit(known) if known is not None and len(np.asarray(known)) else None
    distance = np.full(len(rows), 2.0) if centres is None else _nearest(rows, centres)
    free = np.ones(len(rows), bool)
    taken: list[int] = []
    while len(taken) < min(count, len(rows)):
        best = int(np.where(free, weights * distance, -1.0).argmax())
        taken.append(best)
        free[best] = False
        distance = np.minimum(distance, _distance(rows @ rows[best]))
    return taken


def _unit(features: ArrayLike) -> Array:
    rows = np.asarray(features, np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny))


def _distance(cosine: Array) -> Array:
    """Between unit vectors, 0 to 2."""
    return np.asarray(np.sqrt(np.maximum(2 - 2 * cosine, 0)))


def _nearest(rows: Array, centres: Array, block: int = 1024) -> Array:
    """(u,) distance to the nearest centre, some rows at a time."""
    parts = [(rows[i : i + block] @ centres.T).max(axis=1) for i in range(0, len(rows), block)]
    return _distance(np.concatenate(parts)) if parts else np.empty(0)
