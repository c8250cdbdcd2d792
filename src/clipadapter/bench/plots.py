"""Learning curves and confusion matrices as PNG, PDF and SVG files."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.grids import head_names
from clipadapter.bench.pivot import metric_value, pivot_runs
from clipadapter.bench.run import Run
from clipadapter.bench.summary import Reference, check_runs
from clipadapter.metrics import METRICS, Evaluation
from clipadapter.rendering.curves import MAX_COLOURED_LINES, Curve, draw_curves
from clipadapter.rendering.marks import NOT_AS_PUBLISHED, TRANSDUCTIVE
from clipadapter.rendering.method_colours import assign_styles
from clipadapter.rendering.plots import (
    GREY,
    SUBTITLE_LETTERS_PER_INCH,
    create_figure,
    format_greek,
    save_plot,
    set_subtitle,
    set_title,
    style_axes,
    truncate,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = f" {TRANSDUCTIVE}{NOT_AS_PUBLISHED}"
NAMED_METHODS = ("clip-adapter", "auto", "linear-probe")
"""Always among the lines in colour, if they take part."""
WITHOUT_SHOTS = "zero-shot"
"""Drawn as a star at 0 shots, as in the papers."""


def draw_learning_curve(runs: Sequence[Run], path: str | Path, title: str = "", metric: str = "accuracy") -> Path:
    """Draw a metric over the number of shots: lines with bands of one standard deviation, and zero-shot as a star.

    At most five lines are in colour, with their name at their end: the method of the paper, ``auto``, the linear probe,
    and the best of the others. The rest is thin and grey.

    Args:
        runs: records of one comparison.
        path: PNG, PDF or SVG file to write.
        title: above the plot.
        metric: name of the metric.

    Raises:
        InputError: if there are no records, or the file can't be written.
    """
    return save_plot(learning_curve_figure(runs, title, metric), path)


def learning_curve_figure(
    runs: Sequence[Run],
    title: str = "",
    metric: str = "accuracy",
    size: tuple[float, float] = (8.0, 4.8),
    reference: Reference | None = None,
) -> Figure:
    """The figure of `draw_learning_curve`; its size is in inches, and a reference is a grey level."""
    check_runs(runs, metric)
    table, factor, value = pivot_runs(runs), METRICS[metric].scale, metric_value(metric)
    series = []
    for row, name in head_names(table).items():
        cells = [(n, cell) for n in table.parts if (cell := table.cell(row, n, value)).values]
        if cells:
            points = np.array([(n, factor * cell.mean, factor * cell.sd) for n, cell in cells])
            series.append(ShotSeries(name, table.runs(row)[0].method, *points.T))
    n_seeds = len({run.seed for run in runs})
    figure = create_figure(*size)
    axes = figure.add_subplot()
    draw_shot_series(
        axes,
        series,
        [int(n) for n in table.parts],
        f"mean ± sd of {n_seeds} draws" if n_seeds > 1 else "one draw",
        metric,
        reference,
    )
    axes.set_ylabel(METRICS[metric].title_with_unit)
    set_title(figure, title)
    return figure


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


def draw_shot_series(
    axes: Axes,
    series: Sequence[ShotSeries],
    shots: Sequence[int],
    note: str,
    metric: str = "accuracy",
    reference: Reference | None = None,
) -> None:
    """Draw figures over the number of shots, on a log axis with 0 at its left if zero-shot takes part.

    Args:
        axes: empty.
        series: heads with figures.
        shots: ticks of the axis, rising.
        note: above the axes, such as what a band means.
        metric: name of the metric.
        reference: a level in grey.
    """
    levels = [one for one in series if one.method == WITHOUT_SHOTS]
    lines = [one for one in series if one.method != WITHOUT_SHOTS]
    coloured = _foremost(lines, METRICS[metric].higher_is_better)
    # The method of the paper is drawn above the others.
    shown = sorted([*levels[:2], *coloured], key=lambda one: one.method != NAMED_METHODS[0])
    styles = assign_styles([one.method for one in shown])
    zero = np.log2(shots[0]) - 1
    curves = []
    for one, style in zip(shown, styles, strict=True):
        is_level = one.method == WITHOUT_SHOTS
        x, y = np.log2(one.shots), one.mean
        if is_level:
            # Shots change nothing; with test pictures that depend on the draw, the figures differ slightly.
            x, y = np.array([zero, np.log2(shots[-1])]), np.full(2, one.mean.mean())
        band = None if is_level else one.sd
        label = f"{one.name}  {METRICS[metric].format(y[-1] / METRICS[metric].scale)}"
        curves.append(Curve(format_greek(label), x, y, band, style.colour, style.marker, is_level=is_level))
    if reference is not None:
        label = f"{reference.name}  {METRICS[metric].format(reference.metrics[metric])}"
        level = np.full(2, METRICS[metric].scale * reference.metrics[metric])
        ends = np.array([zero if levels else np.log2(shots[0]), np.log2(shots[-1])])
        curves.append(Curve(label, ends, level, None, GREY, marker="", is_level=True))
    others = [(np.log2(one.shots), one.mean) for one in lines if one not in coloured]
    ticks, names = list(np.log2(shots)), [str(n) for n in shots]
    if levels:
        ticks, names = [zero, *ticks], ["0", *names]
    axes.set_xticks(ticks, names)
    margin = 0.04 * max(ticks[-1] - ticks[0], 1)
    axes.set_xlim(ticks[0] - margin, ticks[-1] + margin)
    axes.set_xlabel("shots per class")
    style_axes(axes)
    draw_curves(axes, curves, others)
    set_subtitle(axes, note + (f"; grey: {len(others)} other heads" if others else ""))


def _foremost(lines: Sequence[ShotSeries], higher_is_better: bool) -> list[ShotSeries]:
    """The lines in colour: all if they are few, else the named ones and the best on average; the best comes first."""
    order = sorted(lines, key=lambda one: float(one.mean.mean()), reverse=higher_is_better)
    named = [one for one in order if one.is_named or one.name.rstrip(MARKS) in NAMED_METHODS]
    chosen = [*named, *(one for one in order if one not in named)][:MAX_COLOURED_LINES]
    return [one for one in order if one in chosen]


def draw_confusion_matrix(evaluation: Evaluation, path: str | Path, title: str = "", limit: int = 25) -> Path:
    """Draw which classes are predicted as which. Of many classes only those with most mistakes are drawn.

    Args:
        evaluation: of the predictions.
        path: PNG, PDF or SVG file to write.
        title: above the plot.
        limit: maximum number of drawn classes.

    Raises:
        InputError: if the file can't be written.
    """
    return save_plot(confusion_figure(evaluation, title, limit), path)


def confusion_figure(evaluation: Evaluation, title: str = "", limit: int = 25) -> Figure:
    """The figure of `draw_confusion_matrix`."""
    classes = worst_classes(evaluation.confusion, limit)
    counts, columns = (
        evaluation.confusion[np.ix_(classes, classes)],
        [evaluation.classes[i].name for i in classes],
    )
    n_others = len(evaluation.classes) - len(classes)
    if n_others:
        others = evaluation.confusion[classes].sum(axis=1) - counts.sum(axis=1)
        counts, columns = np.column_stack([counts, others]), [*columns, f"{n_others} others"]
    totals = evaluation.confusion[classes].sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    side = 0.34 if len(classes) > 8 else 0.75
    figure = create_figure(max(5.0, 2.6 + side * len(columns)), 2.4 + side * len(classes))
    axes = figure.add_subplot()
    is_right: NDArray[np.bool_] = np.eye(*counts.shape) > 0
    for part, colours in ((is_right, "Blues"), (~is_right, "Oranges")):
        # Up to 1.15, so that the darkest colour still has the hue.
        axes.imshow(np.ma.masked_array(shares, ~part | (counts == 0)), cmap=colours, vmin=-0.05, vmax=1.15)
    axes.set_facecolor("#f4f4f2")
    _name_axes(axes, columns, [f"{evaluation.classes[i].name}" for i in classes])
    _write_counts(axes, counts, shares)
    note = f"{len(classes)} of {len(evaluation.classes)} classes, those with most mistakes; " if n_others else ""
    note += "blue: right, orange: wrong; darker: a larger share of the row"
    # Few classes make narrow axes, and the layout cuts off what is wider than the figure.
    set_subtitle(axes, "\n".join(textwrap.wrap(note, max(20, int(SUBTITLE_LETTERS_PER_INCH * side * len(columns))))))
    set_title(figure, title)
    return figure


def worst_classes(confusion: NDArray[np.int64], limit: int) -> list[int]:
    """Positions of the classes with the most mistakes, as true or predicted class, in class order.

    >>> worst_classes(np.array([[5, 0, 0], [0, 3, 2], [0, 1, 4]]), limit=2)
    [1, 2]
    """
    if len(confusion) <= limit:
        return list(range(len(confusion)))
    wrong = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * np.diag(confusion)
    return sorted(int(i) for i in np.argsort(-wrong, kind="stable")[:limit])


def _name_axes(axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    long = max(len(name) for name in columns) > 12 or len(columns) > 8
    turn: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if long else {}
    size = 9 if len(columns) > 8 else 10
    axes.set_xticks(range(len(columns)), [truncate(name) for name in columns], fontsize=size, parse_math=False, **turn)
    axes.set_yticks(range(len(rows)), [truncate(name) for name in rows], fontsize=size, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)


def _write_counts(axes: Axes, counts: NDArray[np.int64], fractions: NDArray[np.float64]) -> None:
    size = 8 if len(counts) > 8 else 11
    for i, j in np.argwhere(counts):
        colour = "white" if fractions[i, j] > 0.6 else "black"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=size, color=colour)
