"""The table of metrics. Records, tables, reports, model cards, `eval` and `compare` read it: a new metric is one entry.

A metric of the table is a function of `Predictions` (one label per picture) or of `MultiLabelPredictions`.

Letters: m pictures, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np

from clipadapter.errors import InputError
from clipadapter.metrics.calibration import expected_calibration_error

Task = Literal["single-label", "multilabel"]
"""Whether a picture has one label, or any number of labels. Sentences write "multi-label"."""
Place = Literal["record", "metrics.json", "terminal", "comparison", "card", "report"]
"""Where a metric is shown.

- ``record``: records of `clipadapter bench`, and the tables and CSV files that are made from them
- ``metrics.json``: JSON output of `clipadapter eval`
- ``terminal``: text output of `clipadapter eval` and `clipadapter report`
- ``comparison``: ``table.md`` of `clipadapter compare`
- ``card``: model card of a saved model
- ``report``: HTML report
"""
ROUNDING_TOLERANCE = 1e-9  # a loss of certain and correct predictions can be below 0 by rounding errors
EVERYWHERE: frozenset[Place] = frozenset({"record", "metrics.json", "terminal", "comparison", "card", "report"})


@dataclass(frozen=True)
class MetricInfo:
    """One metric.

    Args:
        title: what tables call it.
        function: computes it from `Predictions`, always as a number, or from `MultiLabelPredictions`; there None says
            that it is not defined.
        unit: ``%`` for a share from 0 to 1 that is shown as a percentage, ``nats``, or ``""`` for a plain number.
        higher_is_better: False for losses and errors.
        shown: where it is shown.
        tasks: for which kind of labels it is defined.
        interval: 95 % confidence interval over test pictures in reports: Wilson's interval of a proportion; the
            percentile bootstrap; the same, shifted so that the resamples' mean is the value on all pictures, for
            metrics that are biased by duplicates in a resample; or none.
        hub_type: identifier of the metric on the Hugging Face hub, if it is not the name.
        optional: whether files of earlier versions lack it. A new metric sets this.
    """

    title: str
    function: Callable[[Any], float | None]
    unit: Literal["%", "nats", ""] = "%"
    higher_is_better: bool = True
    shown: frozenset[Place] = EVERYWHERE
    tasks: frozenset[Task] = frozenset({"single-label"})
    interval: Literal["wilson", "bootstrap", "centred bootstrap"] | None = None
    hub_type: str | None = None
    optional: bool = False

    @property
    def heading(self) -> str:
        """Header of a column, such as "accuracy %" or "log-loss"."""
        return f"{self.title} %" if self.unit == "%" else self.title

    @property
    def title_with_unit(self) -> str:
        """Such as "accuracy in %"."""
        return f"{self.title} in {self.unit}" if self.unit else self.title

    @property
    def scale(self) -> float:
        """Factor from the value to the number that is shown."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def digits(self) -> int:
        """Decimal places that are shown."""
        return 1 if self.unit == "%" else 3

    def format(self, value: float | None) -> str:
        """A value as tables show it, without its unit; "-" if it is not defined.

        >>> METRICS["accuracy"].format(0.5), METRICS["log_loss"].format(0.5), METRICS["accuracy"].format(None)
        ('50.0', '0.500', '-')
        """
        return "-" if value is None else f"{self.scale * value:.{self.digits}f}"

    def is_in_range(self, value: float) -> bool:
        """Whether the metric can have this value."""
        return isfinite(value) and value >= -ROUNDING_TOLERANCE and (value <= 1 or self.unit != "%")


def accuracy(predictions: Any) -> float:
    """Share of pictures whose most probable class is the true one."""
    return float(predictions.mean(predictions.correct))


def balanced_accuracy(predictions: Any) -> float:
    """Mean recall of the classes that occur among the true labels (Brodersen et al. 2010).

    Every class counts the same, however many test pictures it has.
    """
    occurs = predictions.true_counts > 0
    return float((predictions.true_positives[occurs] / predictions.true_counts[occurs]).mean())


def macro_f1(predictions: Any) -> float:
    """Mean F1 = 2 TP / (2 TP + FP + FN) of the classes that occur among true or predicted labels."""
    counts = predictions.true_counts + predictions.predicted_counts
    occurs = counts > 0
    return float((2 * predictions.true_positives[occurs] / counts[occurs]).mean()) if occurs.any() else 0.0


def micro_f1(predictions: Any) -> float:
    """F1 of all decisions together."""
    count = predictions.true_counts.sum() + predictions.predicted_counts.sum()
    return float(2 * predictions.true_positives.sum() / np.maximum(count, 1))


def _multilabel(title: str, function: Callable[[Any], float | None], *shown: Place, hub_type: str = "") -> MetricInfo:
    tasks: frozenset[Task] = frozenset({"multilabel"})
    return MetricInfo(title, function, shown=frozenset(shown), tasks=tasks, hub_type=hub_type or None)


METRICS: Mapping[str, MetricInfo] = {
    "accuracy": MetricInfo("accuracy", accuracy, interval="wilson"),
    "balanced_accuracy": MetricInfo(
        "balanced accuracy", balanced_accuracy, interval="centred bootstrap", optional=True
    ),
    "mean_average_precision": _multilabel(
        "mean average precision",
        lambda predictions: predictions.mean_average_precision,
        *("metrics.json", "terminal", "card"),
    ),
    "macro_f1": MetricInfo(
        "macro F1",
        macro_f1,
        tasks=frozenset({"single-label", "multilabel"}),
        interval="centred bootstrap",
        hub_type="f1",
    ),
    "micro_f1": _multilabel("micro F1", micro_f1, "metrics.json", "terminal", "card", hub_type="f1"),
    "sample_f1": _multilabel("sample F1", lambda predictions: float(predictions.f1_by_picture.mean()), "metrics.json"),
    "exact": _multilabel("exact match", lambda predictions: float(predictions.correct.mean()), "metrics.json"),
    "log_loss": MetricInfo(
        "log-loss",
        lambda predictions: predictions.mean(predictions.losses),
        unit="nats",
        higher_is_better=False,
        shown=EVERYWHERE - {"comparison"},
        interval="bootstrap",
    ),
    "brier": MetricInfo(
        "Brier score",
        lambda predictions: predictions.mean(predictions.squared_errors),
        unit="",
        higher_is_better=False,
        shown=frozenset({"report"}),
        interval="bootstrap",
    ),
    "calibration_error": MetricInfo(
        "calibration error",
        # No interval: the bootstrap of a binned calibration error is biased upward.
        lambda predictions: expected_calibration_error(predictions.probabilities, predictions.labels),
        higher_is_better=False,
        shown=frozenset({"metrics.json", "terminal", "card", "report"}),
    ),
}
"""All metrics by the key that files have, in the order of tables."""


def metrics_shown(place: Place, task: Task | None = None) -> dict[str, MetricInfo]:
    """The metrics that are shown in one place.

    Args:
        place: where.
        task: only those of this task; None: of all tasks.

    >>> list(metrics_shown("comparison"))
    ['accuracy', 'balanced_accuracy', 'macro_f1']
    """
    return {
        name: metric
        for name, metric in METRICS.items()
        if place in metric.shown and (task is None or task in metric.tasks)
    }


def check_metrics(values: Mapping[str, float], required: Mapping[str, MetricInfo] | None = None) -> None:
    """Check metrics that were read from a file.

    Args:
        values: by name.
        required: metrics that the file must have, except those that are optional.

    Raises:
        InputError: if there is no such metric, a value is out of range, or a metric is missing.

    >>> check_metrics({"acuracy": 0.5})
    Traceback (most recent call last):
    ...
    clipadapter.errors.InputError: there is no metric 'acuracy'; known: accuracy, balanced_accuracy, ...
    """
    for name, value in values.items():
        if name not in METRICS:
            raise InputError(f"there is no metric '{name}'; known: {', '.join(METRICS)}")
        if not METRICS[name].is_in_range(value):
            raise InputError(f"{METRICS[name].title} can't be {value}")
    missing = [name for name, metric in (required or {}).items() if not metric.optional and name not in values]
    if missing:
        raise InputError(f"metrics are missing: {', '.join(missing)}")
