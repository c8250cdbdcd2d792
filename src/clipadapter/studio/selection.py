"""Selection of the unlabelled pictures to label next: uncertain ones that are not like each other.

Uncertainty: the smaller the margin between the two highest probabilities, the more a label tells (Scheffer et al., IDA
2001; Settles, "Active Learning Literature Survey", 2009, section 3.1). Diversity: the farthest-point rule of Gonzalez
(Theoretical Computer Science 38, 1985), which Sener and Savarese use for batches, with the labelled pictures as the
first centres (ICLR 2018, https://arxiv.org/abs/1708.00489). The product of the two is our own; Ash et al. (ICLR 2020,
https://arxiv.org/abs/1906.03671) weight distance by uncertainty in a similar way, in gradient space.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError
from clipadapter.utils.prediction import unit_rows

Array = NDArray[Any]
BLOCK_ROWS = 1024


def select_for_labelling(
    features: ArrayLike, uncertainty: ArrayLike, count: int = 8, labelled: ArrayLike | None = None
) -> list[int]:
    """Select rows to label next, most useful first.

    Repeatedly takes the row with the greatest ``uncertainty_i * distance_i``. The distance is that of its unit feature
    to the nearest one that is labelled or was selected before. If there is none, the most uncertain row is the first.

    Args:
        features: (u, d) of the unlabelled pictures.
        uncertainty: (u,) weights >= 0, such as one minus the margin. With all ones, only diversity counts.
        count: number of rows, at most u.
        labelled: (k, d) features of the labelled pictures.

    >>> select_for_labelling([[1, 0], [1, 0.1], [0, 1]], uncertainty=[0.9, 0.8, 0.2], count=2)
    [0, 2]
    """
    rows, weights = unit_rows(features), np.asarray(uncertainty, np.float64)
    if weights.shape != (len(rows),) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise InputError(f"uncertainty must be {len(rows)} finite weights of 0 or more, one per picture")
    distance = np.full(len(rows), 2.0)
    if labelled is not None and len(np.asarray(labelled)) and len(rows):
        centres = unit_rows(labelled)
        blocks = (rows[i : i + BLOCK_ROWS] @ centres.T for i in range(0, len(rows), BLOCK_ROWS))
        distance = _distance(np.concatenate([cosines.max(axis=1) for cosines in blocks]))
    is_free = np.ones(len(rows), bool)
    selected: list[int] = []
    while len(selected) < min(count, len(rows)):
        best = int(np.where(is_free, weights * distance, -1.0).argmax())
        selected.append(best)
        is_free[best] = False
        distance = np.minimum(distance, _distance(rows @ rows[best]))
    return selected


def _distance(cosine: Array) -> Array:
    """Distance of unit vectors from their cosine, 0 to 2."""
    return np.asarray(np.sqrt(np.maximum(2 - 2 * cosine, 0)))
