"""How strange a picture is, by what the papers on unknown pictures found to work: each score one pure function.

All are higher for what is stranger. Letters: m pictures, n shots, c classes, d width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Scores = NDArray[np.float64]


def unit_rows(features: Array) -> NDArray[np.float64]:
    """Rows (m, d) scaled to length one, float64; a row of zeros stays zero.

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    rows = np.asarray(features, dtype=np.float64)
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(norm > 0, norm, 1.0))


def log_sum_exp(x: Array) -> Scores:
    """Ln of the sum of exp over each row; -inf counts nothing.

    >>> log_sum_exp(np.array([[0.0, -np.inf], [1000.0, 1000.0]]))
    array([   0.        , 1000.69314718])
    """
    top = x.max(axis=1)
    finite = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):  # of a row of nothing but -inf
        return np.asarray(finite + np.log(np.exp(x - finite[:, None]).sum(axis=1)))


def msp(probabilities: Array) -> Scores:
    """One minus the highest calibrated probability (Hendrycks and Gimpel 2017, https://arxiv.org/abs/1610.02136).

    >>> msp(np.array([[0.75, 0.25]]))
    array([0.25])
    """
    return np.asarray(1 - probabilities.max(axis=1))


def max_logit(logits: Array) -> Scores:
    """The highest logit, negative (Hendrycks et al. 2022, https://arxiv.org/abs/1911.11132).

    >>> max_logit(np.array([[3.0, 1.0]]))
    array([-3.])
    """
    return np.asarray(-logits.max(axis=1))


def energy(logits: Array, temperature: float = 1.0) -> Scores:
    """-T ln sum exp(logits / T) (Liu et al. 2020, eq. 4, https://arxiv.org/abs/2010.03759).

    >>> energy(np.array([[0.0, 0.0]])).round(4)
    array([-0.6931])
    """
    return -temperature * log_sum_exp(logits / temperature)


def mcm(cosines: Array, temperature: float = 1.0) -> Scores:
    """Maximum concept matching: one minus the highest softmax of the cosines to the class text.

    Ming et al. 2022, eq. 1, https://arxiv.org/abs/2211.13445, where a temperature of 1 is advised.

    >>> mcm(np.array([[0.2, 0.2]]))
    array([0.5])
    """
    scaled = cosines / temperature
    return np.asarray(1 - np.exp(scaled.max(axis=1) - log_sum_exp(scaled)))


def text_distance(cosines: Array) -> Scores:
    """One minus the cosine to the nearest class text.

    >>> text_distance(np.array([[0.25, 0.125]]))
    array([0.75])
    """
    return np.asarray(1 - cosines.max(axis=1))


def distractors(cosines: Array, others: Array, scale: float) -> Scores:
    """Ln of what distractors attract over what classes attract, by exp of scaled cosines.

    NegLabel's score (Jiang et al. 2024, eq. 5, https://arxiv.org/abs/2403.20078) is one over one plus exp of it: the
    order is the same, but it doesn't saturate.

    Args:
        cosines: (m, c) to the class text.
        others: (m, k) to the distractors' text.
        scale: one over the temperature.

    >>> distractors(np.array([[0.5]]), np.array([[0.25]]), 4.0)
    array([-1.])
    """
    return log_sum_exp(scale * others) - log_sum_exp(scale * cosines)


def nearest(cosines: Array) -> Scores:
    """One minus the cosine to the nearest shot (deep nearest neighbours, Sun et al. 2022, with k = 1).

    https://arxiv.org/abs/2204.06507. There k grows with the training set; with few shots a class it is one.

    >>> nearest(np.array([[0.25, 0.5]]))
    array([0.5])
    """
    return np.asarray(1 - cosines.max(axis=1))


def background(others: Array, cosines: Array) -> Scores:
    """How much nearer the nearest background picture is than the direction of the nearest class, as cosines.

    Args:
        others: (m, b) cosines to the background pictures.
        cosines: (m, c) cosines to the classes' means.

    >>> background(np.array([[0.75, 0.0]]), np.array([[0.5, 0.25]]))
    array([0.25])
    """
    return np.asarray(others.max(axis=1) - cosines.max(axis=1))


def without_own(values: Array, labels: Array) -> Array:
    """A copy of (n, c) in which each row's own class can't be the highest: what is then seen is a picture of no class.

    >>> without_own(np.array([[3.0, 1.0]]), np.array([0]))
    array([[-inf,   1.]])
    """
    other = np.array(values, dtype=np.float64)
    other[np.arange(len(labels)), labels] = -np.inf
    return other
