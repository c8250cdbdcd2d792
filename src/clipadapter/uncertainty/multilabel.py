"""Multi-label calibration: a sigmoid per class, and the threshold above which a class is predicted.

Papers: Platt 1999, section 2.2, slope and bias of a sigmoid; Lipton et al., ECML 2014,
https://arxiv.org/abs/1402.1892: the threshold with the largest F1 is half of that F1, and a threshold that is searched
per class on few positives overfits.

So no threshold is searched on the labels of a class. Slope and bias of each class are shrunk towards those of all
classes, the more the fewer shots it has. Thresholds are computed from the probabilities and shrunk towards a common one
in the same way. The shrinkage is not from the papers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError
from clipadapter.uncertainty.saved_state import SavedState

Array = NDArray[np.float64]
LOG_SLOPE_DEVIATION, BIAS_DEVIATION = 0.2, 0.7
"""Standard deviations of the normal priors of a class's log-slope and bias, around those of all classes."""
SHARED_LOG_SLOPE_DEVIATION, SHARED_BIAS_DEVIATION = 1.0, 3.0
"""Standard deviations of the priors of the shared log-slope and bias, around a slope of 1 and a bias of 0."""
SHRINKAGE_SHOTS = 16
"""Number of held-out shots of a class at which its own threshold has the same weight as the common one."""
DEFAULT_THRESHOLD = 0.25
"""Threshold if no shot can be held out: the best one at one shot per class, on mosaics of Caltech-101's training
pictures with the encoder `lite`. At two shots per class about the same threshold is learned there."""
ARRAY_NAMES = ("slope", "bias", "thresholds")


@dataclass(frozen=True, eq=False)
class MultiLabel:
    """Probabilities ``sigmoid(slope * logits + bias)`` and a threshold per class.

    Args:
        slope: (c,) positive.
        bias: (c,).
        thresholds: (c,) smallest probabilities at which a class is predicted.
        n: number of held-out shots that it was learned from.

    >>> rule = MultiLabel(np.array([1.0, 1.0]), np.array([0.0, -1.0]), np.array([0.5, 0.2]))
    >>> rule.probabilities([[0.0, 0.0]]).round(2), rule.decide([[0.0, 0.0]])
    (array([[0.5 , 0.27]]), array([[ True,  True]]))
    """

    slope: Array
    bias: Array
    thresholds: Array
    n: int = 0

    @classmethod
    def default(cls, classes: int) -> MultiLabel:
        """The rule without held-out shots: sigmoids of the logits, and a threshold of 0.25."""
        return cls(np.ones(classes), np.zeros(classes), np.full(classes, DEFAULT_THRESHOLD))

    def probabilities(self, logits: ArrayLike) -> Array:
        """Logits (m, c) to the probability of each class (m, c); rows need not sum to one."""
        return _sigmoid(np.asarray(logits, np.float64) * self.slope + self.bias)

    def decide(self, logits: ArrayLike) -> NDArray[np.bool_]:
        """Predicted labels (m, c); a picture may have none."""
        return np.asarray(self.probabilities(logits) >= self.thresholds)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Facts for JSON, and arrays by name."""
        return {"n": self.n}, {name: getattr(self, name) for name in ARRAY_NAMES}

    @classmethod
    def from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], classes: int) -> MultiLabel:
        """Restore what `state` returned, and check it.

        Raises:
            ArtifactError: if it has another number of classes, or a value is invalid.
        """
        saved = SavedState("multi-label rule", facts, arrays)
        slope, bias, thresholds = (saved.array(name, (classes,)) for name in ARRAY_NAMES)
        saved.require((slope > 0).all(), "a value of its 'slope' is out of range")
        saved.require(((thresholds >= 0) & (thresholds <= 1)).all(), "a value of its 'thresholds' is out of range")
        return cls(slope, bias, thresholds, saved.fact("n", int, lambda x: x >= 0))


def learn_multilabel(logits: ArrayLike, targets: ArrayLike) -> MultiLabel:
    """Learn slopes, biases and thresholds from out-of-fold logits of the shots.

    Args:
        logits: (r, c).
        targets: (r, c) zeros and ones.

    Raises:
        InputError: if shapes don't match, or a value is not finite.

    >>> rng = np.random.default_rng(0)
    >>> targets = rng.random((400, 2)) < 0.2
    >>> rule = learn_multilabel(4 * targets + rng.standard_normal((400, 2)), targets)
    >>> bool(((rule.decide([[0.0, 0.0], [4.0, 4.0]])) == [[False, False], [True, True]]).all())
    True
    """
    x, y = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    if x.ndim != 2 or x.shape != y.shape or not x.size:
        raise InputError(f"held-out logits {x.shape} and labels {y.shape} don't match")
    if not np.isfinite(x).all() or not np.isin(y, (0, 1)).all():
        raise InputError("held-out logits must be finite, and labels zeros and ones")
    slope, bias = _fit_sigmoids(x, y)
    probabilities = _sigmoid(x * slope + bias)
    thresholds, counts = np.array([_best_threshold(column) for column in probabilities.T]), y.sum(axis=0)
    # Thresholds are shrunk towards their mean, weighted by shots: the more, the fewer shots a class has.
    common = float(np.average(thresholds, weights=counts)) if counts.any() else float(thresholds.mean())
    own_weight = counts / (counts + SHRINKAGE_SHOTS)
    return MultiLabel(slope, bias, own_weight * thresholds + (1 - own_weight) * common, len(x))


def _fit_sigmoids(x: Array, y: Array) -> tuple[Array, Array]:
    """Maximum a posteriori slope and bias (c,) of each class, with priors around shared values."""
    from scipy.optimize import minimize

    c, spread = x.shape[1], float(x.std()) or 1.0
    scales = [SHARED_LOG_SLOPE_DEVIATION, SHARED_BIAS_DEVIATION, LOG_SLOPE_DEVIATION, BIAS_DEVIATION]
    deviations = np.repeat(scales, [1, 1, c, c])

    def unpack(point: Array) -> tuple[Array, Array]:
        values = point * deviations
        return np.exp(values[0] + values[2 : 2 + c]), values[1] + values[2 + c :]

    def loss(point: Array) -> tuple[float, Array]:
        slope, bias = unpack(point)
        scores = x * slope + bias
        residual = _sigmoid(scores) - y
        slope_gradient, bias_gradient = (residual * x).sum(axis=0) * slope, residual.sum(axis=0)
        gradient = np.concatenate([[slope_gradient.sum(), bias_gradient.sum()], slope_gradient, bias_gradient])
        value = float((np.logaddexp(0.0, scores) - y * scores).sum()) + float(point @ point) / 2
        return value, gradient * deviations + point

    # A start near the scale of the logits keeps the first step of L-BFGS small.
    start = np.zeros(2 + 2 * c)
    start[0] = -np.log(max(spread / 3, 1.0)) / SHARED_LOG_SLOPE_DEVIATION
    solution = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return unpack(solution)


def _best_threshold(probabilities: Array) -> float:
    """The threshold of one class that maximises F1, with expected counts from the calibrated probabilities."""
    p = np.sort(probabilities)[::-1]
    expected_correct, n_predicted = np.cumsum(p), np.arange(1, len(p) + 1)
    # F1 if the class is predicted down to each picture: 2 TP / (positives + predicted), in expectation.
    return float((2 * expected_correct / (expected_correct[-1] + n_predicted)).max()) / 2


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))
