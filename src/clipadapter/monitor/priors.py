"""How frequent each class is among pictures without labels, from a model's probabilities.

Paper: Saerens, Latinne, Decaestecker, "Adjusting the outputs of a classifier to new a priori probabilities: a simple
procedure", Neural Computation 14(1):21-41, 2002, https://doi.org/10.1162/089976602753284446.
Intervals are percentiles of a bootstrap over the pictures (the paper gives none).

Letters: m pictures, c classes, b resamples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError

Array = NDArray[np.float64]
ITERATIONS = 500
CLOSE, ROUGHLY = 1e-6, 1e-4
"""EM ends when no share changes by more; of a resample less is asked, its end is no share but a percentile."""
TINY = 1e-12
RESAMPLES = 400
AT_ONCE = 4_000_000
"""Numbers (m, b) that are held at a time."""


def estimate_priors(probabilities: ArrayLike, assumed: ArrayLike | None = None) -> Array:
    """Maximum-likelihood share (c,) of each class, by the EM of Saerens et al. (2002), their eq. 2.9.

    That pictures of a class look as those did which the model was calibrated on is taken for granted.

    Args:
        probabilities: (m, c) calibrated.
        assumed: (c,) shares of the classes among the pictures that the probabilities were calibrated on; all alike
            if not given.

    Raises:
        InputError: if there is no picture, a shape does not fit, or a share is not positive.

    >>> P = np.repeat([[0.9, 0.1], [0.1, 0.9]], [9, 1], axis=0)  # nine pictures that look like the first class
    >>> estimate_priors(P).round(2)
    array([1., 0.])
    >>> estimate_priors(np.eye(2)[[0, 0, 0, 1]])  # where the model is sure, it is counting
    array([0.75, 0.25])
    """
    P, before = checked(probabilities, assumed)
    return np.asarray(_em(P / before, np.ones((1, len(P))), before[None])[0])


def adjusted(probabilities: ArrayLike, assumed: ArrayLike, priors: ArrayLike) -> Array:
    """Probabilities (m, c) as they are where the classes have other shares: Saerens et al. (2002), eq. 2.4.

    Args:
        probabilities: (m, c) calibrated where the shares are ``assumed``.
        assumed: (c,).
        priors: (c,) the shares here.

    >>> adjusted([[0.5, 0.5]], [0.5, 0.5], [0.9, 0.1])
    array([[0.9, 0.1]])
    """
    P, before = checked(probabilities, assumed)
    joint = P / before * np.maximum(np.asarray(priors, np.float64), TINY)
    return np.asarray(joint / joint.sum(axis=1, keepdims=True))


def prior_intervals(
    probabilities: ArrayLike,
    assumed: ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Array, Array, Array]:
    """Share of each class with its interval over which pictures happened to come: percentiles of a bootstrap.

    How well the model tells the classes apart is taken as it says of itself: its own errors are not in the interval.

    Args:
        probabilities: as of `estimate_priors`.
        assumed: likewise.
        level: of the interval.
        resamples: b.
        seed: of the resampling.

    Returns:
        Estimate, lower and upper end, each (c,).

    Raises:
        InputError: as `estimate_priors`.
    """
    P, before = checked(probabilities, assumed)
    ratio, m, rng = P / before, len(P), np.random.default_rng(seed)
    estimate = _em(ratio, np.ones((1, m)), before[None])[0]
    start = np.maximum(estimate, 0.1 * before)  # EM never leaves a share of zero
    start /= start.sum()
    drawn, size = [], max(1, AT_ONCE // m)
    for done in range(0, resamples, size):
        count = min(size, resamples - done)
        weights = rng.multinomial(m, np.full(m, 1 / m), size=count).astype(np.float64)
        drawn.append(_em(ratio, weights, np.repeat(start[None], count, axis=0), ROUGHLY))
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return estimate, np.minimum(low, estimate), np.maximum(high, estimate)


def checked(probabilities: ArrayLike, assumed: ArrayLike | None) -> tuple[Array, Array]:
    """Probabilities (m, c) and shares (c,) that add up to one.

    Raises:
        InputError: as `estimate_priors`.
    """
    P = np.asarray(probabilities, np.float64)
    if P.ndim != 2 or not P.size or not np.isfinite(P).all() or P.min() < 0:
        raise InputError(f"probabilities must be a row for each of one or more pictures, (m, c), but are {P.shape}")
    before = np.full(P.shape[1], 1 / P.shape[1]) if assumed is None else np.asarray(assumed, np.float64)
    if before.shape != P.shape[1:] or not np.isfinite(before).all() or before.min() <= 0:
        raise InputError(f"a share above 0 is needed for each of {P.shape[1]} classes, but there are {before}")
    return P, before / before.sum()


def _em(ratio: Array, weights: Array, start: Array, close: float = CLOSE) -> Array:
    """Shares (b, c) that make pictures likely, each row for its own weights (b, m) of them; ratio (m, c) is p / prior.

    All resamples together, as two products of matrices a step.
    """
    priors, total = start.astype(np.float64), weights.sum(axis=1, keepdims=True)
    for _ in range(ITERATIONS):
        density = np.maximum(priors @ ratio.T, TINY)  # (b, m)
        new = priors * ((weights / density) @ ratio) / total
        new /= new.sum(axis=1, keepdims=True)
        change = float(np.abs(new - priors).max())
        priors = new
        if change < close:
            break
    return priors
