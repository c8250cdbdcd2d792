"""Multi-label calibration: a sigmoid per class, and the threshold above which a class is predicted.

Papers: Platt 1999, section 2.2, slope and bias of a sigmoid; Lipton et al., ECML 2014,
https://arxiv.org/abs/1402.1892: the threshold that makes F1 largest is half of the F1 that it reaches, and one that is
searched class by class on few positives is a chance find.

So nothing is searched on the labels of a class. Slope and bias of each class are drawn to those of all classes, by as
much as its shots leave open; thresholds follow from the probabilities, and are drawn to a common one likewise. That
drawing is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import ArtifactError, InputError

Array = NDArray[np.float64]
SLOPE, BIAS = 0.2, 0.7
"""How far the logarithm of a class's slope, and its bias, lie from those of all: deviations of normal priors."""
SHARED_SLOPE, SHARED_BIAS = 1.0, 3.0
"""The same of what all classes share, around a slope of one and no bias."""
SHRINKAGE_SHOTS = 16
"""Held-out shots of a class at which its own threshold weighs as much as the common one."""
USUAL = 0.25
"""Threshold where nothing can be held out: the best one at one shot a class on mosaics of Caltech-101's training
pictures under `lite`, and about what is learned there at two."""
NAMES = ("slope", "bias", "thresholds")


@dataclass(frozen=True, eq=False)
class MultiLabel:
    """Probabilities ``sigmoid(slope * logits + bias)`` and a threshold per class.

    Args:
        slope: (c,) positive.
        bias: (c,).
        thresholds: (c,) probabilities from which a class is predicted.
        n: held-out shots that it was learned from.

    >>> rule = MultiLabel(np.array([1.0, 1.0]), np.array([0.0, -1.0]), np.array([0.5, 0.2]))
    >>> rule.probabilities([[0.0, 0.0]]).round(2), rule.decide([[0.0, 0.0]])
    (array([[0.5 , 0.27]]), array([[ True,  True]]))
    """

    slope: Array
    bias: Array
    thresholds: Array
    n: int = 0

    @classmethod
    def usual(cls, classes: int) -> MultiLabel:
        """What there is without held-out shots: the head's own probabilities, and a threshold of 0.25."""
        return cls(np.ones(classes), np.zeros(classes), np.full(classes, USUAL))

    def probabilities(self, logits: ArrayLike) -> Array:
        """Logits (m, c) to the probability of each class (m, c); rows need not sum to one."""
        return _sigmoid(np.asarray(logits, np.float64) * self.slope + self.bias)

    def decide(self, logits: ArrayLike) -> NDArray[np.bool_]:
        """Predicted labels (m, c); a picture may have none."""
        return np.asarray(self.probabilities(logits) >= self.thresholds)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Facts for JSON, and arrays by name."""
        return {"n": self.n}, {name: getattr(self, name) for name in NAMES}

    @classmethod
    def from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], classes: int) -> MultiLabel:
        """What `state` gave, checked.

        Raises:
            ArtifactError: if it is not of so many classes, or a value can't be.
        """
        try:
            n = int(facts["n"])
            slope, bias, thresholds = (np.asarray(arrays[name], np.float64) for name in NAMES)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the model's thresholds are damaged: {error}") from error
        if any(array.shape != (classes,) for array in (slope, bias, thresholds)):
            raise ArtifactError(f"the model's thresholds do not fit {classes} classes")
        between = ((thresholds >= 0) & (thresholds <= 1)).all()
        if n < 0 or not (np.isfinite(slope).all() and (slope > 0).all() and np.isfinite(bias).all() and between):
            raise ArtifactError("the model's thresholds are damaged: a value can't be")
        return cls(slope, bias, thresholds, n)


def learn_multilabel(logits: ArrayLike, targets: ArrayLike, *, precision: float | None = None) -> MultiLabel:
    """Learn slopes, biases and thresholds from out-of-fold logits of the shots.

    Args:
        logits: (r, c).
        targets: (r, c) zeros and ones.
        precision: share of right ones wished among the pictures that a class is said of: the threshold is then the
            least one that reaches it, 1 where none does. If not given, thresholds make F1 largest.

    Raises:
        InputError: if shapes don't go together, a value is not finite, or the precision is not between 0 and 1.

    >>> rng = np.random.default_rng(0)
    >>> targets = rng.random((400, 2)) < 0.2
    >>> rule = learn_multilabel(4 * targets + rng.standard_normal((400, 2)), targets)
    >>> bool(((rule.decide([[0.0, 0.0], [4.0, 4.0]])) == [[False, False], [True, True]]).all())
    True
    """
    x, y = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    if x.ndim != 2 or x.shape != y.shape or not x.size:
        raise InputError(f"held-out logits {x.shape} and labels {y.shape} don't go together")
    if not np.isfinite(x).all() or not np.isin(y, (0, 1)).all():
        raise InputError("held-out logits must be finite, and labels zeros and ones")
    if precision is not None and not 0 < precision < 1:
        raise InputError(f"precision must be between 0 and 1, but is {precision}")
    slope, bias = _fit_sigmoids(x, y)
    probabilities = _sigmoid(x * slope + bias)
    best = [_best_threshold(column, precision) for column in probabilities.T]
    return MultiLabel(slope, bias, _shrink_thresholds(np.array(best), y.sum(axis=0)), len(x))


def _fit_sigmoids(x: Array, y: Array) -> tuple[Array, Array]:
    """Slope and bias (c,) of each class, likeliest under priors around what all classes share."""
    from scipy.optimize import minimize

    c, unit = x.shape[1], float(x.std()) or 1.0
    deviations = np.concatenate([[SHARED_SLOPE, SHARED_BIAS], np.full(c, SLOPE), np.full(c, BIAS)])

    def unpacked(point: Array) -> tuple[Array, Array]:
        values = point * deviations
        return np.exp(values[0] + values[2 : 2 + c]), values[1] + values[2 + c :]

    def loss(point: Array) -> tuple[float, Array]:
        slope, bias = unpacked(point)
        scores = x * slope + bias
        residual = _sigmoid(scores) - y
        of_slope, of_bias = (residual * x).sum(axis=0) * slope, residual.sum(axis=0)
        gradient = np.concatenate([[of_slope.sum(), of_bias.sum()], of_slope, of_bias]) * deviations
        value = float((np.logaddexp(0.0, scores) - y * scores).sum()) + float(point @ point) / 2
        return value, gradient + point

    # Logits far from unit spread are met half way, so that the first step is no leap.
    start = np.zeros(2 + 2 * c)
    start[0] = -np.log(max(unit / 3, 1.0)) / SHARED_SLOPE
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return unpacked(found)


def _best_threshold(probabilities: Array, precision: float | None) -> float:
    """Of one class, by what its probabilities say of themselves."""
    p = np.sort(probabilities)[::-1]
    right, said = np.cumsum(p), np.arange(1, len(p) + 1)
    if precision is None:
        # Of pictures that are said down to each one: 2 TP / (positives + said), all in expectation.
        return float((2 * right / (right[-1] + said)).max()) / 2
    reached = np.flatnonzero(right / said >= precision)
    return float(p[reached[-1]]) if len(reached) else 1.0


def _shrink_thresholds(thresholds: Array, counts: Array) -> Array:
    """Thresholds (c,) nearer to their mean, each class weighted by its shots, the fewer shots a class has."""
    common = float(np.average(thresholds, weights=counts)) if counts.any() else float(thresholds.mean())
    own = counts / (counts + SHRINKAGE_SHOTS)
    return own * thresholds + (1 - own) * common


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))
