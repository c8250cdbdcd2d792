"""A metric over the number of shots: lines with bands of one standard deviation, and zero-shot as a star."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipadapter.metrics import METRICS
from clipadapter.rendering.curves import MAX_COLOURED_LINES, Curve, draw_curves
from clipadapter.rendering.marks import NOT_AS_PUBLISHED, TRANSDUCTIVE
from clipadapter.rendering.method_colours import assign_styles
from clipadapter.rendering.plots import GREY, create_figure, format_greek, set_subtitle, set_title, style_axes, truncate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = f" {TRANSDUCTIVE}{NOT_AS_PUBLISHED}"
NAMED_METHODS = ("clip-adapter", "auto", "linear-probe")
"""Always among the lines in colour, if they take part."""
WITHOUT_SHOTS = "zero-shot"
"""Drawn as a star at 0 shots, as in the papers."""


@dataclass(frozen=True, eq=False)
class ShotSeries:
    """The figures of a head by number of shots.

    Args:
        name: of the head in the plot.
        method: registered name of its method, for the colour.
        shots: (n,) rising.
        mean: (n,)
        sd: (n,) standard deviation over the draws.
        is_named: whether it is always in colour.
    """

    name: str
    method: str
    shots: NDArray[np.float64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    is_named: bool = False


def learning_curve(
    series: Sequence[ShotSeries],
    shots: Sequence[int],
    note: str,
    *,
    metric: str = "accuracy",
    title: str = "",
    size: tuple[float, float] = (8.0, 4.8),
    level: tuple[str, float] | None = None,
) -> Figure:
    """Draw figures over the number of shots, on a log axis with 0 at its left if zero-shot takes part.

    At most five lines are in colour, with their name at their end: the method of the paper, ``auto``, the linear probe,
    and the best of the others. The rest is thin and grey.

    Args:
        series: heads with figures, as they are shown.
        shots: ticks of the axis, rising.
        note: above the axes, such as what a band means.
        metric: name of the metric.
        title: above the plot.
        size: in inches.
        level: name and value of a grey level.
    """
    figure = create_figure(*size)
    axes, info = figure.add_subplot(), METRICS[metric]
    levels = [one for one in series if one.method == WITHOUT_SHOTS]
    lines = [one for one in series if one.method != WITHOUT_SHOTS]
    coloured = _foremost(lines, info.higher_is_better)
    # The method of the paper is drawn above the others.
    shown = sorted([*levels[:2], *coloured], key=lambda one: one.method != NAMED_METHODS[0])
    zero = np.log2(shots[0]) - 1
    curves = []
    for one, style in zip(shown, assign_styles([one.method for one in shown]), strict=True):
        is_level = one.method == WITHOUT_SHOTS
        x, y = np.log2(one.shots), one.mean
        if is_level:
            # Shots change nothing; with test pictures that depend on the draw, the figures differ slightly.
            x, y = np.array([zero, np.log2(shots[-1])]), np.full(2, one.mean.mean())
        label = f"{truncate(one.name)}  {info.format(y[-1] / info.scale)}"
        band = None if is_level else one.sd
        curves.append(Curve(format_greek(label), x, y, band, style.colour, style.marker, is_level=is_level))
    if level is not None:
        ends = np.array([zero if levels else np.log2(shots[0]), np.log2(shots[-1])])
        label = f"{level[0]}  {info.format(level[1])}"
        curves.append(Curve(label, ends, np.full(2, info.scale * level[1]), None, GREY, marker="", is_level=True))
    others = [(np.log2(one.shots), one.mean) for one in lines if one not in coloured]
    ticks, names = list(np.log2(shots)), [str(n) for n in shots]
    if levels:
        ticks, names = [zero, *ticks], ["0", *names]
    axes.set_xticks(ticks, names)
    margin = 0.04 * max(ticks[-1] - ticks[0], 1)
    axes.set_xlim(ticks[0] - margin, ticks[-1] + margin)
    axes.set_xlabel("shots per class")
    axes.set_ylabel(info.title_with_unit)
    style_axes(axes)
    draw_curves(axes, curves, others)
    set_subtitle(axes, note + (f"; grey: {len(others)} other heads" if others else ""))
    set_title(figure, title)
    return figure


def _foremost(lines: Sequence[ShotSeries], higher_is_better: bool) -> list[ShotSeries]:
    """The lines in colour: all if they are few, else the named ones and the best on average; the best comes first."""
    order = sorted(lines, key=lambda one: float(one.mean.mean()), reverse=higher_is_better)
    named = [one for one in order if one.is_named or one.name.rstrip(MARKS) in NAMED_METHODS]
    chosen = [*named, *(one for one in order if one not in named)][:MAX_COLOURED_LINES]
    return [one for one in order if one in chosen]
