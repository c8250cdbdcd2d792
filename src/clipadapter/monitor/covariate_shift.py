"""Whether pictures look different, however frequent their classes are.

A two-sample test by the maximum mean discrepancy (Gretton et al., "A kernel two-sample test", JMLR 13:723-773, 2012),
with a Gaussian kernel whose width is the median distance, on unit features. Two things are ours, both so that other
shares of the classes are not taken for other looks:

- what the model's probabilities tell of a feature is taken off first: the least-squares fit of the features of both
  samples to the probabilities. What is left differs little between classes, so that it also shows smaller changes;
- the samples are divided anew by odds that allow for other shares; see `clipadapter.monitor.permutations`. The discrepancy is
  taken twice, plain and with a reference that is weighted by the odds, and the larger counts, each in its standard
  deviations. Where some classes vary more than others the weighted one sees more; else the plain one does, since no few
  shots must stand for many pictures.

Letters: n reference pictures, m of the stream, N = n + m, d width, c classes, b draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError
from clipadapter.monitor.permutations import Mask, draw_groups

Array = NDArray[np.float64]
RIDGE = 0.1
"""Pictures without any feature that each class is given in the fit to the probabilities."""
FLOOR = 1e-3
"""Least odds, beside a mean of one."""


@dataclass(frozen=True)
class Looks:
    """How far two samples are apart.

    Args:
        distance: the squared discrepancy, in standard deviations of its draws from their mean: about 0 where nothing
            changed.
        chance: what 95 % of the draws lie below, likewise.
        p: share of draws that are as far apart.
    """

    distance: float
    chance: float
    p: float


def compare_looks(
    reference: ArrayLike,
    stream: ArrayLike,
    probabilities: tuple[ArrayLike, ArrayLike] | None = None,
    odds: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    draws: int = 999,
    seed: int = 0,
) -> Looks:
    """Test whether two samples of pictures look alike.

    Args:
        reference: (n, d) features, any length.
        stream: (m, d).
        probabilities: (n, c) and (m, c) of the classes, by one model that saw neither sample.
        odds: (n,) and (m,) how much likelier each picture is in the stream, for the classes it may be of; all alike if
            not given.
        draws: b.
        seed: of the draws.

    Raises:
        InputError: if a shape does not fit, or a sample has fewer than two pictures.

    >>> rng = np.random.default_rng(0)
    >>> old, new = rng.normal(1, 1, (60, 4)), rng.normal(1, 1, (40, 4))
    >>> compare_looks(old, new).p > 0.05, compare_looks(old, new + 2).p
    (True, 0.001)
    """
    X, Z = _unit(reference), _unit(stream)
    if X.ndim != 2 or Z.ndim != 2 or X.shape[1:] != Z.shape[1:] or min(len(X), len(Z)) < 2:
        raise InputError(f"features {X.shape} and {Z.shape}: give two or more pictures of each, by one encoder")
    rows = np.concatenate([X, Z])
    if probabilities is not None:
        rows = without_classes(rows, np.concatenate([np.asarray(p, np.float64) for p in probabilities]))
    chances = np.ones(len(rows)) if odds is None else np.concatenate([np.asarray(w, np.float64) for w in odds])
    chances = np.maximum(chances / chances.mean(), FLOOR)
    kernel = gaussian_kernel(rows)
    observed = np.arange(len(rows))[None] >= len(X)
    drawn = draw_groups(chances, len(Z), draws, np.random.default_rng(seed))
    divisions = np.concatenate([observed, drawn])
    plain, weighted = (_scaled(discrepancy(kernel, divisions, weights)) for weights in (None, chances))
    found = np.maximum(plain, weighted)
    p = (1 + int((found[1:] >= found[0] - 1e-9).sum())) / (draws + 1)
    return Looks(float(found[0]), float(np.quantile(found[1:], 0.95)), p)


def without_classes(features: Array, probabilities: Array) -> Array:
    """Features (N, d) less what a linear map of the probabilities (N, c) tells of them.

    >>> features = np.array([[1.0, 0], [1, 2], [9, 0], [9, 2]])
    >>> without_classes(features, np.eye(2)[[0, 0, 1, 1]]).round(1)[:, 1]
    array([-1.,  1., -1.,  1.])
    """
    centred = features - features.mean(axis=0)
    inner = probabilities.T @ probabilities + RIDGE * np.eye(probabilities.shape[1])
    return np.asarray(centred - probabilities @ np.linalg.solve(inner, probabilities.T @ centred))


def gaussian_kernel(rows: Array) -> NDArray[np.float32]:
    """Kernel exp(-|x - y|^2 / (2 s^2)) between all rows (N, N), with s the median distance of two different rows.

    >>> gaussian_kernel(np.array([[0.0], [2.0]])).round(3)[0]  # exp(-1/2)
    array([1.   , 0.607], dtype=float32)
    """
    squares = (rows**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0.0)
    pairs = distances[np.triu_indices(len(rows), 1)]
    apart = pairs[pairs > 1e-12]
    width = float(np.median(apart)) if len(apart) else 1.0
    return np.asarray(np.exp(-distances / (2 * width)), np.float32)


def discrepancy(kernel: NDArray[np.float32], streams: Mask, weights: Array | None = None) -> Array:
    """Squared discrepancy (b,) of each division (b, N) by a kernel (N, N): Gretton et al. (2012), eq. 3, unbiased.

    Args:
        kernel: ones on its diagonal.
        streams: true where a picture is of the stream.
        weights: (N,) of the pictures where they are of the reference; all alike if not given.

    >>> rows = np.array([[0.0], [0.0], [9.0], [9.0]])
    >>> discrepancy(gaussian_kernel(rows), np.array([[True, True, False, False], [True, False, True, False]])).round(2)
    array([ 0.79, -0.39])
    """
    inside = streams.astype(np.float32)
    outside = (1 - inside) * (1 if weights is None else weights.astype(np.float32))
    own, others = (_mean_of_pairs(kernel, part, part) for part in (inside, outside))
    return own + others - 2 * _mean_of_pairs(kernel, inside, outside)


def _mean_of_pairs(kernel: NDArray[np.float32], a: NDArray[np.float32], b: NDArray[np.float32]) -> Array:
    """Mean kernel (b,) of pairs of two different pictures, one by each row of weights (b, N)."""
    same = np.einsum("bn,bn->b", a, b, dtype=np.float64)
    all_pairs = np.einsum("bn,bn->b", a @ kernel, b, dtype=np.float64)
    return np.asarray((all_pairs - same) / (a.sum(axis=1, dtype=np.float64) * b.sum(axis=1, dtype=np.float64) - same))


def _scaled(found: Array) -> Array:
    """Standard deviations from the mean, the observed value and the draws alike."""
    return np.asarray((found - found.mean()) / max(float(found.std()), 1e-12))


def _unit(features: ArrayLike) -> Array:
    wide = np.asarray(features, np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-12))
