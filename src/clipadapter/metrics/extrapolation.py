"""Extrapolation of a learning curve: the accuracy that more shots per class would bring, with an interval.

The curve is the power law ``a - b * n ** -c`` with n shots per class, which learning curves of many models follow
(Hestness et al. 2017, https://arxiv.org/abs/1712.00409; Viering and Loog 2021, https://arxiv.org/abs/2103.10948). The
few points of a few-shot curve do not determine the exponent c, so that the interval covers all c in (0, 1]; c near 0
is a line in log n. Pictures, draws of shots, and the exponent are resampled together.

Letters: r fits, m pictures, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError
from clipadapter.metrics.intervals import Estimate

Array = NDArray[Any]
MIN_EXPONENT, MAX_EXPONENT = 0.02, 1.0
"""Range of c. At 0 the curve is undefined; 0.02 differs from a line in log n by less than 3 % over a factor of 5."""
MAX_EXTRAPOLATION_FACTOR = 5.0  # largest ratio of the requested shots to the most shots of a fit
PRIOR_WEIGHT = 0.5
"""Weight of one right and of one wrong imaginary picture, as in Jeffreys' prior of a proportion. Without it, the
interval has length zero if every prediction is right."""


@dataclass(frozen=True)
class AccuracyForecast(Estimate):
    """An accuracy with more shots per class, with its 95 % interval.

    Args:
        rises: whether the fitted curve rises in at least 97.5 % of the resamples.
    """

    rises: bool = False


def forecast_accuracy(
    shots: ArrayLike,
    correct: ArrayLike,
    labels: ArrayLike,
    *,
    target_shots: float,
    resamples: int = 1000,
    seed: int = 0,
) -> AccuracyForecast | None:
    """Forecast the accuracy of a model with more shots per class, from fits to fewer shots.

    The interval is that of a Bayesian bootstrap (Rubin 1981) over pictures and fits. It is for the accuracy on new
    pictures of the same kind, so it assumes that the pictures were drawn at random. ``docs/studio.md`` says how often
    it contained the accuracy that was measured.

    Args:
        shots: (r,) shots per class of each fit; fits with 0 shots are left out.
        correct: (r, m) 1 where a fit predicted a picture correctly, 0 where not, NaN where it saw the picture.
        labels: (m,) class of each picture.
        target_shots: shots per class of the model to forecast.
        resamples: number of resamples.
        seed: of the resampling.

    Returns:
        The accuracy, mean over classes, with its 95 % interval. None if the fits say too little: they have fewer than
        two different numbers of shots, or the requested number is more than five times the largest of these.

    Raises:
        InputError: if the shapes do not match, or a number of shots is negative or 0.

    >>> forecast = forecast_accuracy(
    ...     shots=[1, 2, 4], correct=[[1, 0, 1, 0] * 5, [1, 1, 1, 0] * 5, [1] * 18 + [0] * 2],
    ...     labels=[0, 1] * 10, target_shots=8,
    ... )
    >>> 0.75 < forecast.low < 0.95 < forecast.high <= 1
    True
    >>> forecast_accuracy([4], [[1, 0]], [0, 1], target_shots=8) is None
    True
    """
    n, right, classes = np.asarray(shots, np.float64), np.asarray(correct, np.float64), np.asarray(labels)
    if right.ndim != 2 or right.shape != (len(n), len(classes)):
        raise InputError(f"correct must be ({len(n)}, {len(classes)}), fits by pictures, but is {right.shape}")
    if target_shots <= 0 or (n < 0).any():
        raise InputError(f"a number of shots is negative, or target_shots is not positive: {target_shots}")
    is_used = (n > 0) & ~np.isnan(right).all(axis=1)
    n, right = n[is_used], right[is_used]
    levels = np.unique(n)
    if len(levels) < 2 or target_shots > MAX_EXTRAPOLATION_FACTOR * levels[-1]:
        return None
    rng = np.random.default_rng(seed)
    accuracies = _resample(n, levels, right, classes, resamples, rng)
    exponents = rng.uniform(MIN_EXPONENT, MAX_EXPONENT, resamples)
    predicted, slopes = _predict(levels, accuracies, exponents, target_shots)
    pictures = (~np.isnan(right)).any(axis=0).sum()
    one_right, one_wrong = rng.gamma(PRIOR_WEIGHT, size=(2, resamples))
    predicted = (pictures * predicted + one_right) / (pictures + one_right + one_wrong)
    low, middle, high = np.quantile(predicted, [0.025, 0.5, 0.975])
    return AccuracyForecast(float(middle), float(low), float(high), rises=bool(np.quantile(slopes, 0.025) > 0))


def _resample(n: Array, levels: Array, right: Array, classes: Array, resamples: int, rng: np.random.Generator) -> Array:
    """(B, levels) accuracies of the resamples, mean over classes.

    Every picture and every fit gets an exponential weight. A bootstrap with whole pictures would leave some resamples
    without any held-out picture of a class.
    """
    order = np.argsort(classes, kind="stable")
    right, starts = right[:, order], np.unique(classes[order], return_index=True)[1]
    is_held_out = ~np.isnan(right)
    right = np.nan_to_num(right)
    picture_weights = rng.exponential(size=(resamples, right.shape[1]))
    fit_weights = rng.exponential(size=(resamples, len(n)))
    accuracies = np.empty((resamples, len(levels)))
    for j, level in enumerate(levels):
        hits = total = np.zeros((resamples, len(starts)))
        for i in np.flatnonzero(n == level):
            weights = fit_weights[:, i, None] * picture_weights
            hits = hits + np.add.reduceat(weights * right[i], starts, axis=1)
            total = total + np.add.reduceat(weights * is_held_out[i], starts, axis=1)
        is_measured = total[0] > 0  # classes with a held-out picture
        accuracies[:, j] = (hits[:, is_measured] / total[:, is_measured]).mean(axis=1)
    return accuracies


def _predict(levels: Array, accuracies: Array, exponents: Array, shots: float) -> tuple[Array, Array]:
    """(B,) accuracy at a number of shots and (B,) slopes b of a least-squares fit of each resample.

    Each resample has its own exponent. The accuracy is that for b >= 0: more shots never lower it.
    """
    c = exponents[:, None]
    x = (1 - levels**-c) / c  # (B, levels); log n in the limit of c to 0
    x_mean, y_mean = x.mean(axis=1, keepdims=True), accuracies.mean(axis=1, keepdims=True)
    slope = ((x - x_mean) * (accuracies - y_mean)).sum(axis=1) / ((x - x_mean) ** 2).sum(axis=1)
    at = (1 - shots**-exponents) / exponents
    return np.clip(y_mean[:, 0] + np.maximum(slope, 0) * (at - x_mean[:, 0]), 0, 1), slope
