"""Plots of a study as matplotlib figures: curves, axes, dots, heat maps, accuracy over cost, and streams of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapter.bench.grids import select_most_shots
from clipadapter.bench.notes import transductive_mark
from clipadapter.bench.pivot import Part, Pivot, Row
from clipadapter.bench.plots import describe_spread, method_of
from clipadapter.metrics import mean_sd
from clipadapter.rendering.curves import MAX_COLOURED_LINES, Curve, draw_curves
from clipadapter.rendering.heat_map import add_colour_bar, draw_cells
from clipadapter.rendering.method_colours import assign_styles
from clipadapter.rendering.plots import (
    GREY,
    INK,
    PALE_GREY,
    create_figure,
    format_greek,
    label_axes,
    set_title,
    truncate,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from clipadapter.bench.continual.summary import HeadRuns


MAX_LABEL_CHARACTERS = 44
SHOT_COLOURS = ("#A3BEE0", "#6F9BD1", "#4178B5", "#245A91", "#0F3C66", "#08233F")
"""From few to many shots: one hue, since these are no methods."""


LEVEL_STYLES: dict[str, Any] = {
    "dashed": (0, (5, 2)),
    "dotted": (0, (1, 2)),
    "dash-dotted": (0, (6, 2, 1, 2)),
    "long dashes": (0, (12, 3)),
    "dash and two dots": (0, (6, 2, 1, 2, 1, 2)),
}
"""Of heads without the varied parameter; of more heads the lines could not be told apart."""


def _shot_colours(n: int) -> list[str]:
    """Colours for n numbers of shots, from light to dark."""
    places = np.linspace(0 if n > 2 else 2, len(SHOT_COLOURS) - 1, n).round().astype(int) if n > 1 else [3]
    return [SHOT_COLOURS[i] for i in places]


def draw_parameter_axes(
    table: Pivot, names: Mapping[Row, str], values: Mapping[str, float | str]
) -> list[tuple[str, Figure]]:
    """A figure for each parameter, by its name: a line per number of shots; heads without a value are level lines."""
    series: dict[str, list[Row]] = {}
    for row in table.rows:
        if row.label in values:
            series.setdefault(row.label.rpartition("=")[0] or "value", []).append(row)
    level = [row for row in table.rows if row.label not in values]
    return [(name, _axis_figure(table, name, rows, level, names, values)) for name, rows in series.items()]


def _axis_figure(
    table: Pivot,
    parameter: str,
    rows: Sequence[Row],
    level: Sequence[Row],
    names: Mapping[Row, str],
    values: Mapping[str, float | str],
) -> Figure:
    figure = create_figure(9.0, 5.2)
    axes = figure.add_subplot()
    positions = _axis_positions(axes, [values[row.label] for row in rows])
    curves: list[Curve] = []
    colours = _shot_colours(len(table.columns()))
    # The coloured lines are the largest numbers of shots; there are rarely more than five.
    for n, colour in list(zip(table.columns(), colours, strict=True))[-MAX_COLOURED_LINES:]:
        points = [(position, table.cell(row, n)) for position, row in zip(positions, rows, strict=True)]
        points = sorted((position, cell) for position, cell in points if cell.values)
        if points:
            x = np.array([position for position, _ in points])
            y, sd = (np.array([100 * getattr(cell, name) for _, cell in points]) for name in ("mean", "sd"))
            label = f"{n} shot{'s' if n != 1 else ''}"
            curves.append(Curve(label, x, y, sd if len(x) > 1 else None, colour))
    draw_curves(axes, curves[::-1])
    for row, style in zip(level, LEVEL_STYLES.values(), strict=False):
        _level_lines(axes, table, row, style, dict(zip(table.columns(), colours, strict=True)))
    dashes = [f"{kind}: {truncate(names[row])}" for row, kind in zip(level, LEVEL_STYLES, strict=False)]
    if n_others := max(0, len(level) - len(LEVEL_STYLES)):
        dashes.append(f"and {n_others} more head{'s' * (n_others > 1)} in the table")
    note = "; ".join([describe_spread(table.runs()), *map(format_greek, dashes)])
    label_axes(axes, table.title, note, format_greek(parameter), "accuracy in %")
    return figure


def _level_lines(axes: Axes, table: Pivot, row: Row, style: Any, colours: Mapping[Part, str]) -> None:
    """A line for each number of shots in its colour; one grey line if they are all the same."""
    heights = {n: 100 * table.cell(row, n).mean for n in table.columns() if table.cell(row, n).values}
    is_same = len(set(heights.values())) == 1
    for n, height in list(heights.items())[: 1 if is_same else None]:
        axes.axhline(height, color=GREY if is_same else colours[n], linestyle=style, linewidth=1.2)
    low, high = axes.get_ylim()
    reach = [*heights.values(), low, high]
    axes.set_ylim(min(reach), max(reach))


def _axis_positions(axes: Axes, values: Sequence[float | str]) -> list[float]:
    """Positions of values on the x axis. The axis gets ticks there, and a log scale if values grow by factors."""
    if any(isinstance(value, str) for value in values):
        axes.set_xticks(range(len(values)), [str(value) for value in values], parse_math=False)
        return [float(i) for i in range(len(values))]
    numbers = sorted({float(value) for value in values})
    factors = np.array(numbers[1:]) / numbers[:-1] if numbers[0] > 0 and len(numbers) > 2 else np.array([1.0])
    if factors.min() >= 1.8:
        axes.set_xscale("log")
    axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
    axes.minorticks_off()
    return [float(value) for value in values]


def draw_dots(table: Pivot, names: Mapping[Row, str]) -> Figure:
    """Accuracy of each head in each column, as a dot on a band of one standard deviation.

    Dots and not bars from zero: differences of one point would be invisible in bars, and truncated bars mislead.
    """
    rows = [row for row in table.rows if any(table.cell(row, column).values for column in table.columns())]
    figure = create_figure(9.0, 1.6 + 0.34 * max(4, len(rows)) + 0.03 * len(rows) * len(table.columns()))
    axes = figure.add_subplot()
    n = len(table.columns())
    spread = min(0.6, 0.14 * (n - 1))
    offsets = np.linspace(-spread / 2, spread / 2, n) if n > 1 else [0.0]
    are_shots = all(isinstance(column, int) for column in table.columns())
    styles = [(colour, "o") for colour in _shot_colours(n)]
    if not are_shots:
        styles = [(style.colour, style.marker) for style in assign_styles([""] * n)]
    handles, labels = [], []
    for column, offset, (colour, marker) in zip(table.columns(), offsets, styles, strict=True):
        points = [(y + offset, table.cell(row, column)) for y, row in enumerate(rows) if table.cell(row, column).values]
        if points:
            if n == 1:
                methods = assign_styles([method_of(table, rows[int(y)]) for y, _ in points])
                for point, style in zip(points, methods, strict=True):
                    _dots(axes, [point], style.colour, style.marker, label_values=True)
                continue
            handles.append(_dots(axes, points, colour, marker, label_values=False))
            labels.append(f"{column} shot{'s' if column != 1 else ''}" if isinstance(column, int) else truncate(column))
    axes.set_yticks(
        range(len(rows)),
        [truncate(format_greek(names[row]), MAX_LABEL_CHARACTERS) for row in rows],
        parse_math=False,
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    label_axes(axes, table.title, describe_spread(table.runs()), "accuracy in %")
    for y in range(1, len(rows)):
        axes.axhline(y - 0.5, color="#f0f0f0", linewidth=0.8, zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    if n > 1:  # the legend is below the plot, in as many columns as fit, so that it stays on the page
        fitting = int(figure.get_figwidth() * 9 / (6 + max(map(len, labels), default=1)))
        columns = max(1, min(len(labels), fitting))
        legend = figure.legend(handles, labels, loc="outside lower left", frameon=False, ncols=columns)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _dots(axes: Axes, points: Sequence[tuple[float, Any]], colour: str, marker: str, label_values: bool) -> Any:
    y = np.array([height for height, _ in points])
    mean, sd = (np.array([100 * getattr(cell, name) for _, cell in points]) for name in ("mean", "sd"))
    axes.hlines(y, mean - sd, mean + sd, color=colour, alpha=0.25, linewidth=6)
    (dots,) = axes.plot(mean, y, linestyle="none", color=colour, marker=marker, markersize=6)
    if label_values:
        for value, width, height in zip(mean, sd, y, strict=True):
            axes.annotate(
                f"{value:.1f}", (value + width, height), xytext=(6, 0), textcoords="offset points", va="center"
            )
        axes.margins(x=0.12)
    return dots


def draw_heat_map(
    spots: Sequence[tuple[str, Pivot, Part]],
    rows: Sequence[Row],
    names: Mapping[Row, str],
    reference: Row,
    title: str,
) -> Figure:
    """Accuracy of each head on each data set; the colour is the difference to the reference."""
    cells = [[table.cell(row, column) for _, table, column in spots] for row in rows]
    values = np.array([[100 * cell.mean if cell.values else np.nan for cell in line] for line in cells])
    above = values - (values[list(rows).index(reference)] if reference in rows else np.nan)
    limit = float(np.clip(np.nanmax(np.abs(above)), 1, 15)) if np.isfinite(above).any() else 1.0
    figure = create_figure(4.2 + 0.8 * len(spots), 2.4 + 0.3 * len(rows))
    axes = figure.add_subplot(facecolor="#eeeeee")
    mesh = draw_cells(
        axes,
        [(above, "PuOr_r", -limit, limit)],
        [truncate(name) for name, _, _ in spots],
        [truncate(names[row], MAX_LABEL_CHARACTERS) for row in rows],
        lambda i, j: f"{values[i, j]:.1f}" if np.isfinite(values[i, j]) else "–",
        rotation=35 if len(spots) > 3 else 0,
    )
    add_colour_bar(figure, mesh, axes, f"points above {names.get(reference, reference.label)}", extend="both")
    set_title(figure, title)
    return figure


MIN_FIT_SECONDS = 1e-5
"""Shorter fits are drawn at this time."""


def draw_efficiency(table: Pivot, names: Mapping[Row, str]) -> Figure:
    """Accuracy over seconds of a fit, with the most shots; each point has the name of its head."""
    figure = create_figure(9.0, 6.2)
    axes = figure.add_subplot()
    points = []
    for row in table.rows:
        runs = [run for run in select_most_shots(table.runs(row)) if run.metrics is not None]
        if runs:
            accuracy, sd = mean_sd([100 * run.metrics.accuracy for run in runs if run.metrics])
            seconds = max(mean_sd([run.seconds.fit for run in runs if run.seconds])[0], MIN_FIT_SECONDS)
            points.append((seconds, accuracy, names[row]))
            style = assign_styles([method_of(table, row)])[0]
            fill = "white" if transductive_mark(runs) else style.colour
            axes.vlines(seconds, accuracy - sd, accuracy + sd, color=style.colour, alpha=0.25, linewidth=6)
            axes.plot(seconds, accuracy, color=style.colour, marker=style.marker, markerfacecolor=fill, markersize=7)
    axes.set_xscale("log")
    if points:
        x, y = [point[0] for point in points], [point[1] for point in points]
        margin = 0.06 * max(max(y) - min(y), 1.0)
        span = max(max(x) / min(x), 10.0)
        axes.set_ylim(min(y) - margin, max(y) + 3 * margin)
        axes.set_xlim(min(x) / span**0.05, max(x) * span**0.2)  # space for names at the right
        _name_points(axes, points)
    hollow = "; hollow: sees more than the shots and class text" if transductive_mark(table.runs()) else ""
    label_axes(axes, table.title, describe_spread(table.runs()) + hollow, "seconds to fit", "accuracy in %")
    return figure


def _name_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names to the right of points; a name that would overlap another one is moved up."""
    (low, high), (log_left, log_right) = axes.get_ylim(), np.log(axes.get_xlim())
    line_height, letter_width = 0.033 * (high - low), 0.0105 * (log_right - log_left)
    # (y, start, end) of what names must not overlap: each other, and the other points
    occupied = [(y, float(np.log(x)) - letter_width, float(np.log(x)) + letter_width) for x, y, _ in points]
    for x, y, name in sorted(points, key=lambda one: one[1]):
        label_start = float(np.log(x)) + 1.2 * letter_width
        label_end, label_y = label_start + letter_width * len(truncate(name)), y
        for other, start, stop in sorted(occupied):
            if abs(label_y - other) < line_height and label_start < stop and start < label_end:
                label_y = other + line_height
        occupied.append((label_y, label_start, label_end))
        arrow = (
            {"arrowstyle": "-", "color": PALE_GREY, "linewidth": 0.8, "shrinkA": 0}
            if label_y - y > line_height / 2
            else None
        )
        axes.annotate(
            truncate(name),
            (x, y),
            xytext=(float(np.exp(label_start)), label_y),
            va="center",
            fontsize=8.5,
            color=INK,
            arrowprops=arrow,
            parse_math=False,
            annotation_clip=False,
            zorder=4,
        )


MAX_TASKS_WITH_NUMBERS = 12
"""With more tasks, numbers in cells can't be read."""


def draw_task_matrices(heads: Sequence[HeadRuns], tasks: Sequence[str], title: str) -> Figure:
    """One heat map per head: accuracy on each task (columns) after each task (rows).

    Cells before a task was learned are above the stairs.
    """
    panels = [(head, 100 * head.matrix) for head in heads]
    low = min(float(matrix.min()) for _, matrix in panels)
    across = min(2 if len(tasks) > 7 else 3, len(panels))
    down = -(-len(panels) // across)
    side = 2.2 + 0.36 * len(tasks)
    figure = create_figure(max(6.0, across * side + 1.2), down * side + 1.2)
    grid: Any = figure.subplots(down, across, squeeze=False)
    mesh: Any = None
    for i, axes in enumerate(grid.flat):
        if i >= len(panels):
            axes.set_visible(False)
            continue
        mesh = _panel(axes, panels[i][1], tasks, low, has_row_names=i % across == 0)
        head = panels[i][0]
        learns = f" · {'learns ' * (head.learns == 'nothing')}{head.learns}" * (head.learns not in head.label)
        axes.set_title(truncate(head.label, 40) + learns, fontsize=9, loc="left", parse_math=False)
    add_colour_bar(figure, mesh, grid, "accuracy in %", shrink=0.7, aspect=30, pad=0.01)
    set_title(
        figure, f"{title}\nrow: after this task; column: measured on this task; above the line: before it was learned"
    )
    return figure


def _panel(axes: Axes, matrix: Any, tasks: Sequence[str], low: float, has_row_names: bool) -> Any:
    n = len(tasks)
    names = [truncate(name, 18) for name in tasks]
    mesh = draw_cells(
        axes,
        [(matrix, "YlGnBu", low, 100)],
        names,
        names if has_row_names else [""] * n,
        lambda t, i: f"{matrix[t, i]:.0f}" if n <= MAX_TASKS_WITH_NUMBERS else "",
        size=7.5,
        rotation=40,
    )
    stairs = [(k + step, k + 0.0) for k in range(n) for step in (0, 1)]
    axes.plot(*zip(*stairs, (n, n), strict=True), color=INK, linewidth=1.4)
    axes.tick_params(labelsize=7.5)
    axes.set_xlim(0, n)
    return mesh


def draw_learned_tasks(heads: Sequence[HeadRuns], title: str) -> Figure:
    """Mean accuracy on the tasks learned so far, after each task: one line per head, dashed for joint heads."""
    figure = create_figure(9.0, 4.8)
    axes = figure.add_subplot()
    best = sorted(heads, key=lambda head: -head.so_far[-1].mean)
    coloured = best[:MAX_COLOURED_LINES]
    styles = assign_styles([next((run.method for run in head.runs), head.label) for head in coloured])
    curves = []
    for head, style in zip(coloured, styles, strict=True):
        y, sd = _so_far(head)
        label = f"{truncate(head.label)}  {y[-1]:.1f}"
        dashes = "-" if head.learns == "task by task" else "--"
        x = np.arange(1, len(y) + 1)
        curves.append(Curve(format_greek(label), x, y, sd, style.colour, style.marker.replace("*", "o"), dashes))
    others = [(np.arange(1, len(head.so_far) + 1), _so_far(head)[0]) for head in best[MAX_COLOURED_LINES:]]
    axes.set_xticks(range(1, len(best[0].so_far) + 1))
    draw_curves(axes, curves, others)
    grey = f"; grey: {len(others)} other heads" if others else ""
    spread = describe_spread(run for head in heads for run in head.runs)
    note = f"{spread}; dashed: joint, or learns nothing{grey}"
    label_axes(axes, title, note, "tasks learned", "accuracy on them in %")
    return figure


def _so_far(head: HeadRuns) -> tuple[Any, Any]:
    mean, sd = (100 * np.array([getattr(cell, name) for cell in head.so_far]) for name in ("mean", "sd"))
    return mean, sd
