"""Plot of a drift report: the stream over time, and the priors of the classes."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipadapter.monitor.messages import format_percent
from clipadapter.rendering.plots import BLUE, VERMILION, create_figure, save_png, style_axes, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from clipadapter.monitor.drift import ClassPrior, DriftReport

CURRENT_COLOUR, REFERENCE_COLOUR = VERMILION, BLUE
MAX_CLASSES = 15
"""Classes that are drawn: those whose prior changed most."""
MAX_NAME_LETTERS = 24
SECONDS_PER_DAY = 86_400


def plot_drift(report: DriftReport, path: str | Path) -> Path:
    """Write the plot as a PNG file; see `DriftReport.to_png`."""
    classes = sorted(report.classes, key=lambda prior: -abs(prior.current - prior.reference))[:MAX_CLASSES]
    figure = create_figure(11.0, max(5.6, 1.8 + 0.36 * len(classes)))
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1], squeeze=False)[0]
    over_time = left.subplots(2, 1, sharex=True)
    _plot_ood_rate(over_time[0], report)
    _plot_distance(over_time[1], report)
    _label_time_axis(over_time[1], report)
    _plot_priors(right.subplots(), classes, len(report.classes))
    title = "\n".join(textwrap.wrap(f"{report.n_pictures} pictures: {report.summary()}", 105))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, parse_math=False)
    return save_png(figure, path)


def _window_centres(report: DriftReport) -> list[float]:
    return [(window.start + window.end) / 2 for window in report.windows]


def _plot_ood_rate(axes: Axes, report: DriftReport) -> None:
    axes.set_title('share of "none of these"', fontsize=10, loc="left")
    style_axes(axes)
    points = [
        (x, *(100 * value for value in window.ood_rate))
        for x, window in zip(_window_centres(report), report.windows, strict=True)
        if window.ood_rate
    ]
    if not points or report.ood_rate is None:
        _show_text(axes, "this model can't reject pictures of none of its classes")
        return
    x, rates, low, high = zip(*points, strict=True)
    _plot_with_band(axes, x, rates, low, high, CURRENT_COLOUR)
    by_shots = report.reference == "shots"
    expected = report.ood_rate.target if by_shots else report.ood_rate.reference
    label = f"{'target' if by_shots else 'usual'} {format_percent(expected)}"
    axes.axhline(100 * expected, color=REFERENCE_COLOUR, linestyle="--", label=label)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("% of the pictures")
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _plot_distance(axes: Axes, report: DriftReport) -> None:
    axes.set_title("distance of the features from the reference", fontsize=10, loc="left")
    style_axes(axes)
    points = [
        (x, window.distance, window.distance_limit)
        for x, window in zip(_window_centres(report), report.windows, strict=True)
        if window.distance is not None and window.distance_limit is not None
    ]
    if not points:
        _show_text(axes, "this check was skipped")
        return
    x, distances, limits = zip(*points, strict=True)
    _plot_with_band(axes, x, distances, [-2] * len(x), limits, REFERENCE_COLOUR, "95 % if nothing changed")
    axes.set_ylabel("standard deviations")
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _plot_with_band(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    band_colour: str,
    band_label: str | None = None,
) -> None:
    axes.fill_between(x, low, high, color=band_colour, alpha=0.2, lw=0, label=band_label)
    axes.plot(x, y, color=CURRENT_COLOUR, marker="o", markersize=4)


def _label_time_axis(axes: Axes, report: DriftReport) -> None:
    """Label the axis by dates, or by numbers of pictures if the dates are not known."""
    times = [window.start_time for window in report.windows]
    if any(seconds is None for seconds in times):
        axes.set_xlabel("picture")
        return
    is_long = (times[-1] or 0) - (times[0] or 0) > 3 * SECONDS_PER_DAY
    date_format = "%Y-%m-%d" if is_long else "%m-%d %H:%M"
    labels = [time.strftime(date_format, time.localtime(seconds)) for seconds in times]
    step = -(-len(times) // 6)
    axes.set_xticks([window.start for window in report.windows][::step], labels[::step])
    axes.tick_params(axis="x", labelsize=8)


def _plot_priors(axes: Axes, classes: list[ClassPrior], n_classes: int) -> None:
    subset = f", the {len(classes)} of {n_classes} that changed most" if len(classes) < n_classes else ""
    axes.set_title(f"how frequent the classes are{subset}", fontsize=10, loc="left")
    style_axes(axes)
    y = list(range(len(classes)))[::-1]
    low, high = ([100 * getattr(prior, end) for prior in classes] for end in ("low", "high"))
    axes.hlines(y, low, high, color=CURRENT_COLOUR, lw=2)
    axes.plot([100 * prior.current for prior in classes], y, "o", color=CURRENT_COLOUR, label="now (95 %)")
    axes.plot([100 * prior.reference for prior in classes], y, "D", color=REFERENCE_COLOUR, markersize=5, label="usual")
    axes.set_yticks(y, [truncate(prior.name, MAX_NAME_LETTERS) for prior in classes], parse_math=False)
    axes.set_xlim(left=0)
    axes.set_xlabel("% of the pictures")
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _show_text(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9)
