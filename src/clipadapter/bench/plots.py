"""Plots of records as matplotlib figures: learning curves, axes, dots, heat maps, accuracy over cost, and streams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapter.bench.run import Run
from clipadapter.bench.study import Cell, Part, Pivot, Row, Spot, fit_seconds, metric_value
from clipadapter.bench.tables import Reference, cost_cell, format_head, head_names, transductive_mark
from clipadapter.metrics import METRICS, mean_sd
from clipadapter.rendering.method_colours import assign_styles, method_style
from clipadapter.rendering.plots import (
    GREY,
    INK,
    MAX_COLOURED_LINES,
    PALE_GREY,
    Array,
    Curve,
    add_colour_bar,
    create_figure,
    draw_cells,
    draw_curves,
    label_axes,
    set_title,
    truncate,
)
from clipadapter.utils.formatting import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


NAMED_METHODS = ("clip-adapter", "auto", "linear-probe")  # always among the lines in colour, if they take part
WITHOUT_SHOTS = "zero-shot"  # drawn as a star at 0 shots, as in the papers
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
MIN_FIT_SECONDS = 1e-5  # shorter fits are drawn at this time
MAX_TASKS_WITH_NUMBERS = 12  # with more tasks, numbers in cells can't be read


def draw_learning_curve(
    table: Pivot,
    title: str = "",
    metric: str = "accuracy",
    size: tuple[float, float] = (8.0, 4.8),  # in inches
    reference: Reference | None = None,  # a grey level
    front: Row | None = None,
) -> Figure:
    """The learning curve of a table of shots, on a log axis with 0 at its left if zero-shot takes part."""
    info, names, shots, of_run = METRICS[metric], head_names(table), [int(n) for n in table.parts], metric_value(metric)
    cells = {row: _points(((n, table.cell(row, n, of_run)) for n in shots), info.scale) for row in table.rows}
    points = {row: own for row, own in cells.items() if len(own)}
    methods = {row: _method(table, row) for row in points}
    levels = [row for row in points if methods[row] == WITHOUT_SHOTS]
    by_mean = sorted(points, key=lambda row: float(points[row][:, 1].mean()), reverse=info.higher_is_better)
    lines = [row for row in by_mean if row not in levels]
    # At most five lines are in colour: the row in front, the method of the paper, auto, the linear probe, and the best
    # of the others. The rest is thin and grey.
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
        label = f"{truncate(names[row])}  {info.format(y[-1] / info.scale)}"
        curves.append(Curve(label, x, y, None if is_level else band, style.colour, style.marker, is_level=is_level))
    if reference is not None:
        value = reference.metrics[metric]
        ends = np.array([zero if levels else np.log2(shots[0]), np.log2(shots[-1])])
        label = f"{reference.name}  {info.format(value)}"
        curves.append(Curve(label, ends, np.full(2, info.scale * value), None, GREY, marker="", is_level=True))
    others = [(np.log2(own[:, 0]), own[:, 1]) for row, own in points.items() if row not in (*levels, *chosen)]
    ticks, tick_names = list(np.log2(shots)), [str(n) for n in shots]
    if levels:
        ticks, tick_names = [zero, *ticks], ["0", *tick_names]
    figure = create_figure(*size)
    axes = figure.add_subplot()
    axes.set_xticks(ticks, tick_names)
    margin = 0.04 * max(ticks[-1] - ticks[0], 1)
    axes.set_xlim(ticks[0] - margin, ticks[-1] + margin)
    draw_curves(axes, curves, others)
    note = describe_spread(table.runs()) + (f"; grey: {len(others)} other heads" if others else "")
    label_axes(axes, title, note, "shots per class", info.title_with_unit)
    return figure


def _points(cells: Iterable[tuple[float, Cell]], scale: float = 100) -> Array:
    """(k, 3) position, mean and deviation of the cells that have values."""
    return np.array([(x, scale * cell.mean, scale * cell.sd) for x, cell in cells if cell.values]).reshape(-1, 3)


def _method(table: Pivot, row: Row) -> str:
    """The registered name of the method of a row; its label if it has no records."""
    return next((run.method for run in table.runs(row)), row.label)


def describe_spread(runs: Iterable[Run]) -> str:
    """What points and bands are."""
    n_seeds = len({run.seed for run in runs})
    return f"mean ± sd of {n_seeds} draws" if n_seeds > 1 else "one draw"


def _shot_colours(n: int) -> list[str]:
    """Colours for n numbers of shots, from light to dark."""
    places = np.linspace(0 if n > 2 else 2, len(SHOT_COLOURS) - 1, n).round().astype(int) if n > 1 else [3]
    return [SHOT_COLOURS[i] for i in places]


# ---- Accuracy over the values of a parameter ----


def draw_parameter_axes(table: Pivot, values: Mapping[str, float | str]) -> dict[str, Figure]:
    """A figure for each parameter, by its name: a line per number of shots; heads without a value are level lines."""
    series: dict[str, list[Row]] = {}
    for row in (row for row in table.rows if row.label in values):
        series.setdefault(row.label.rpartition("=")[0] or "value", []).append(row)
    return {name: _axis_figure(table, name, rows, values) for name, rows in series.items()}


def _axis_figure(table: Pivot, parameter: str, rows: Sequence[Row], values: Mapping[str, float | str]) -> Figure:
    figure = create_figure(9.0, 5.2)
    axes = figure.add_subplot()
    positions = _axis_positions(axes, [values[row.label] for row in rows])
    curves: list[Curve] = []
    colours = dict(zip(table.columns(), _shot_colours(len(table.columns())), strict=True))
    # The coloured lines are the largest numbers of shots; there are rarely more than five.
    for n in table.columns()[-MAX_COLOURED_LINES:]:
        points = _points((position, table.cell(row, n)) for position, row in sorted(zip(positions, rows, strict=True)))
        if len(points):
            x, y, sd = points.T
            curves.append(Curve(format_count(int(n), "shot"), x, y, sd if len(x) > 1 else None, colours[n]))
    draw_curves(axes, curves[::-1])
    level = [row for row in table.rows if row.label not in values]
    for row, style in zip(level, LEVEL_STYLES.values(), strict=False):
        heights = {n: 100 * table.cell(row, n).mean for n in table.columns() if table.cell(row, n).values}
        is_same = len(set(heights.values())) == 1  # then one grey line
        for n, height in list(heights.items())[: 1 if is_same else None]:
            axes.axhline(height, color=GREY if is_same else colours[n], linestyle=style, linewidth=1.2)
        reach = [*heights.values(), *axes.get_ylim()]
        axes.set_ylim(min(reach), max(reach))
    names = head_names(table)
    dashes = [f"{kind}: {truncate(names[row])}" for row, kind in zip(level, LEVEL_STYLES, strict=False)]
    if n_others := max(0, len(level) - len(LEVEL_STYLES)):
        dashes.append(f"and {format_count(n_others, 'more head')} in the table")
    note = "; ".join([describe_spread(table.runs()), *dashes])
    label_axes(axes, table.title, note, parameter, "accuracy in %")
    return figure


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


# ---- Accuracy by head ----


def draw_dots(table: Pivot) -> Figure:
    """Accuracy of each head in each column, as a dot on a band of one standard deviation."""
    names, columns = head_names(table), table.columns()
    rows, n = [row for row in table.rows if any(table.cell(row, column).values for column in columns)], len(columns)
    # Dots and not bars from zero: differences of one point would be invisible in bars, and truncated bars mislead.
    figure = create_figure(9.0, 1.6 + 0.34 * max(4, len(rows)) + 0.03 * len(rows) * n)
    axes = figure.add_subplot()
    spread = min(0.6, 0.14 * (n - 1))
    styles = [(style.colour, style.marker) for style in assign_styles([""] * n)]
    if all(isinstance(column, int) for column in columns):
        styles = [(colour, "o") for colour in _shot_colours(n)]
    handles, labels = [], []
    for column, offset, style in zip(columns, np.linspace(-spread / 2, spread / 2, n), styles, strict=True):
        points = _points((y + offset, table.cell(row, column)) for y, row in enumerate(rows))
        if n == 1:  # each head in the style of its method
            methods = assign_styles([_method(table, rows[int(y)]) for y, _, _ in points])
            for point, method in zip(points, methods, strict=True):
                _dots(axes, point[None], method.colour, method.marker, label_values=True)
        elif len(points):
            handles.append(_dots(axes, points, *style, label_values=False))
            labels.append(format_count(column, "shot") if isinstance(column, int) else truncate(column))
    heads = [truncate(names[row], MAX_LABEL_CHARACTERS) for row in rows]
    axes.set_yticks(range(len(rows)), heads, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    label_axes(axes, table.title, describe_spread(table.runs()), "accuracy in %")
    for y in range(1, len(rows)):
        axes.axhline(y - 0.5, color="#f0f0f0", linewidth=0.8, zorder=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    if n > 1:  # the legend is below the plot, in as many columns as fit, so that it stays on the page
        fitting = int(figure.get_figwidth() * 9 / (6 + max(map(len, labels), default=1)))
        legend_columns = max(1, min(len(labels), fitting))
        legend = figure.legend(handles, labels, loc="outside lower left", frameon=False, ncols=legend_columns)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _dots(axes: Axes, points: Array, colour: str, marker: str, label_values: bool) -> Any:
    y, mean, sd = points.T
    axes.hlines(y, mean - sd, mean + sd, color=colour, alpha=0.25, linewidth=6)
    (dots,) = axes.plot(mean, y, linestyle="none", color=colour, marker=marker, markersize=6)
    if label_values:
        for value, width, height in zip(mean, sd, y, strict=True):
            place = (value + width, height)
            axes.annotate(f"{value:.1f}", place, xytext=(6, 0), textcoords="offset points", va="center")
        axes.margins(x=0.12)
    return dots


def draw_heat_map(spots: Sequence[tuple[str, Pivot, Part]], reference_label: str, title: str) -> Figure:
    """Accuracy of each head in some columns of tables; the colour is the difference to the reference."""
    rows = list(dict.fromkeys(row for _, table, _ in spots for row in table.rows))
    names = {row: format_head(row, [run for _, table, _ in spots for run in table.runs(row)]) for row in rows}
    reference = spots[0][1].reference_row(reference_label)
    cells = [[table.cell(row, column) for _, table, column in spots] for row in rows]
    values = np.array([[100 * cell.mean if cell.values else np.nan for cell in line] for line in cells])
    above = values - values[rows.index(reference)]
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
    add_colour_bar(figure, mesh, axes, f"points above {names[reference]}", extend="both")
    set_title(figure, title)
    return figure


# ---- Accuracy over cost ----


def draw_efficiency(table: Pivot) -> Figure:
    """Accuracy over seconds of a fit, with the most shots; each point has the name of its head."""
    figure = create_figure(9.0, 6.2)
    axes = figure.add_subplot()
    points = []
    for row, name in head_names(table).items():
        if values := cost_cell(table, row).values:
            accuracy, sd = mean_sd([100 * value for value in values])
            seconds = max(cost_cell(table, row, fit_seconds).mean, MIN_FIT_SECONDS)
            points.append((seconds, accuracy, name))
            style = method_style(_method(table, row))
            fill = "white" if transductive_mark(table.runs(row)) else style.colour
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
        start = float(np.log(x)) + 1.2 * letter_width
        end, label_y = start + letter_width * len(truncate(name)), y
        for other, other_start, other_end in sorted(occupied):
            if abs(label_y - other) < line_height and start < other_end and other_start < end:
                label_y = other + line_height
        occupied.append((label_y, start, end))
        line = {"arrowstyle": "-", "color": PALE_GREY, "linewidth": 0.8, "shrinkA": 0}
        axes.annotate(
            truncate(name),
            (x, y),
            xytext=(float(np.exp(start)), label_y),
            va="center",
            fontsize=8.5,
            color=INK,
            arrowprops=line if label_y - y > line_height / 2 else None,
            parse_math=False,
            annotation_clip=False,
            zorder=4,
        )


# ---- Streams of tasks ----


def draw_task_matrices(heads: Sequence[Spot], tasks: Sequence[str], title: str) -> Figure:
    """One heat map per head: mean accuracy over the seeds on each task (columns) after each task (rows)."""
    matrices = [100 * np.mean([result.accuracy for result in head.results], axis=0) for head in heads]
    low, n = min(float(matrix.min()) for matrix in matrices), len(tasks)
    across = min(2 if n > 7 else 3, len(heads))
    down = -(-len(heads) // across)
    side = 2.2 + 0.36 * n
    figure = create_figure(max(6.0, across * side + 1.2), down * side + 1.2)
    grid: Any = figure.subplots(down, across, squeeze=False)
    mesh: Any = None
    names = [truncate(name, 18) for name in tasks]
    stairs = [(k + step, k + 0.0) for k in range(n) for step in (0, 1)]
    for axes in grid.flat[len(heads) :]:
        axes.set_visible(False)
    for i, (axes, head, matrix) in enumerate(zip(grid.flat, heads, matrices, strict=False)):
        mesh = draw_cells(
            axes,
            [(matrix, "YlGnBu", low, 100)],
            names,
            names if i % across == 0 else [""] * n,
            lambda t, k, matrix=matrix: f"{matrix[t, k]:.0f}" if n <= MAX_TASKS_WITH_NUMBERS else "",  # type: ignore[misc]
            size=7.5,
            rotation=40,
        )
        axes.plot(*zip(*stairs, (n, n), strict=True), color=INK, linewidth=1.4)
        axes.tick_params(labelsize=7.5)
        axes.set_xlim(0, n)
        learns = "learns nothing" if head.learns == "nothing" else head.learns
        name = truncate(head.label, 40)
        name = name if head.learns in head.label else f"{name} · {learns}"
        axes.set_title(name, fontsize=9, loc="left", parse_math=False)
    add_colour_bar(figure, mesh, grid, "accuracy in %", shrink=0.7, aspect=30, pad=0.01)
    set_title(
        figure, f"{title}\nrow: after this task; column: measured on this task; above the line: before it was learned"
    )
    return figure


def draw_learned_tasks(heads: Sequence[Spot], title: str) -> Figure:
    """Mean accuracy on the tasks learned so far, after each task: one line per head, dashed for joint heads."""
    figure = create_figure(9.0, 4.8)
    axes = figure.add_subplot()
    lines = []  # (head, mean and deviation over the seeds after each task)
    for head in heads:
        cells = head.by_step(lambda one: [float(np.mean(row[: t + 1])) for t, row in enumerate(one.accuracy)])
        lines.append((head, *_points(enumerate(cells)).T[1:]))
    lines.sort(key=lambda line: -line[1][-1])
    coloured, x = lines[:MAX_COLOURED_LINES], np.arange(1, len(lines[0][1]) + 1)
    styles = assign_styles([next((run.method for run in head.runs), head.label) for head, _, _ in coloured])
    curves = []
    for (head, y, sd), style in zip(coloured, styles, strict=True):
        label = f"{truncate(head.label)}  {y[-1]:.1f}"
        dashes = "-" if head.learns == "task by task" else "--"
        curves.append(Curve(label, x, y, sd, style.colour, style.marker.replace("*", "o"), dashes))
    others = [(x, y) for _, y, _ in lines[MAX_COLOURED_LINES:]]
    axes.set_xticks(x)
    draw_curves(axes, curves, others)
    grey = f"; grey: {len(others)} other heads" if others else ""
    spread = describe_spread(run for head in heads for run in head.runs)
    note = f"{spread}; dashed: joint, or learns nothing{grey}"
    label_axes(axes, title, note, "tasks learned", "accuracy on them in %")
    return figure
