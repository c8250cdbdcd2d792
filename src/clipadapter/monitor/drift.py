"""The result of drift detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipadapter.monitor.ood_rate import OodRate

CHECKS = {
    "covariate-shift": "how the pictures look",
    "label-shift": "how frequent the classes are",
    "ood-rate": "none of the classes",
}
"""Title of each check by its name; the last one is the rate of pictures of none of the classes."""
FORMAT = 1
"""Format of `DriftReport.to_dict`, which files of ``--history`` have."""


@dataclass(frozen=True)
class CheckResult:
    """The result of one check, which is a statistical test.

    Args:
        check: one of `CHECKS`.
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
        low: lower end of the 95 % interval of ``current``; see `DriftReport.knows_confusions`.
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
        priors: estimated prior of each class, by the EM on the model's probabilities.
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
        knows_confusions: whether intervals of priors allow for the model's confusions, as its held-out shots show them;
            else they take its probabilities to be right.
        is_reliable: whether priors can be trusted: pictures of a class must look as before, and none of the classes
            must not be more frequent.
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
    knows_confusions: bool
    is_reliable: bool

    @property
    def alpha_is_exact(self) -> bool:
        """Whether drift is found wrongly in a share ``alpha`` of all runs, and not more often.

        Shots are few, were chosen, and were used by the fit: at 0.01, drift was found wrongly in 5.5 % of the runs.
        """
        return self.reference == "pictures"

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
        names = [prior.name for prior in self.classes]
        windows = [
            {**asdict(window), "priors": dict(zip(names, window.priors, strict=True))} for window in self.windows
        ]
        return {
            "format": FORMAT,
            "has_drift": self.has_drift,
            "summary": self.summary(),
            **asdict(self),
            "alpha_is_exact": self.alpha_is_exact,
            "skipped": [{"source": name, "error": reason} for name, reason in self.skipped],
            "windows": windows,
        }

    def plot(self, path: str | Path, title: str = "") -> Path:
        """Plot the stream over time and the priors of the classes.

        Args:
            path: PNG, PDF or SVG file to write.
            title: of the plot; by default the summary.

        Raises:
            InputError: if it can't be written.
        """
        from clipadapter.monitor.plot import plot_drift

        return plot_drift(self, path, title)


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
