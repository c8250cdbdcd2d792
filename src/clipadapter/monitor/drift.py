"""The result of drift detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHECKS = {
    "covariate-shift": "how the pictures look",
    "label-shift": "how frequent the classes are",
    "ood-rate": "none of the classes",
}
"""Title of each check by its name; the last one is the rate of pictures of none of the classes."""
MAX_NAMED_CLASSES = 3
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
class OodRate:
    """Share of the pictures that show none of the classes.

    Args:
        target: share of the pictures of the classes that the threshold of the model rejects.
        reference: share of the reference.
        current: share of the stream.
        low: lower end of Wilson's 95 % interval of ``current``.
        high: upper end.
    """

    target: float
    reference: float
    current: float
    low: float
    high: float


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


# ---- Results of the checks as phrases ----


def describe_covariate_shift(p_value: float) -> str:
    """Phrase for a change of the features."""
    return f"the pictures look different (p = {p_value:.2g})"


def describe_label_shift(classes: Sequence[ClassPrior], alpha: float, is_reliable: bool) -> str:
    """Phrase for a change of the class priors; the class with the smallest p-value comes first."""
    order = sorted(classes, key=lambda prior: (prior.p_value or 0.0, -abs(prior.current - prior.reference)))
    changed = [prior for prior in order if prior.p_value is not None and prior.p_value <= alpha] or order[:1]
    phrases = [_describe_class(prior, "is" if is_reliable else "seems") for prior in changed[:MAX_NAMED_CLASSES]]
    n_unnamed = len(changed) - MAX_NAMED_CLASSES
    return ", ".join(phrases) + (f", and {n_unnamed} more classes changed" if n_unnamed > 0 else "")


def describe_ood_rate(rate: OodRate, reference: str) -> str:
    """Phrase for pictures of none of the classes."""
    expected = (
        f"target {format_percent(rate.target)}" if reference == "shots" else f"usually {format_percent(rate.reference)}"
    )
    return f"{format_percent(rate.current)} are none of the classes ({expected})"


def _describe_class(prior: ClassPrior, verb: str) -> str:
    shares = f"({format_percent(prior.current)}, usually {format_percent(prior.reference)})"
    if prior.current < 0.001 or prior.current < prior.reference / 20:
        return f"'{prior.name}' {'has' if verb == 'is' else 'seems to have'} nearly vanished {shares}"
    if prior.reference < 0.001:
        return f"'{prior.name}' {verb} new {shares}"
    ratio = prior.current / prior.reference
    digits = ".2g" if ratio < 1 else ".1f"
    return f"'{prior.name}' {verb} {ratio:{digits}} times as frequent as usual {shares}"


def format_percent(share: float) -> str:
    """A share in percent.

    >>> format_percent(0.314), format_percent(0.004), format_percent(0.0)
    ('31 %', '0.4 %', '0 %')
    """
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"
