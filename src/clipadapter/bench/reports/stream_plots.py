"""Plots of streams: what is known of each task after each task, and of all that were learned so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapter.bench.plots import COLOURS, MARKERS, _figure, _short, _title
from clipadapter.bench.study_plots import finish_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from clipadapter.bench.continual.summary import HeadRuns

MOST_WRITTEN = 12
"""With more tasks than that, numbers in cells can't be read."""


def matrices(heads: Sequence[HeadRuns], tasks: Sequence[str], title: str) -> Figure:
    """A triangular heat map a head: accuracy on each task (columns) after each task (rows).

    Cells of the time before a task was learned are hatched, and lie above the stairs.

    Args:
        heads: heads with figures.
        tasks: names of the tasks in order.
        title: above the plot.
    """
    found = [(one, 100 * one.matrix) for one in heads]
    low = min(float(matrix.min()) for _, matrix in found)
    across = min(2 if len(tasks) > 7 else 3, len(found))
    down = -(-len(found) // across)
    side = 2.2 + 0.36 * len(tasks)
    figure = _figure(max(6.0, across * side + 1.2), down * side + 1.2)
    grid: Any = figure.subplots(down, across, squeeze=False)
    mesh: Any = None
    for i, axes in enumerate(grid.flat):
        if i >= len(found):
            axes.set_visible(False)
            continue
        mesh = _panel(axes, found[i][1], tasks, low, left=i % across == 0)
        axes.set_title(_named(found[i][0]), fontsize=9, loc="left", parse_math=False)
    bar = figure.colorbar(mesh, ax=grid, shrink=0.7, aspect=30, pad=0.01)
    bar.set_label("accuracy in %")
    bar.outline.set_visible(False)
    _title(figure, f"{title}\nrow: after this task; column: measured on this task; hatched: before it was learned")
    return figure


def _named(learner: HeadRuns) -> str:
    said = "" if learner.learns in learner.label else f" · {'learns ' * (learner.learns == 'nothing')}{learner.learns}"
    return f"{_short(learner.label, 40)}{said}"


def _panel(axes: Axes, matrix: Any, tasks: Sequence[str], low: float, left: bool) -> Any:
    n = len(tasks)
    mesh = axes.pcolormesh(matrix, cmap="YlGnBu", vmin=low, vmax=100, edgecolors="white", linewidth=0.8)
    for t, i in np.ndindex(matrix.shape):
        if t < i:
            axes.add_patch(_hatched(i, t))
        if n <= MOST_WRITTEN:
            dark = np.dot(mesh.cmap(mesh.norm(matrix[t, i]))[:3], (0.299, 0.587, 0.114)) < 0.52
            text = axes.text(i + 0.5, t + 0.5, f"{matrix[t, i]:.0f}", ha="center", va="center", fontsize=7.5)
            text.set_color("white" if dark else "#222222")
            if t < i:
                text.set_fontstyle("italic")
    stairs = [(k + step, k + 0.0) for k in range(n) for step in (0, 1)]
    axes.plot(*zip(*stairs, (n, n), strict=True), color="#222222", linewidth=1.4)
    axes.set_xticks(np.arange(n) + 0.5, [_short(name, 18) for name in tasks], rotation=40, ha="right", fontsize=7.5)
    axes.set_yticks(np.arange(n) + 0.5, [_short(name, 18) for name in tasks] if left else [""] * n, fontsize=7.5)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
        label.set_rotation_mode("anchor")
    axes.set_xlim(0, n)
    axes.set_ylim(n, 0)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return mesh


def _hatched(x: int, y: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, fill=False, hatch="////", edgecolor="#00000030", linewidth=0)


def so_far(heads: Sequence[HeadRuns], title: str) -> Figure:
    """Mean accuracy on the tasks that were learned so far, after each task: a line a head, joint ones dashed.

    Args:
        heads: heads with figures.
        title: above the plot.
    """
    figure = _figure(8.5, 4.8)
    axes = figure.add_subplot()
    for i, one in enumerate(heads):
        cells = one.so_far
        x = np.arange(1, len(cells) + 1)
        y, sd = (100 * np.array([getattr(cell, name) for cell in cells]) for name in ("mean", "sd"))
        colour = COLOURS[i % len(COLOURS)]
        style: dict[str, Any] = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        (line,) = axes.plot(x, y, **style, linestyle="-" if one.learns == "task by task" else "--", linewidth=1.8)
        line.set_label(f"{_short(one.label, 40)}  {y[-1]:.1f}")
        axes.fill_between(x, y - sd, y + sd, color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks(range(1, len(cells) + 1))
    axes.set_xlabel("tasks learned")
    finish_axes(axes, "accuracy on them in %")
    legend = figure.legend(loc="outside right upper", frameon=False, title="mean ± sd, at the end", alignment="left")
    for text in legend.get_texts():
        text.set_parse_math(False)
    _title(figure, f"{title}\ndashed: joint, or learns nothing")
    return figure
