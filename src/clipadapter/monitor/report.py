"""The result of drift detection: as data, in words, and as a plot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapter.rendering.plots import BLUE, GREY, VERMILION, create_figure, save_plot, set_title, style_axes, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHECKS = {
    "covariate-shift": "how the pictures look",
    "label-shift": "how frequent the classes are",
    "ood-rate": "none of the classes",
}
"""Title of each check by its name; the last one is the rate of pictures of none of the classes."""
MAX_NAMED_CLASSES = 3
CURRENT_COLOUR, REFERENCE_COLOUR = VERMILION, BLUE
MAX_CLASSES = 15  # classes that are drawn: those whose prior changed most
MAX_NAME_LETTERS = 24
SECONDS_PER_DAY = 86_400
FORMAT = 1  # format of `DriftReport.to_dict`, which files of ``--history`` have


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
            reject. All windows of a report have it, or none; so with the distance.
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
        p_values = [result.corrected_p_value for result in self.checks if result.corrected_p_value is not None]
        return f"no drift was found (p = {min(p_values):.2g})" if p_values else "no check could be run"

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

    def plot(self, path: str | Path) -> Path:
        """Plot the stream over time and the priors of the classes.

        Args:
            path: PNG, PDF or SVG file to write.

        Raises:
            InputError: if it can't be written.
        """
        classes = sorted(self.classes, key=lambda prior: -abs(prior.current - prior.reference))[:MAX_CLASSES]
        figure = create_figure(11.0, max(5.6, 1.8 + 0.36 * len(classes)))
        left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1], squeeze=False)[0]
        over_time = left.subplots(2, 1, sharex=True)
        _plot_ood_rate(over_time[0], self)
        _plot_distance(over_time[1], self)
        _label_time_axis(over_time[1], self)
        _plot_priors(right.subplots(), classes, len(self.classes))
        set_title(figure, f"{self.n_pictures} pictures: {self.summary()}")
        return save_plot(figure, path, "monitor")


# ---- Results of the checks as phrases ----


def describe_label_shift(classes: Sequence[ClassPrior], alpha: float, is_reliable: bool) -> str:
    """Phrase for a change of the class priors; the class with the smallest p-value comes first."""
    order = sorted(classes, key=lambda prior: (prior.p_value or 0.0, -abs(prior.current - prior.reference)))
    changed = [prior for prior in order if prior.p_value is not None and prior.p_value <= alpha] or order[:1]
    phrases = [_describe_class(prior, "is" if is_reliable else "seems") for prior in changed[:MAX_NAMED_CLASSES]]
    n_unnamed = len(changed) - MAX_NAMED_CLASSES
    return ", ".join(phrases) + (f", and {n_unnamed} more classes changed" if n_unnamed > 0 else "")


def describe_ood_rate(rate: OodRate, reference: str) -> str:
    """Phrase for pictures of none of the classes."""
    name, expected = ("target", rate.target) if reference == "shots" else ("usually", rate.reference)
    return f"{format_percent(rate.current)} are none of the classes ({name} {format_percent(expected)})"


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
    """A share in percent, such as "31 %", "0.4 %" or "0 %"."""
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


# ---- Plot ----


def _plot_ood_rate(axes: Axes, report: DriftReport) -> None:
    heading, rate = 'share of "none of these"', report.ood_rate
    if rate is None:
        _begin(axes, heading, missing="this model can't reject pictures of none of its classes")
        return
    shares, low, high = 100 * np.array([window.ood_rate for window in report.windows]).T
    _plot_with_band(axes, report, shares, low, high, CURRENT_COLOUR)
    name, expected = ("target", rate.target) if report.reference == "shots" else ("usual", rate.reference)
    axes.axhline(100 * expected, color=REFERENCE_COLOUR, linestyle="--")
    _begin(axes, heading, f"dashed: {name} {format_percent(expected)}; band: 95 %")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("% of the pictures")


def _plot_distance(axes: Axes, report: DriftReport) -> None:
    heading = "distance of the features from the reference"
    if report.windows[0].distance is None:
        _begin(axes, heading, missing="this check was skipped")
        return
    distances, limits = np.array([(window.distance, window.distance_limit) for window in report.windows]).T
    lowest = min(-2.5, distances.min()) - 0.3
    _plot_with_band(axes, report, distances, lowest, limits, REFERENCE_COLOUR)
    axes.set_ylim(bottom=lowest)
    axes.set_ylabel("standard deviations")
    _begin(axes, heading, "band: 95 % if nothing changed")


def _plot_with_band(axes: Axes, report: DriftReport, y: Any, low: Any, high: Any, band_colour: str) -> None:
    x = [(window.start + window.end) / 2 for window in report.windows]
    axes.fill_between(x, low, high, color=band_colour, alpha=0.16, linewidth=0)
    axes.plot(x, y, color=CURRENT_COLOUR, marker="o", markersize=5, linewidth=2, clip_on=False)


def _begin(axes: Axes, heading: str, note: str = "", missing: str = "") -> None:
    """Style axes, and write what they show, in grey at the right what their marks mean, or why nothing is shown."""
    style_axes(axes)
    axes.set_title(heading, fontsize=10, loc="left", parse_math=False)
    axes.set_title(note, fontsize=9, loc="right", color=GREY, parse_math=False)
    if missing:
        axes.text(0.5, 0.5, missing, transform=axes.transAxes, ha="center", va="center", fontsize=9)


def _label_time_axis(axes: Axes, report: DriftReport) -> None:
    """Label the axis by dates, or by numbers of pictures if the dates are not known."""
    times = [window.start_time for window in report.windows if window.start_time is not None]
    span = times[-1] - times[0] if times else 0
    date_format = "%Y-%m-%d" if span > 3 * SECONDS_PER_DAY else "%m-%d %H:%M" if span > 3600 else "%H:%M:%S"
    labels = [time.strftime(date_format, time.localtime(seconds)) for seconds in times]
    if len(set(labels)) < 2:  # the times are not known, or all files were written at once
        axes.set_xlabel("picture")
        return
    step = -(-len(labels) // 6)
    axes.set_xticks([window.start for window in report.windows][::step], labels[::step])
    axes.tick_params(axis="x", labelsize=8)


def _plot_priors(axes: Axes, classes: list[ClassPrior], n_classes: int) -> None:
    subset = f", the {len(classes)} of {n_classes} that changed most" if len(classes) < n_classes else ""
    _begin(axes, f"how frequent the classes are{subset}")
    y = list(range(len(classes)))[::-1]
    low, high = ([100 * getattr(prior, end) for prior in classes] for end in ("low", "high"))
    axes.hlines(y, low, high, color=CURRENT_COLOUR, alpha=0.25, linewidth=6)
    axes.plot([100 * prior.current for prior in classes], y, "o", color=CURRENT_COLOUR, label="now, with 95 % band")
    axes.plot([100 * prior.reference for prior in classes], y, "D", color=REFERENCE_COLOUR, markersize=5, label="usual")
    axes.set_yticks(y, [truncate(prior.name, MAX_NAME_LETTERS) for prior in classes], parse_math=False)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("% of the pictures")
    axes.figure.legend(loc="outside lower right", frameon=False, fontsize=9, ncols=2)
