"""Class priors of pictures without labels, estimated from a model's probabilities.

Paper: Saerens, Latinne, Decaestecker, "Adjusting the outputs of a classifier to new a priori probabilities: a simple
procedure", Neural Computation 14(1):21-41, 2002, https://doi.org/10.1162/089976602753284446.
Intervals are percentiles of a bootstrap over the pictures (the paper gives none). They hold if the probabilities are
right; `prior_posterior` has those that allow for a model's errors.

Letters: m pictures, c classes, b resamples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError
from clipadapter.metrics import wilson_interval

Array = NDArray[np.float64]
MAX_ITERATIONS = 500
TOLERANCE = 1e-6
"""EM stops if no prior changes by more."""
RESAMPLE_TOLERANCE = 1e-4
"""The same for resamples. A percentile of many resamples needs less precision than an estimate."""
MIN_DENSITY = 1e-12
RESAMPLES = 400
INTERVAL_QUANTILES = (0.025, 0.975)
MAX_CHUNK_VALUES = 4_000_000
"""Values (m, b) that are in memory at a time."""


def estimate_priors(probabilities: ArrayLike, assumed: ArrayLike | None = None) -> Array:
    """Maximum-likelihood prior (c,) of each class, by the EM of Saerens et al. (2002), their eq. 2.9.

    It assumes that pictures of a class look like those that the model was calibrated on.

    Args:
        probabilities: (m, c) calibrated.
        assumed: (c,) priors of the classes that the probabilities were calibrated for; equal if not given.

    Raises:
        InputError: if there is no picture, a shape is wrong, or a prior is not positive.

    >>> P = np.repeat([[0.9, 0.1], [0.1, 0.9]], [9, 1], axis=0)  # nine pictures that look like the first class
    >>> estimate_priors(P).round(2)
    array([1., 0.])
    >>> estimate_priors(np.eye(2)[[0, 0, 0, 1]])  # of certain predictions, EM counts
    array([0.75, 0.25])
    """
    P, priors = check_probabilities(probabilities, assumed)
    return np.asarray(_run_em(P / priors, np.ones((1, len(P))), priors[None])[0])


def prior_intervals(
    probabilities: ArrayLike,
    assumed: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Array, Array, Array]:
    """Prior of each class with its 95 % interval over the draw of the pictures.

    The probabilities are taken to be right: errors of the model are not in the interval. Its ends are percentiles of a
    bootstrap. If all pictures are of one class, so are those of each resample, and the percentiles are one point. So
    the interval has at least the ends of Wilson's: even if the class of each picture were known, the share of a class
    among the pictures is not its prior.

    Args:
        probabilities: as of `estimate_priors`.
        assumed: as of `estimate_priors`.
        resamples: b.
        seed: of the resampling.

    Returns:
        Estimate, lower and upper end, each (c,).

    Raises:
        InputError: as `estimate_priors`.
    """
    P, priors = check_probabilities(probabilities, assumed)
    ratio, m, rng = P / priors, len(P), np.random.default_rng(seed)
    estimate = _run_em(ratio, np.ones((1, m)), priors[None])[0]
    start = np.maximum(estimate, 0.1 * priors)  # EM can't change a prior of zero
    start /= start.sum()
    estimates, chunk = [], max(1, MAX_CHUNK_VALUES // m)
    for first in range(0, resamples, chunk):
        count = min(chunk, resamples - first)
        weights = rng.multinomial(m, np.full(m, 1 / m), size=count).astype(np.float64)
        estimates.append(_run_em(ratio, weights, np.repeat(start[None], count, axis=0), RESAMPLE_TOLERANCE))
    low, high = np.quantile(np.concatenate(estimates), INTERVAL_QUANTILES, axis=0)
    wilson_low, wilson_high = np.array([wilson_interval(share, m) for share in estimate]).T
    return estimate, np.minimum(low, wilson_low), np.maximum(high, wilson_high)


def check_probabilities(probabilities: ArrayLike, assumed: ArrayLike | None) -> tuple[Array, Array]:
    """Probabilities (m, c), and priors (c,) that add up to one."""
    P = np.asarray(probabilities, np.float64)
    if P.ndim != 2 or not P.size or not np.isfinite(P).all() or P.min() < 0:
        raise InputError(f"probabilities must be a row for each of one or more pictures, (m, c), but are {P.shape}")
    priors = np.full(P.shape[1], 1 / P.shape[1]) if assumed is None else np.asarray(assumed, np.float64)
    if priors.shape != P.shape[1:] or not np.isfinite(priors).all() or priors.min() <= 0:
        raise InputError(f"priors must be above 0 for each of {P.shape[1]} classes, but are {priors}")
    return P, priors / priors.sum()


def _run_em(ratio: Array, weights: Array, start: Array, tolerance: float = TOLERANCE) -> Array:
    """Maximum-likelihood priors (b, c), each row for its weights (b, m) of the pictures; ratio (m, c) is p / prior.

    All resamples are computed together, as two products of matrices per step.
    """
    priors, total = start.astype(np.float64), weights.sum(axis=1, keepdims=True)
    for _ in range(MAX_ITERATIONS):
        density = np.maximum(priors @ ratio.T, MIN_DENSITY)  # (b, m)
        updated = priors * ((weights / density) @ ratio) / total
        updated /= updated.sum(axis=1, keepdims=True)
        change = float(np.abs(updated - priors).max())
        priors = updated
        if change < tolerance:
            break
    return priors
