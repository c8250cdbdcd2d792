"""Plot of a drift report: the stream over time, and the priors of the classes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipadapter.monitor.drift import format_percent
from clipadapter.rendering.plots import BLUE, GREY, VERMILION, create_figure, save_plot, set_title, style_axes, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from clipadapter.monitor.drift import ClassPrior, DriftReport

CURRENT_COLOUR, REFERENCE_COLOUR = VERMILION, BLUE
MAX_CLASSES = 15
"""Classes that are drawn: those whose prior changed most."""
MAX_NAME_LETTERS = 24
SECONDS_PER_DAY = 86_400


def plot_drift(report: DriftReport, path: str | Path, title: str = "") -> Path:
    """Write the plot as a PNG, PDF or SVG file; see `DriftReport.plot`."""
    classes = sorted(report.classes, key=lambda prior: -abs(prior.current - prior.reference))[:MAX_CLASSES]
    figure = create_figure(11.0, max(5.6, 1.8 + 0.36 * len(classes)))
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1], squeeze=False)[0]
    over_time = left.subplots(2, 1, sharex=True)
    _plot_ood_rate(over_time[0], report)
    _plot_distance(over_time[1], report)
    _label_time_axis(over_time[1], report)
    _plot_priors(right.subplots(), classes, len(report.classes))
    set_title(figure, title or f"{report.n_pictures} pictures: {report.summary()}")
    return save_plot(figure, path)


def _window_centres(report: DriftReport) -> list[float]:
    return [(window.start + window.end) / 2 for window in report.windows]


def _plot_ood_rate(axes: Axes, report: DriftReport) -> None:
    style_axes(axes)
    points = [
        (x, *(100 * value for value in window.ood_rate))
        for x, window in zip(_window_centres(report), report.windows, strict=True)
        if window.ood_rate
    ]
    if not points or report.ood_rate is None:
        _set_heading(axes, 'share of "none of these"')
        _show_text(axes, "this model can't reject pictures of none of its classes")
        return
    x, rates, low, high = zip(*points, strict=True)
    _plot_with_band(axes, x, rates, low, high, CURRENT_COLOUR)
    by_shots = report.reference == "shots"
    expected = report.ood_rate.target if by_shots else report.ood_rate.reference
    axes.axhline(100 * expected, color=REFERENCE_COLOUR, linestyle="--")
    label = f"{'target' if by_shots else 'usual'} {format_percent(expected)}"
    _set_heading(axes, 'share of "none of these"', f"dashed: {label}; band: 95 %")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("% of the pictures")


def _plot_distance(axes: Axes, report: DriftReport) -> None:
    style_axes(axes)
    points = [
        (x, window.distance, window.distance_limit)
        for x, window in zip(_window_centres(report), report.windows, strict=True)
        if window.distance is not None and window.distance_limit is not None
    ]
    if not points:
        _set_heading(axes, "distance of the features from the reference")
        _show_text(axes, "this check was skipped")
        return
    x, distances, limits = zip(*points, strict=True)
    lowest = min(-2.5, *distances) - 0.3
    _plot_with_band(axes, x, distances, [lowest] * len(x), limits, REFERENCE_COLOUR)
    axes.set_ylim(bottom=lowest)
    axes.set_ylabel("standard deviations")
    _set_heading(axes, "distance of the features from the reference", "band: 95 % if nothing changed")


def _plot_with_band(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    band_colour: str,
) -> None:
    axes.fill_between(x, low, high, color=band_colour, alpha=0.16, linewidth=0)
    axes.plot(x, y, color=CURRENT_COLOUR, marker="o", markersize=5, linewidth=2, clip_on=False)


def _set_heading(axes: Axes, text: str, note: str = "") -> None:
    """What axes show, and in grey at the right what their marks mean."""
    axes.set_title(text, fontsize=10, loc="left", parse_math=False)
    axes.set_title(note, fontsize=9, loc="right", color=GREY, parse_math=False)


def _label_time_axis(axes: Axes, report: DriftReport) -> None:
    """Label the axis by dates, or by numbers of pictures if the dates are not known."""
    times = [window.start_time for window in report.windows]
    if any(seconds is None for seconds in times):
        axes.set_xlabel("picture")
        return
    known = [seconds for seconds in times if seconds is not None]
    span = known[-1] - known[0]
    date_format = "%Y-%m-%d" if span > 3 * SECONDS_PER_DAY else "%m-%d %H:%M" if span > 3600 else "%H:%M:%S"
    labels = [time.strftime(date_format, time.localtime(seconds)) for seconds in known]
    if len(set(labels)) == 1:  # files that were written at once
        axes.set_xlabel("picture")
        return
    step = -(-len(labels) // 6)
    axes.set_xticks([window.start for window in report.windows][::step], labels[::step])
    axes.tick_params(axis="x", labelsize=8)


def _plot_priors(axes: Axes, classes: list[ClassPrior], n_classes: int) -> None:
    subset = f", the {len(classes)} of {n_classes} that changed most" if len(classes) < n_classes else ""
    style_axes(axes)
    _set_heading(axes, f"how frequent the classes are{subset}")
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


def _show_text(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9)
