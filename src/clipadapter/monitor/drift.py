"""The result of drift detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipadapter.monitor.ood_rate import OodRate

CHECKS = {"looks": "how the pictures look", "shares": "how frequent the classes are", "none": "none of the classes"}
"""Title of each check by its name: covariate shift, label shift, and the rate of pictures of none of the classes."""


@dataclass(frozen=True)
class CheckResult:
    """The result of one check, which is a statistical test.

    Args:
        check: "looks", "shares" or "none".
        p_value: probability of such a difference if nothing changed; None if the check was not run.
        corrected_p_value: the same, corrected for the number of checks (Holm 1979).
        is_significant: whether the corrected p-value is not above alpha.
        message: the result as a phrase, or why the check was not run.
    """

    check: str
    p_value: float | None
    corrected_p_value: float | None
    is_significant: bool
    message: str


@dataclass(frozen=True)
class ClassPrior:
    """How frequent a class is.

    Args:
        name: of the class.
        reference: its prior in the reference.
        current: its prior in the stream.
        low: lower end of the 95 % interval of ``current``.
        high: upper end.
        p_value: probability of such a difference in any of the classes if nothing changed; None if it was not tested.
    """

    name: str
    reference: float
    current: float
    low: float
    high: float
    p_value: float | None


@dataclass(frozen=True)
class Window:
    """Consecutive pictures of the stream.

    Args:
        start: index of the first picture, from 0, in the order of the stream.
        end: index after the last picture.
        start_time: when the first picture was taken, in seconds since 1970; None if that is not known.
        ood_rate: share that is none of the classes, with the ends of Wilson's 95 % interval; None if the model can't
            reject.
        mean_confidence: mean probability of the likeliest class.
        distance: discrepancy between the features and those of the reference, in standard deviations of the draws
            where nothing changed; None if it was not measured.
        distance_limit: the distance that 95 % of these draws stay below.
        priors: estimated prior of each class.
    """

    start: int
    end: int
    start_time: float | None
    ood_rate: tuple[float, float, float] | None
    mean_confidence: float
    distance: float | None
    distance_limit: float | None
    priors: tuple[float, ...]


@dataclass(frozen=True)
class DriftReport:
    """The result of `detect_drift`.

    Args:
        n_pictures: how many pictures of the stream were used.
        n_repeated: how many more were copies of a picture of the stream.
        skipped: (name, reason) of the pictures that can't be read.
        reference: what the stream was compared with: "shots" or "pictures".
        n_reference: how many these were.
        alpha: probability of a false alarm.
        checks: the results, in the order of `CHECKS`.
        classes: the prior of each class.
        ood_rate: share of the pictures that show none of the classes; None if the model can't reject.
        windows: the stream over time.
    """

    n_pictures: int
    n_repeated: int
    skipped: tuple[tuple[str, str], ...]
    reference: str
    n_reference: int
    alpha: float
    checks: tuple[CheckResult, ...]
    classes: tuple[ClassPrior, ...]
    ood_rate: OodRate | None
    windows: tuple[Window, ...]

    @property
    def has_drift(self) -> bool:
        """Whether any check is significant."""
        return any(result.is_significant for result in self.checks)

    def summary(self) -> str:
        """The result in one line."""
        messages = [result.message for result in self.checks if result.is_significant]
        if messages:
            return f"drift: {'; '.join(messages)}"
        tested = [result for result in self.checks if result.p_value is not None]
        smallest = min((result.corrected_p_value or 0.0 for result in tested), default=1.0)
        return f"no drift was found (p = {smallest:.2g})" if tested else "no check could be run"

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values; the keys are a format, since files of ``--history`` have them."""
        return {
            "drift": self.has_drift,
            "verdict": self.summary(),
            "pictures": self.n_pictures,
            "repeated": self.n_repeated,
            "skipped": [{"source": name, "error": reason} for name, reason in self.skipped],
            "reference": self.reference,
            "reference_pictures": self.n_reference,
            "alpha": self.alpha,
            "findings": [_rename_attributes(result, CHECK_KEYS) for result in self.checks],
            "classes": [_rename_attributes(prior, PRIOR_KEYS) for prior in self.classes],
            "none": None if self.ood_rate is None else _rename_attributes(self.ood_rate, RATE_KEYS),
            "windows": [_window_to_dict(window, [prior.name for prior in self.classes]) for window in self.windows],
        }

    def to_png(self, path: str | Path) -> Path:
        """Plot the stream over time and the priors of the classes.

        Args:
            path: PNG file to write.

        Raises:
            InputError: if it can't be written.
        """
        from clipadapter.monitor.plot import plot_drift

        return plot_drift(self, path)


# Attributes and their JSON keys.
CHECK_KEYS = {
    "check": "check",
    "p_value": "p",
    "corrected_p_value": "corrected",
    "is_significant": "found",
    "message": "words",
}
PRIOR_KEYS = {"name": "name", "reference": "usual", "current": "now", "low": "low", "high": "high", "p_value": "p"}
RATE_KEYS = {"target": "rate", "reference": "usual", "current": "now", "low": "low", "high": "high"}


def _rename_attributes(value: Any, keys: Mapping[str, str]) -> dict[str, Any]:
    return {key: getattr(value, attribute) for attribute, key in keys.items()}


def _window_to_dict(window: Window, class_names: Sequence[str]) -> dict[str, Any]:
    rate = window.ood_rate
    return {
        "start": window.start,
        "end": window.end,
        "begins": window.start_time,
        "none": None if rate is None else dict(zip(("now", "low", "high"), rate, strict=True)),
        "probability": window.mean_confidence,
        "distance": window.distance,
        "chance": window.distance_limit,
        "shares": dict(zip(class_names, window.priors, strict=True)),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: Holm (1979, Scandinavian Journal of Statistics 6:65-70).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
