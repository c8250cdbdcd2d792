"""How sure figures are: intervals over which test pictures happened to be taken.

Letters: m pictures, c classes, s systems that answered the same pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench import Score
from clipadapter.metrics import brier

Z = 1.959963984540054
"""97.5 % point of the normal distribution."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval.

    Args:
        value: on all test pictures.
        low: lower end; None if there is no interval.
        high: upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"value": self.value, "interval": None if self.low is None else [self.low, self.high]}


@dataclass(frozen=True)
class Figures:
    """What is said of one system.

    Args:
        accuracy: share of right answers, Wilson's interval, which stays honest where all are right.
        macro_f1: mean F1 of the classes that occur; bootstrap, moved to where the figure is: a resample has fewer
            different pictures, and a lower F1 for that alone.
        log_loss: in nats, bootstrap.
        brier: Brier score, bootstrap.
        calibration_error: in bins of equal mass; none has an interval, the bootstrap of it is biased upward.
        ahead: by how much the first system's accuracy is above this one's on the same pictures, paired bootstrap; None
            of the first itself.
    """

    accuracy: Figure
    macro_f1: Figure
    log_loss: Figure
    brier: Figure
    calibration_error: Figure
    ahead: Figure | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: None if figure is None else figure.to_dict() for name, figure in vars(self).items()}


def figures(scores: Mapping[str, Score], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Figures]:
    """Figures with intervals of systems that answered the same pictures; the first is what the others stand beside.

    Args:
        scores: by name.
        resamples: of the bootstrap; percentiles of these are the intervals.
        seed: of the resampling.
    """
    found = list(scores.values())
    truth = found[0].labels
    answers = [one.probabilities.argmax(axis=1) for one in found]
    columns = np.column_stack(
        [column for one, answer in zip(found, answers, strict=True) for column in _columns(one, answer)]
    )
    means, f1 = _resampled(columns, truth, answers, found[0].probabilities.shape[1], resamples, seed)
    told = {}
    for i, (name, one) in enumerate(scores.items()):
        right = means[:, 3 * i]
        ahead = found[0].evaluation.accuracy - one.evaluation.accuracy
        told[name] = Figures(
            accuracy=wilson(one.evaluation.accuracy, len(truth)),
            macro_f1=_centred(one.evaluation.macro_f1, f1[:, i]),
            log_loss=_between(one.log_loss, means[:, 3 * i + 1]),
            brier=_between(brier(one.probabilities, truth), means[:, 3 * i + 2]),
            calibration_error=Figure(one.calibration_error),
            ahead=_between(ahead, means[:, 0] - right) if i else None,
        )
    return told


def wilson(share: float, m: int) -> Figure:
    """A share of m pictures with Wilson's interval (1927).

    >>> found = wilson(1.0, 10)
    >>> round(found.low, 3), round(found.high, 3)
    (0.722, 1.0)
    """
    centre = (share + Z**2 / (2 * m)) / (1 + Z**2 / m)
    half = Z * np.sqrt(share * (1 - share) / m + Z**2 / (4 * m**2)) / (1 + Z**2 / m)
    return Figure(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def _columns(score: Score, answer: NDArray[np.int64]) -> Sequence[NDArray[np.float64]]:
    """Three figures of each picture: right, log-loss, Brier."""
    p, rows = score.probabilities, np.arange(len(answer))
    true = p[rows, score.labels]
    loss = -np.log(np.maximum(true, np.finfo(np.float64).tiny))
    return (answer == score.labels).astype(np.float64), loss, (p**2).sum(axis=1) - 2 * true + 1


def _resampled(
    columns: NDArray[np.float64],
    truth: NDArray[np.int64],
    answers: Sequence[NDArray[np.int64]],
    c: int,
    resamples: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means (resamples, 3 s) of the columns, and macro F1 (resamples, s), all of the same resamples."""
    rng, m = np.random.default_rng(seed), len(truth)
    means, f1 = np.empty((resamples, columns.shape[1])), np.empty((resamples, len(answers)))
    for r in range(resamples):
        weight = np.bincount(rng.integers(m, size=m), minlength=m).astype(np.float64)
        means[r] = weight @ columns / m
        true = np.bincount(truth, weight, c)
        for i, answer in enumerate(answers):
            called = np.bincount(answer, weight, c)
            hits = np.bincount(truth, weight * columns[:, 3 * i], c)
            there = true + called > 0
            f1[r, i] = (2 * hits[there] / (true + called)[there]).mean()
    return means, f1


def _centred(value: float, values: NDArray[np.float64]) -> Figure:
    found = _between(value, values + (value - values.mean()))
    return Figure(value, max(0.0, found.low or 0.0), min(1.0, found.high or 0.0))


def _between(value: float, values: NDArray[np.float64]) -> Figure:
    low, high = np.quantile(values, [0.025, 0.975])
    return Figure(value, float(low), float(high))
