"""The plot of accuracy over cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapter.bench.plots import COLOURS, _figure, _short, _title
from clipadapter.bench.reports.grids import at_most_shots
from clipadapter.bench.reports.tables import Row, Table
from clipadapter.bench.study_plots import FAINT, finish_axes
from clipadapter.metrics import mean_sd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LEAST = 1e-5
"""Seconds below this are not told apart."""


def efficiency(table: Table, names: Mapping[Row, str]) -> Figure:
    """Accuracy over the seconds that a fit takes, at the most shots; each head has its name beside it."""
    figure = _figure(9.5, 6.4)
    axes = figure.add_subplot()
    found = []
    for row in table.rows:
        runs = [run for run in at_most_shots(table.runs[row]) if run.metrics is not None]
        if runs:
            accuracy, sd = mean_sd([100 * run.metrics.accuracy for run in runs if run.metrics])
            seconds = max(mean_sd([run.seconds.fit for run in runs if run.seconds])[0], LEAST)
            found.append((seconds, accuracy, sd, names[row]))
    for i, label in enumerate(("sees the shots and class text only", "* or †: sees more than that")):
        own = [one for one in found if one[3].endswith(("*", "†")) == bool(i)]
        if own:
            style: dict[str, Any] = {"color": COLOURS[i], "marker": "oD"[i], "ecolor": FAINT, "label": label}
            at, height, bar, _ = zip(*own, strict=True)
            axes.errorbar(at, height, yerr=bar, **style, linestyle="none", markersize=6, elinewidth=1.0, zorder=3)
    axes.set_xscale("log")
    if found:
        x, y = [one[0] for one in found], [one[1] for one in found]
        margin = 0.06 * max(max(y) - min(y), 1.0)
        room = max(max(x) / min(x), 10.0)
        axes.set_ylim(min(y) - margin, max(y) + 3 * margin)
        axes.set_xlim(min(x) / room**0.05, max(x) * room**0.2)  # names stand at the right
        _name_points(axes, [(one[0], one[1], one[3]) for one in found])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", frameon=False, ncols=2)
    finish_axes(axes, "accuracy in %")
    axes.set_xlabel("seconds to fit")
    _title(figure, table.title)
    return figure


def _name_points(axes: Axes, found: Sequence[tuple[float, float, str]]) -> None:
    """Write names to the right of points, moved up where they would stand on each other."""
    (low, high), (left, right) = axes.get_ylim(), np.log(axes.get_xlim())
    line, letter = 0.033 * (high - low), 0.0105 * (right - left)
    # (y, begin, end) of what names must not stand on: each other, and the other points
    taken = [(y, float(np.log(x)) - letter, float(np.log(x)) + letter) for x, y, _ in found]
    for x, y, name in sorted(found, key=lambda one: one[1]):
        begin = float(np.log(x)) + 1.2 * letter
        end, at = begin + letter * len(_short(name)), y
        for other, start, stop in sorted(taken):
            if abs(at - other) < line and begin < stop and start < end:
                at = other + line
        taken.append((at, begin, end))
        arrow = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "shrinkA": 0} if at - y > line / 2 else None
        axes.annotate(
            _short(name),
            (x, y),
            xytext=(float(np.exp(begin)), at),
            va="center",
            fontsize=8.5,
            color="#222222",
            arrowprops=arrow,
            parse_math=False,
            annotation_clip=False,
            zorder=4,
        )
