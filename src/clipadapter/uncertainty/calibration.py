"""Calibrated probabilities: temperature and vector scaling (Guo et al. 2017), for few held-out shots.

Papers: Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599, section 4.2 (temperature and vector scaling); Platt
1999, section 2.2 (labels that are softened by as much as their number leaves open).

Dozens of held-out shots, not thousands, are what there is. Often all of them are right, and the likelihood then wants a
temperature of zero. So the n labels together count as wrong by a quarter of one more, the class that comes nearest
being the other; and the temperature is drawn to what is usual for the head at so many shots. The quarter and the spread
around what is usual are the best of those tried for 21 heads on development sets (docs/decisions/0016-calibration.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import ArtifactError, InputError

Array = NDArray[np.float64]
Method = Literal["temperature", "vector"]
METHODS = ("temperature", "vector")
MIN_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE, GRID_STEPS = -4.0, 6.0, 41
"""Least and largest logarithm of a temperature beside what is usual, and how many are tried at first."""
LABEL_DOUBT = 0.25
"""The labels together count as wrong by this share of one more label."""
LOG_TEMPERATURE_DEVIATION = 0.4
"""How far, as standard deviation of the logarithm, the temperature of one data set lies from what is usual."""
WEIGHT_DEVIATION, BIAS_DEVIATION = 0.2, 0.5
"""The same of vector scaling: of each class's factor around one, and of its bias."""
MAX_LOGITS = 2_000_000
"""Of more held-out logits than this, a random part of the rows is used."""


@dataclass(frozen=True, eq=False)
class Calibrator:
    """Turns logits into probabilities: softmax of ``weight * logits / temperature + bias``.

    Args:
        temperature: 1 leaves the logits as they are.
        weight: (c,) factor of each class, or None.
        bias: (c,) added to each class, or None.
        n: held-out shots that it was fitted to; 0 if it is only what is usual.

    >>> Calibrator(temperature=2.0).probabilities(np.array([[np.log(9.0), 0.0]])).round(3)
    array([[0.75, 0.25]])
    """

    temperature: float = 1.0
    weight: Array | None = None
    bias: Array | None = None
    n: int = 0

    def log_probabilities(self, logits: NDArray[Any]) -> Array:
        """Logits (m, c) to log-probabilities (m, c)."""
        z = np.asarray(logits, np.float64) / self.temperature
        if self.weight is not None and self.bias is not None:
            z = z * self.weight + self.bias
        return _log_softmax(z)

    def probabilities(self, logits: NDArray[Any]) -> Array:
        """Logits (m, c) to probabilities (m, c), rows sum to one."""
        return np.exp(self.log_probabilities(logits))

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Facts for JSON, and arrays by name."""
        arrays = {} if self.weight is None or self.bias is None else {"weight": self.weight, "bias": self.bias}
        return {"temperature": self.temperature, "n": self.n}, arrays

    @classmethod
    def from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], classes: int) -> Calibrator:
        """What `state` gave.

        Raises:
            ArtifactError: if it is not of so many classes, or a value can't be.
        """
        try:
            temperature, n = float(facts["temperature"]), int(facts["n"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the model's calibration is damaged: {error}") from error
        vectors = {name: np.asarray(arrays[name], np.float64) for name in ("weight", "bias") if name in arrays}
        shapes = [vector.shape for vector in vectors.values()]
        if not (0 < temperature < np.inf) or n < 0 or len(shapes) == 1 or any(shape != (classes,) for shape in shapes):
            raise ArtifactError(f"the model's calibration does not fit {classes} classes")
        return cls(temperature, vectors.get("weight"), vectors.get("bias"), n)


def learn_calibrator(
    logits: NDArray[Any],
    labels: NDArray[Any],
    *,
    method: Method = "temperature",
    usual: float = 1.0,
    n: int | None = None,
    seed: int = 0,
) -> Calibrator:
    """Learn a calibrator of the full fit from out-of-fold logits of the shots.

    Args:
        logits: (r, c), as large as those of the full fit.
        labels: (r,) class positions.
        method: "temperature", one number; or "vector", a factor and a bias a class besides, drawn to one and zero.
        usual: temperature that is usual for such a head at so many shots.
        n: how many different shots the rows are of; all if not given.
        seed: of the part of the rows that is taken if there are very many.

    Raises:
        InputError: if shapes don't go together, a value is not finite, or the method is unknown.

    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]] * 500)
    >>> labels = np.array([0, 0, 1, 1] * 500)
    >>> round(float(learn_calibrator(logits, labels).probabilities(logits)[0, 0]), 2)
    0.75
    """
    z, y = np.asarray(logits, np.float64), np.asarray(labels)
    if z.ndim != 2 or y.shape != (len(z),) or not len(z) or y.min() < 0 or y.max() >= z.shape[1]:
        raise InputError(f"held-out logits {z.shape} and labels {y.shape} don't go together")
    if not np.isfinite(z).all():
        raise InputError("held-out logits must be finite")
    if method not in METHODS:
        raise InputError(f"calibration is one of {', '.join(METHODS)}, not {method!r}")
    count = len(z) if n is None else n
    rows = max(1, MAX_LOGITS // z.shape[1])
    if len(z) > rows:
        kept = np.random.default_rng(seed).choice(len(z), rows, replace=False)
        z, y = z[kept], y[kept]
    targets = _soft_targets(z, y, count)
    found = _fit_temperature(z / usual, targets, count) * usual
    calibrator = Calibrator(found, n=count)
    if method == "vector":
        weight, bias = _fit_vector(z / found, targets, count)
        calibrator = replace(calibrator, weight=weight, bias=bias)
    return calibrator


def _soft_targets(z: Array, y: NDArray[Any], n: int) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Label, the most probable other class, and the probability that the soft target gives to this one."""
    others = z.copy()
    others[np.arange(len(y)), y] = -np.inf
    return y, others.argmax(axis=1), LABEL_DOUBT / (n + 1)


def _loss(z: Array, targets: tuple[NDArray[Any], NDArray[Any], float]) -> float:
    label, other, share = targets
    logs, rows = _log_softmax(z), np.arange(len(z))
    return -float(((1 - share) * logs[rows, label] + share * logs[rows, other]).mean())


def _fit_temperature(z: Array, targets: tuple[NDArray[Any], NDArray[Any], float], n: int) -> float:
    """Maximum a posteriori temperature: the likelihood of n labels, with a log-normal prior around one."""

    def minus_log_posterior(at: float) -> float:
        return n * _loss(z / np.exp(at), targets) + at**2 / (2 * LOG_TEMPERATURE_DEVIATION**2)

    places = np.linspace(MIN_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE, GRID_STEPS)
    best = int(np.argmin([minus_log_posterior(at) for at in places]))
    low, high = places[max(best - 1, 0)], places[min(best + 1, GRID_STEPS - 1)]
    golden = (np.sqrt(5) - 1) / 2
    while high - low > 1e-3:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if minus_log_posterior(left) < minus_log_posterior(right) else (left, high)
    return float(np.exp((low + high) / 2))


def _fit_vector(z: Array, targets: tuple[NDArray[Any], NDArray[Any], float], n: int) -> tuple[Array, Array]:
    """Factor and bias of each class, with normal priors around one and zero."""
    from scipy.optimize import minimize

    label, other, share = targets
    m, c = z.shape
    wanted = np.zeros((m, c))
    wanted[np.arange(m), label] += 1 - share
    wanted[np.arange(m), other] += share

    def loss_and_gradient(both: Array) -> tuple[float, Array]:
        weight, bias = both[:c], both[c:]
        logs = _log_softmax(z * weight + bias)
        slope = (np.exp(logs) - wanted) * n / m
        far = (weight - 1) / WEIGHT_DEVIATION**2, bias / BIAS_DEVIATION**2
        loss = -float((wanted * logs).sum()) * n / m + float(((weight - 1) * far[0] + bias * far[1]).sum()) / 2
        return loss, np.concatenate([(slope * z).sum(axis=0) + far[0], slope.sum(axis=0) + far[1]])

    found = minimize(loss_and_gradient, np.repeat([1.0, 0.0], c), jac=True, method="L-BFGS-B")
    return found.x[:c], found.x[c:]


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
