"""Scores of conformal sets: how strange a class is for a picture.

LAC: Sadinle, Lei, Wasserman, JASA 2019, https://arxiv.org/abs/1609.00451. APS: Romano, Sesia, Candès, NeurIPS 2020,
https://arxiv.org/abs/2006.02544. RAPS: Angelopoulos, Bates, Jordan, Malik, ICLR 2021, https://arxiv.org/abs/2009.14193.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError

Array = NDArray[Any]

SCORES = ("lac", "aps", "raps")
PENALTY, FREE = 0.01, 1
"""RAPS: what each class adds whose rank is above ``FREE``."""


def nonconformity(probabilities: ArrayLike, score: str = "lac") -> Array:
    """How strange every class is for each picture; the higher, the stranger.

    "lac" is 1 - p. "aps" is the mass of all classes that are more probable, and half of the class's own: the paper
    draws that share at random, we take its mean, so that the same picture always gets the same answer (any fixed score
    keeps the promise). "raps" adds 0.01 for each rank after the first, so that long tails of small probabilities stay
    out.

    Args:
        probabilities: (..., c), rows sum to one.
        score: "lac", "aps" or "raps".

    Returns:
        (..., c) float64.

    Raises:
        InputError: if there is no such score, or a probability is none.

    >>> nonconformity([[0.5, 0.25, 0.25]])
    array([[0.5 , 0.75, 0.75]])
    >>> nonconformity([[0.5, 0.25, 0.25]], "aps")
    array([[0.25 , 0.625, 0.875]])
    """
    if score not in SCORES:
        raise InputError(f"there is no conformal score {score!r}; there are: {', '.join(SCORES)}")
    p = checked(probabilities)
    if score == "lac":
        return 1 - p
    order = np.argsort(-p, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=-1)
    strange = np.cumsum(ranked, axis=-1) - ranked / 2
    if score == "raps":
        strange = strange + PENALTY * np.maximum(0, np.arange(1, p.shape[-1] + 1) - FREE)
    found = np.empty_like(p)
    np.put_along_axis(found, order, strange, axis=-1)
    return found


def checked(probabilities: ArrayLike) -> Array:
    """Probabilities (..., c) as float64.

    Raises:
        InputError: if a row is no distribution.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim < 2 or not p.shape[-1]:
        raise InputError(f"probabilities must be rows of one number a class, got shape {p.shape}")
    if not (np.isfinite(p).all() and (p >= 0).all() and (np.abs(p.sum(axis=-1) - 1) < 1e-3).all()):
        raise InputError("probabilities must be finite, at least 0 and sum to one in each row: give no logits")
    return p
