"""Calibrated probabilities: temperature and vector scaling (Guo et al. 2017), for few held-out shots.

Papers: Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599, section 4.2 (temperature and vector scaling); Platt
1999, section 2.2 (labels smoothed by an amount that depends on their number).

There are dozens of held-out shots, not thousands. Often all of them are classified correctly, and the maximum
likelihood temperature is then zero. So labels are smoothed: the n labels together count as a quarter of a label wrong,
in favour of the next most probable class. And the temperature has a log-normal prior around the one that the head
usually needs at this number of shots; it is wider for heads that need class text, which agrees with the pictures of one
data set and not with those of another. The quarter and the widths are the best of those tried on development sets
(docs/decisions/0016-calibration.md).

Four shots may all be right by luck. No temperature says so where pictures of two classes look alike, and the class of
a picture may then get a probability near zero. So probabilities are mixed with equal ones, the more the fewer shots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError, brief
from clipadapter.uncertainty.saved_state import SavedState

Array = NDArray[np.float64]
Method = Literal["temperature", "vector"]
METHODS = ("temperature", "vector")
MIN_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE, GRID_STEPS = -4.0, 6.0, 41
"""Range of the logarithm of the temperature divided by the prior one, and the number of grid points in it."""
WRONG_LABELS = 0.25
"""Number of wrong labels that is assumed among all n, whatever n is: the soft target of each label gives this over
n + 1 to another class."""
LOG_TEMPERATURE_DEVIATION = 0.4  # standard deviation of the prior of the log-temperature, over data sets
LOG_TEMPERATURE_DEVIATION_OF_TEXT = 1.5  # the same for heads that need class text
WEIGHT_DEVIATION, BIAS_DEVIATION = 0.2, 0.5
"""Standard deviations of the priors of vector scaling: of the factors around 1 and of the biases around 0."""
MAX_LOGITS = 2_000_000  # if there are more held-out logits, a random subset of the rows is used


@dataclass(frozen=True, eq=False)
class Calibrator:
    """Turns logits into probabilities: softmax of ``weight * logits / temperature + bias``, mixed with equal ones.

    Args:
        temperature: 1 leaves the logits as they are.
        weight: (c,) factor of each class, or None.
        bias: (c,) added to each class, or None.
        n: number of held-out shots that it was fitted to; 0 if it is the prior alone.
        equal_share: share of equal probabilities in the mixture; see `equal_share`.

    >>> Calibrator(temperature=2.0).probabilities(np.array([[np.log(9.0), 0.0]])).round(3)
    array([[0.75, 0.25]])
    """

    temperature: float = 1.0
    weight: Array | None = None
    bias: Array | None = None
    n: int = 0
    equal_share: float = 0.0

    def log_probabilities(self, logits: NDArray[Any]) -> Array:
        """Logits (m, c) to log-probabilities (m, c)."""
        logs = _log_softmax(self._scale(logits))
        if not self.equal_share:
            return logs
        return np.asarray(np.logaddexp(logs + np.log1p(-self.equal_share), np.log(self.equal_share / logs.shape[1])))

    def probabilities(self, logits: NDArray[Any]) -> Array:
        """Logits (m, c) to probabilities (m, c), rows sum to one."""
        z = self._scale(logits)  # a new array: with many classes its exponential takes as long as the head's product
        z -= z.max(axis=1, keepdims=True)
        np.exp(z, out=z)
        z *= (1 - self.equal_share) / z.sum(axis=1, keepdims=True)
        z += self.equal_share / z.shape[1]
        return z

    def _scale(self, logits: NDArray[Any]) -> Array:
        z = np.asarray(logits, np.float64) / self.temperature
        return z if self.weight is None or self.bias is None else z * self.weight + self.bias

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Facts for JSON, and arrays by name."""
        arrays = {} if self.weight is None or self.bias is None else {"weight": self.weight, "bias": self.bias}
        return {"temperature": self.temperature, "n": self.n, "equal_share": self.equal_share}, arrays

    @classmethod
    def from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], classes: int) -> Calibrator:
        """Restore what `state` returned.

        Raises:
            ArtifactError: if it has another number of classes, or a value is invalid.
        """
        saved = SavedState("calibration", facts, arrays)
        vectors = {name: saved.array(name, (classes,)) for name in ("weight", "bias") if name in arrays}
        saved.require(len(vectors) != 1, "it has a weight or a bias alone")
        temperature, n = saved.fact("temperature", float, lambda x: x > 0), saved.fact("n", int, lambda x: x >= 0)
        share = saved.fact("equal_share", float, lambda x: 0 <= x < 1)
        return cls(temperature, vectors.get("weight"), vectors.get("bias"), n, share)


def learn_calibrator(
    logits: NDArray[Any],
    labels: NDArray[Any],
    *,
    method: Method = "temperature",
    prior_temperature: float = 1.0,
    prior_deviation: float = LOG_TEMPERATURE_DEVIATION,
    n: int | None = None,
    logit_adjustment: float = 0.0,
) -> Calibrator:
    """Learn a calibrator of the full fit from out-of-fold logits of the shots.

    Args:
        logits: (r, c), on the scale of the full fit's logits.
        labels: (r,) class positions.
        method: "temperature", one number; or "vector", a factor and a bias per class in addition, with priors.
        prior_temperature: mean of the prior of the temperature, for this head and number of shots.
        prior_deviation: standard deviation of the prior of the log-temperature.
        n: number of different shots among the rows; None: each row is another shot.
        logit_adjustment: tau of the full fit's logit adjustment. "vector" then weights the rows of a class by the
            power -tau of their number: its biases would put the class shares back that the fit took out of the logits.
            No effect if the classes have equal numbers of rows.

    Raises:
        InputError: if shapes don't match, a value is not finite, or the method is unknown.

    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]] * 500)
    >>> labels = np.array([0, 0, 1, 1] * 500)
    >>> round(float(learn_calibrator(logits, labels).probabilities(logits)[0, 0]), 2)
    0.75
    """
    z, y = np.asarray(logits), np.asarray(labels)
    if z.ndim != 2 or y.shape != (len(z),) or not len(z) or y.min() < 0 or y.max() >= z.shape[1]:
        raise InputError(f"held-out logits {z.shape} and labels {y.shape} don't match")
    if not np.isfinite(z).all():
        raise InputError("held-out logits must be finite")
    if method not in METHODS:
        raise InputError(f"calibration must be one of {', '.join(METHODS)}, not {brief(method)}")
    count = len(z) if n is None else n
    rows = max(1, MAX_LOGITS // z.shape[1])
    if len(z) > rows:
        subset = np.random.default_rng(0).choice(len(z), rows, replace=False)
        z, y = z[subset], y[subset]
    z = z.astype(np.float64)
    # The label, the most probable other class, and the probability that the soft target gives to this one.
    others = z.copy()
    others[np.arange(len(y)), y] = -np.inf
    targets = y, others.argmax(axis=1), WRONG_LABELS / (count + 1)
    temperature = _fit_temperature(z / prior_temperature, targets, count, prior_deviation) * prior_temperature
    calibrator = Calibrator(temperature, n=count, equal_share=equal_share(count))
    if method == "vector":
        counts = np.bincount(y, minlength=z.shape[1])
        row_weights = np.asarray((counts[counts > 0].mean() / counts[y]) ** logit_adjustment)
        # They sum to the effective number of rows (Kish 1965): a few rows with large weights say less than as many rows
        # say that count alike, and the priors then weigh more.
        row_weights *= row_weights.sum() / (row_weights**2).sum()
        weight, bias = _fit_vector(z / temperature, targets, row_weights, count)
        calibrator = replace(calibrator, weight=weight, bias=bias)
    return calibrator


def equal_share(n: int) -> float:
    """Share of equal probabilities after n held-out shots: 6 % for four, 1.5 % for eight, 0.4 % for sixteen."""
    # More shots show by their answers how alike the classes are (docs/decisions/0016-calibration.md).
    return 1 / (1 + n**2)


def _fit_temperature(
    z: Array, targets: tuple[NDArray[Any], NDArray[Any], float], n: int, prior_deviation: float
) -> float:
    """Maximum a posteriori temperature: the likelihood of n labels, with a log-normal prior around one."""
    rows, (label, other, doubt) = np.arange(len(z)), targets

    def minus_log_posterior(log_temperature: float) -> float:
        logs = _log_softmax(z / np.exp(log_temperature))
        loss = -float(((1 - doubt) * logs[rows, label] + doubt * logs[rows, other]).mean())
        return n * loss + log_temperature**2 / (2 * prior_deviation**2)

    grid = np.linspace(MIN_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE, GRID_STEPS)
    best = int(np.argmin([minus_log_posterior(value) for value in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, GRID_STEPS - 1)]
    golden = (np.sqrt(5) - 1) / 2
    while high - low > 1e-3:  # of the logarithm: the temperature is exact to 0.1 %
        lower, upper = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, upper) if minus_log_posterior(lower) < minus_log_posterior(upper) else (lower, high)
    return float(np.exp((low + high) / 2))


def _fit_vector(
    z: Array, targets: tuple[NDArray[Any], NDArray[Any], float], row_weights: Array, n: int
) -> tuple[Array, Array]:
    """Factor and bias of each class, with normal priors around one and zero."""
    from scipy.optimize import minimize

    label, other, doubt = targets
    m, c = z.shape
    soft_targets = np.zeros((m, c))
    soft_targets[np.arange(m), label] += 1 - doubt
    soft_targets[np.arange(m), other] += doubt
    weighted = row_weights[:, None]

    def loss_and_gradient(parameters: Array) -> tuple[float, Array]:
        weight, bias = parameters[:c], parameters[c:]
        logs = _log_softmax(z * weight + bias)
        # m rows stand for n shots: a shot may have several rows, or rows may be a subset. The priors weigh n shots.
        gradient = weighted * (np.exp(logs) - soft_targets) * n / m
        prior_of_weight, prior_of_bias = (weight - 1) / WEIGHT_DEVIATION**2, bias / BIAS_DEVIATION**2
        loss = -float((weighted * soft_targets * logs).sum()) * n / m
        loss += float(((weight - 1) * prior_of_weight + bias * prior_of_bias).sum()) / 2
        gradients = (gradient * z).sum(axis=0) + prior_of_weight, gradient.sum(axis=0) + prior_of_bias
        return loss, np.concatenate(gradients)

    result = minimize(loss_and_gradient, np.repeat([1.0, 0.0], c), jac=True, method="L-BFGS-B")
    return result.x[:c], result.x[c:]


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
