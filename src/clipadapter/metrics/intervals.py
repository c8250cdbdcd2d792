"""Confidence intervals: Wilson's for a proportion, the bootstrap over test pictures for other metrics.

Letters: m pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.metrics.evaluation import Predictions
from clipadapter.metrics.table import MetricInfo, metrics_shown

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution, for two-sided intervals at 95 %


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % confidence interval.

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
class MetricsWithIntervals:
    """Metrics of one system with their confidence intervals.

    Args:
        metrics: by name, in the order of `METRICS`.
        accuracy_lead: accuracy of the first system minus that of this one, paired bootstrap; None for the first system.
    """

    metrics: dict[str, Estimate]
    accuracy_lead: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        estimates = {**self.metrics, "ahead": self.accuracy_lead}
        return {name: None if estimate is None else estimate.to_dict() for name, estimate in estimates.items()}


def wilson_interval(proportion: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion at 95 % (Wilson 1927).

    Unlike the normal approximation it does not have length zero at proportions of 0 and 1. It equals
    ``scipy.stats.binomtest(k, n).proportion_ci(method="wilson")``, without a dependency of the runtime on SciPy.

    Args:
        proportion: k / n.
        n: number of trials.

    Returns:
        Lower and upper end.

    >>> [round(end, 3) for end in wilson_interval(1.0, 10)]
    [0.722, 1.0]
    """
    z = Z_95
    centre = (proportion + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * sqrt(proportion * (1 - proportion) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def percentile_interval(value: float, resampled: NDArray[np.float64]) -> Estimate:
    """A value with the 95 % percentile interval of its bootstrap (Efron and Tibshirani 1993, section 13.3).

    Args:
        value: on all data.
        resampled: (resamples,) the value on each resample.

    >>> percentile_interval(0.5, np.arange(81) / 80)
    Estimate(value=0.5, low=0.025, high=0.975)
    """
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def bootstrap_metrics(
    systems: Mapping[str, Predictions], resamples: int = 2000, seed: int = 0
) -> dict[str, MetricsWithIntervals]:
    """Estimate the metrics of reports for systems that predicted the same pictures; differences are paired.

    All systems and metrics share the resamples of the pictures. ``scipy.stats.bootstrap`` resamples anew for each
    statistic, so differences between systems would not be paired.

    Args:
        systems: by name; the first is the one that the others are compared with.
        resamples: number of bootstrap resamples.
        seed: of the resampling.
    """
    metrics = metrics_shown("report", "single-label")
    bootstrapped = [name for name, metric in metrics.items() if metric.interval is not None]
    resampled = {system: {name: np.empty(resamples) for name in bootstrapped} for system in systems}
    rng, m = np.random.default_rng(seed), len(next(iter(systems.values())).labels)
    for r in range(resamples):
        weights = np.bincount(rng.integers(m, size=m), minlength=m).astype(np.float64)
        for system, predictions in systems.items():
            resample = predictions.reweighted(weights)
            for name in bootstrapped:
                resampled[system][name][r] = metrics[name].function(resample)
    first, results = next(iter(systems)), dict[str, MetricsWithIntervals]()
    for system, predictions in systems.items():
        own, lead, estimates = resampled[system], None, {}
        for name, metric in metrics.items():
            estimates[name] = _estimate(float(metric.function(predictions) or 0.0), metric, own.get(name), m)
        if system != first:
            difference = results[first].metrics["accuracy"].value - estimates["accuracy"].value
            lead = percentile_interval(difference, resampled[first]["accuracy"] - own["accuracy"])
        results[system] = MetricsWithIntervals(estimates, lead)
    return results


def _estimate(value: float, metric: MetricInfo, resampled: NDArray[np.float64] | None, m: int) -> Estimate:
    interval = metric.interval
    if interval == "wilson":
        return Estimate(value, *wilson_interval(value, m))
    if interval is None or resampled is None:
        return Estimate(value)
    if interval == "bootstrap":
        return percentile_interval(value, resampled)
    # A resample has fewer different pictures, which alone lowers F1 and recall. So it is centred on the value.
    centred = percentile_interval(value, resampled + (value - resampled.mean()))
    return Estimate(value, max(0.0, centred.low or 0.0), min(1.0, centred.high or 0.0))
