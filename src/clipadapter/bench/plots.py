"""Learning curves of records: a metric over the number of shots, with bands of one standard deviation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clipadapter.bench.grids import head_names
from clipadapter.bench.pivot import Pivot, Row, pivot_runs
from clipadapter.bench.run import Run
from clipadapter.bench.study import metric_value
from clipadapter.bench.summary import Reference, check_runs
from clipadapter.metrics import METRICS
from clipadapter.rendering.curves import MAX_COLOURED_LINES, Curve, draw_curves
from clipadapter.rendering.method_colours import assign_styles
from clipadapter.rendering.plots import GREY, create_figure, format_greek, label_axes, truncate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED_METHODS = ("clip-adapter", "auto", "linear-probe")
"""Always among the lines in colour, if they take part."""
WITHOUT_SHOTS = "zero-shot"
"""Drawn as a star at 0 shots, as in the papers."""


def learning_curve_figure(
    runs: Sequence[Run],
    title: str = "",
    metric: str = "accuracy",
    size: tuple[float, float] = (8.0, 4.8),
    reference: Reference | None = None,
) -> Figure:
    """The learning curve of the records of one comparison; its size is in inches, and a reference is a grey level."""
    check_runs(runs, metric)
    table = pivot_runs(runs)
    return pivot_curve(table, head_names(table), title, metric=metric, size=size, reference=reference)


def pivot_curve(
    table: Pivot,
    names: Mapping[Row, str],
    title: str,
    *,
    metric: str = "accuracy",
    size: tuple[float, float] = (9.0, 5.2),
    reference: Reference | None = None,
    front: Row | None = None,
) -> Figure:
    """The learning curve of a table of shots, on a log axis with 0 at its left if zero-shot takes part.

    At most five lines are in colour, with their name at their end: the row in front, the method of the paper, ``auto``,
    the linear probe, and the best of the others. The rest is thin and grey.
    """
    info, shots, points = METRICS[metric], [int(n) for n in table.parts], {}
    for row in table.rows:
        cells = [(n, cell) for n in shots if (cell := table.cell(row, n, metric_value(metric))).values]
        if cells:
            points[row] = np.array([(n, info.scale * cell.mean, info.scale * cell.sd) for n, cell in cells])
    methods = {row: method_of(table, row) for row in points}
    levels = [row for row in points if methods[row] == WITHOUT_SHOTS]
    by_mean = sorted(points, key=lambda row: float(points[row][:, 1].mean()), reverse=info.higher_is_better)
    lines = [row for row in by_mean if row not in levels]
    named = [row for row in lines if row == front or (row.label in NAMED_METHODS and not row.prompts)]
    chosen = [*named, *(row for row in lines if row not in named)][:MAX_COLOURED_LINES]
    # The method of the paper is drawn above the others.
    shown = [*levels[:2], *(row for row in lines if row in chosen)]
    shown.sort(key=lambda row: methods[row] != NAMED_METHODS[0])
    zero, curves = np.log2(shots[0]) - 1, []
    for row, style in zip(shown, assign_styles([methods[row] for row in shown]), strict=True):
        n, y, band = points[row].T
        x, is_level = np.log2(n), row in levels
        if is_level:
            # Shots change nothing; with test pictures that depend on the draw, the figures differ slightly.
            x, y = np.array([zero, np.log2(shots[-1])]), np.full(2, y.mean())
        label = format_greek(f"{truncate(names[row])}  {info.format(y[-1] / info.scale)}")
        curves.append(Curve(label, x, y, None if is_level else band, style.colour, style.marker, is_level=is_level))
    if reference is not None:
        value = reference.metrics[metric]
        ends = np.array([zero if levels else np.log2(shots[0]), np.log2(shots[-1])])
        label = f"{reference.name}  {info.format(value)}"
        curves.append(Curve(label, ends, np.full(2, info.scale * value), None, GREY, marker="", is_level=True))
    others = [(np.log2(own[:, 0]), own[:, 1]) for row, own in points.items() if row not in (*levels, *chosen)]
    ticks, tick_names = [zero] * bool(levels) + list(np.log2(shots)), ["0"] * bool(levels) + [str(n) for n in shots]
    figure = create_figure(*size)
    axes = figure.add_subplot()
    axes.set_xticks(ticks, tick_names)
    margin = 0.04 * max(ticks[-1] - ticks[0], 1)
    axes.set_xlim(ticks[0] - margin, ticks[-1] + margin)
    draw_curves(axes, curves, others)
    note = describe_spread(table.runs()) + (f"; grey: {len(others)} other heads" if others else "")
    label_axes(axes, title, note, "shots per class", info.title_with_unit)
    return figure


def method_of(table: Pivot, row: Row) -> str:
    """The registered name of the method of a row; its label if it has no records."""
    return next((run.method for run in table.runs(row)), row.label)


def describe_spread(runs: Iterable[Run]) -> str:
    """What points and bands are.

    >>> describe_spread([])
    'one draw'
    """
    n_seeds = len({run.seed for run in runs})
    return f"mean ± sd of {n_seeds} draws" if n_seeds > 1 else "one draw"
