"""Learning curves and confusion matrices as PNG, PDF and SVG files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipadapter.bench.grids import head_names
from clipadapter.bench.pivot import Pivot, Row, metric_value, pivot_runs
from clipadapter.bench.run import Run
from clipadapter.bench.summary import Reference, check_runs
from clipadapter.metrics import METRICS, Evaluation
from clipadapter.rendering.heat_map import confusion_figure
from clipadapter.rendering.learning_curve import ShotSeries, learning_curve
from clipadapter.rendering.plots import save_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_learning_curve(runs: Sequence[Run], path: str | Path, title: str = "", metric: str = "accuracy") -> Path:
    """Draw a metric over the number of shots: lines with bands of one standard deviation, and zero-shot as a star.

    Args:
        runs: records of one comparison.
        path: PNG, PDF or SVG file to write.
        title: above the plot.
        metric: name of the metric.

    Raises:
        InputError: if there are no records, or the file can't be written.
    """
    return save_plot(learning_curve_figure(runs, title, metric), path)


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


def learning_curve_figure(
    runs: Sequence[Run],
    title: str = "",
    metric: str = "accuracy",
    size: tuple[float, float] = (8.0, 4.8),
    reference: Reference | None = None,
) -> Figure:
    """The figure of `draw_learning_curve`; its size is in inches, and a reference is a grey level."""
    check_runs(runs, metric)
    level = None if reference is None else (reference.name, reference.metrics[metric])
    table = pivot_runs(runs)
    return pivot_curve(table, head_names(table), title, metric=metric, size=size, level=level)


def pivot_curve(
    table: Pivot,
    names: Mapping[Row, str],
    title: str,
    *,
    metric: str = "accuracy",
    size: tuple[float, float] = (9.0, 5.2),
    level: tuple[str, float] | None = None,
    front: Row | None = None,
) -> Figure:
    """A learning curve of a table whose columns are shots; the row in front is always in colour."""
    factor, value, series = METRICS[metric].scale, metric_value(metric), []
    for row in table.rows:
        cells = [(n, cell) for n in table.parts if (cell := table.cell(row, n, value)).values]
        if cells:
            x, mean, sd = np.array([(n, factor * cell.mean, factor * cell.sd) for n, cell in cells]).T
            series.append(ShotSeries(names[row], method_of(table, row), x, mean, sd, row == front))
    shots, note = [int(n) for n in table.parts], describe_spread(table.runs())
    return learning_curve(series, shots, note, metric=metric, title=title, size=size, level=level)


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
