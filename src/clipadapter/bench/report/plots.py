"""Plots of a study as matplotlib figures: curves, axes, dots, heat maps, accuracy over cost, and streams of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapter.bench.report.grids import select_most_shots
from clipadapter.bench.report.tables import Row, Table
from clipadapter.metrics import mean_sd
from clipadapter.rendering.marks import EXTRA_LABELS, TRANSDUCTIVE
from clipadapter.rendering.plots import COLOURS, MARKERS, create_figure, set_title, style_axes, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from clipadapter.bench.continual.summary import HeadRuns
    from clipadapter.bench.report.tables import Row, Table


MAX_COLOURED_LINES = 10
"""More lines can't be distinguished: the others are drawn grey."""
ANCHORS = ("zero-shot", "linear-probe")
MAX_LABEL_CHARACTERS = 44
GRID_COLOUR = "#e2e2e2"
GREY, FAINT = "#666666", "#b8b8b8"


def draw_curves(table: Table, names: Mapping[Row, str], front: Row) -> Figure:
    """Accuracy over shots: one line per head, with a band of one standard deviation.

    Args:
        table: its columns are shots.
        names: names of the heads in the legend.
        front: a head that is never drawn grey.
    """
    rows = [row for row in table.rows if any(table.cell(row, n).values for n in table.columns)]
    coloured = _foremost(table, rows, front)
    figure = create_figure(9.5, 5.4)
    axes = figure.add_subplot()
    grey_line: Any = None
    for row in rows:
        if row not in coloured:
            (grey_line,) = axes.plot(*_line(table, row)[:2], color=FAINT, linewidth=1.0, zorder=1)
    handles, labels = [], []
    for row in sorted(coloured, key=lambda row: -_line(table, row)[1][-1]):
        style = _style(coloured.index(row))
        x, y, sd = _line(table, row)
        (line,) = axes.plot(x, y, **style, linewidth=1.9, markersize=5.5, zorder=3)
        axes.fill_between(x, y - sd, y + sd, color=style["color"], alpha=0.13, linewidth=0, zorder=2)
        handles.append(line)
        labels.append(f"{truncate(names[row])}  {y[-1]:.1f}")
    if grey_line is not None:
        handles.append(grey_line)
        labels.append(f"{len(rows) - len(coloured)} other heads")
    _shots_axis(axes, [int(n) for n in table.columns])
    finish_axes(axes, "accuracy in %")
    _legend(figure, handles, labels, f"mean ± sd, ordered by {table.columns[-1]} shots")
    set_title(figure, table.title)
    return figure


def _line(table: Table, row: Row) -> tuple[Any, Any, Any]:
    """Shots, mean and sd in %, where a head has figures."""
    cells = [(n, table.cell(row, n)) for n in table.columns if table.cell(row, n).values]
    points = np.array([(n, 100 * cell.mean, 100 * cell.sd) for n, cell in cells], float).reshape(-1, 3)
    return points[:, 0], points[:, 1], points[:, 2]


def _foremost(table: Table, rows: Sequence[Row], front: Row) -> list[Row]:
    """The lines in colour: all if they are few, else the reference, the baselines, and the best on average."""
    if len(rows) <= MAX_COLOURED_LINES:
        return list(rows)
    first = [row for row in rows if row == front or row.label in ANCHORS]
    others = sorted((row for row in rows if row not in first), key=lambda row: -float(_line(table, row)[1].mean()))
    chosen = {*first, *others[: MAX_COLOURED_LINES - len(first)]}
    return [row for row in rows if row in chosen]


def _style(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3],
    }


def draw_parameter_axes(
    table: Table, names: Mapping[Row, str], values: Mapping[str, float | str]
) -> list[tuple[str, Figure]]:
    """Accuracy over the values of a parameter: one line per number of shots. Heads without a value are level lines.

    Args:
        table: its columns are shots.
        names: names of the heads in the plot.
        values: the value of the parameter, by label.

    Returns:
        A figure for each parameter, with its name.
    """
    series: dict[str, list[Row]] = {}
    for row in table.rows:
        if row.label in values:
            series.setdefault(row.label.rpartition("=")[0] or "value", []).append(row)
    level = [row for row in table.rows if row.label not in values]
    return [(name, _axis_figure(table, name, rows, level, names, values)) for name, rows in series.items()]


def _axis_figure(
    table: Table,
    parameter: str,
    rows: Sequence[Row],
    level: Sequence[Row],
    names: Mapping[Row, str],
    values: Mapping[str, float | str],
) -> Figure:
    from matplotlib.lines import Line2D

    figure = create_figure(9.5, 5.2)
    axes = figure.add_subplot()
    positions = _axis_positions(axes, [values[row.label] for row in rows])
    for i, n in enumerate(table.columns):
        points = [(position, table.cell(row, n)) for position, row in zip(positions, rows, strict=True)]
        points = sorted((position, cell) for position, cell in points if cell.values)
        if points:
            x = np.array([position for position, _ in points])
            y, sd = (np.array([100 * getattr(cell, name) for _, cell in points]) for name in ("mean", "sd"))
            axes.plot(x, y, **{**_style(i), "linestyle": "-"}, linewidth=1.9, markersize=5.5, zorder=3)
            axes.fill_between(x, y - sd, y + sd, color=_style(i)["color"], alpha=0.13, linewidth=0)
    for j, row in enumerate(level):
        _level_lines(axes, table, row, ("--", ":", "-.")[j % 3])
    handles = [Line2D([], [], **{**_style(i), "linestyle": "-"}) for i in range(len(table.columns))]
    labels = [f"{n} shot{'s' if n != 1 else ''}" for n in table.columns]
    handles += [Line2D([], [], color=GREY, linestyle=("--", ":", "-.")[j % 3]) for j in range(len(level))]
    labels += [truncate(names[row]) for row in level]
    finish_axes(axes, "accuracy in %")
    axes.set_xlabel(parameter, parse_math=False)
    _legend(figure, handles, labels, "mean ± sd")
    set_title(figure, table.title)
    return figure


def _level_lines(axes: Axes, table: Table, row: Row, style: str) -> None:
    """A line for each number of shots in its colour; one grey line if they are all the same."""
    heights = {i: 100 * table.cell(row, n).mean for i, n in enumerate(table.columns) if table.cell(row, n).values}
    if len(set(heights.values())) == 1:
        axes.axhline(next(iter(heights.values())), color=GREY, linestyle=style, linewidth=1.2)
        return
    for i, height in heights.items():
        axes.axhline(height, color=_style(i)["color"], linestyle=style, linewidth=1.2)


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


def draw_dots(table: Table, names: Mapping[Row, str]) -> Figure:
    """Accuracy of each head in each column, as a dot with an error bar of one standard deviation.

    Dots and not bars from zero: differences of one point would be invisible in bars, and truncated bars mislead.
    """
    rows = [row for row in table.rows if any(table.cell(row, column).values for column in table.columns)]
    figure = create_figure(9.5, 1.6 + 0.34 * max(4, len(rows)) + 0.03 * len(rows) * len(table.columns))
    axes = figure.add_subplot()
    spread = min(0.6, 0.14 * (len(table.columns) - 1))
    offsets = np.linspace(-spread / 2, spread / 2, len(table.columns)) if len(table.columns) > 1 else [0.0]
    handles, labels = [], []
    for i, (column, offset) in enumerate(zip(table.columns, offsets, strict=True)):
        points = [(y + offset, table.cell(row, column)) for y, row in enumerate(rows) if table.cell(row, column).values]
        if points:
            handles.append(_dots(axes, points, i, label_values=len(table.columns) == 1))
            labels.append(f"{column} shot{'s' if column != 1 else ''}" if isinstance(column, int) else truncate(column))
    axes.set_yticks(range(len(rows)), [truncate(names[row], MAX_LABEL_CHARACTERS) for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for y in range(1, len(rows)):
        axes.axhline(y - 0.5, color="#f0f0f0", linewidth=0.8, zorder=0)
    axes.tick_params(axis="y", length=0)
    finish_axes(axes, "")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("accuracy in %")
    _legend(figure, handles, labels, "mean ± sd")
    set_title(figure, table.title)
    return figure


def _dots(axes: Axes, points: Sequence[tuple[float, Any]], i: int, label_values: bool) -> Any:
    style = {**_style(i), "linestyle": "none"}
    x = [100 * cell.mean for _, cell in points]
    sd = [100 * cell.sd for _, cell in points]
    bars = axes.errorbar(x, [y for y, _ in points], xerr=sd, **style, markersize=6, elinewidth=1.4, capsize=2.5)
    if label_values:
        for value, width, (y, _) in zip(x, sd, points, strict=True):
            axes.annotate(f"{value:.1f}", (value + width, y), xytext=(6, 0), textcoords="offset points", va="center")
        axes.margins(x=0.12)
    return bars


def draw_heat_map(
    spots: Sequence[tuple[str, Table, str | int]],
    rows: Sequence[Row],
    names: Mapping[Row, str],
    reference: Row,
    title: str,
) -> Figure:
    """Accuracy of each head on each data set; the colour is the difference to the reference.

    Args:
        spots: for each column its name, and the table and column of its figures.
        rows: heads.
        names: names of the heads in the plot.
        reference: the head that colours are relative to.
        title: above the plot.
    """
    figures = [[table.measurements.get((row, column)) for _, table, column in spots] for row in rows]
    values = np.array(
        [
            [
                100 * measurement.cell.mean if measurement is not None and measurement.by_seed else np.nan
                for measurement in line
            ]
            for line in figures
        ]
    )
    above = values - (values[list(rows).index(reference)] if reference in rows else np.nan)
    limit = float(np.clip(np.nanmax(np.abs(above)), 1, 15)) if np.isfinite(above).any() else 1.0
    figure = create_figure(4.2 + 0.8 * len(spots), 2.4 + 0.3 * len(rows))
    axes = figure.add_subplot()
    axes.set_facecolor("#eeeeee")
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(above), cmap="PuOr_r", vmin=-limit, vmax=limit, edgecolors="white", linewidth=1.2
    )
    for i, j in np.ndindex(values.shape):
        known = bool(np.isfinite(values[i, j]))
        colour = mesh.cmap(mesh.norm(above[i, j])) if np.isfinite(above[i, j]) else (1.0, 1.0, 1.0)
        dark = np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.52
        text = f"{values[i, j]:.1f}" if known else "–"
        axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8.5, color="white" if dark else "#222222")
    rotation: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if len(spots) > 3 else {}
    axes.set_xticks(np.arange(len(spots)) + 0.5, [truncate(name) for name, _, _ in spots], parse_math=False, **rotation)
    axes.set_yticks(
        np.arange(len(rows)) + 0.5, [truncate(names[row], MAX_LABEL_CHARACTERS) for row in rows], parse_math=False
    )
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, shrink=0.8, aspect=28, pad=0.02, extend="both")
    bar.set_label(f"points above {names.get(reference, reference.label)}", parse_math=False)
    bar.outline.set_visible(False)
    set_title(figure, title)
    return figure


def _shots_axis(axes: Axes, shots: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, [str(n) for n in shots])
    axes.set_xlim(shots[0] / 1.15, shots[-1] * 1.15)
    axes.minorticks_off()
    axes.set_xlabel("shots per class")


def finish_axes(axes: Axes, ylabel: str) -> None:
    """Label the y axis, and add a faint grid; lines are at the left and the bottom only."""
    axes.set_ylabel(ylabel)
    style_axes(axes, GRID_COLOUR)


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], title: str) -> None:
    legend = figure.legend(handles, labels, loc="outside right upper", frameon=False, title=title, alignment="left")
    for text in legend.get_texts():
        text.set_parse_math(False)


MIN_FIT_SECONDS = 1e-5
"""Shorter fits are drawn at this time."""


def draw_efficiency(table: Table, names: Mapping[Row, str]) -> Figure:
    """Accuracy over seconds of a fit, with the most shots; each point has the name of its head."""
    figure = create_figure(9.5, 6.4)
    axes = figure.add_subplot()
    points = []
    for row in table.rows:
        runs = [run for run in select_most_shots(table.runs[row]) if run.metrics is not None]
        if runs:
            accuracy, sd = mean_sd([100 * run.metrics.accuracy for run in runs if run.metrics])
            seconds = max(mean_sd([run.seconds.fit for run in runs if run.seconds])[0], MIN_FIT_SECONDS)
            points.append((seconds, accuracy, sd, names[row]))
    for i, label in enumerate(
        ("sees the shots and class text only", f"{TRANSDUCTIVE} or {EXTRA_LABELS}: sees more than that")
    ):
        group = [point for point in points if point[3].endswith((TRANSDUCTIVE, EXTRA_LABELS)) == bool(i)]
        if group:
            style: dict[str, Any] = {"color": COLOURS[i], "marker": "oD"[i], "ecolor": FAINT, "label": label}
            at, height, bar, _ = zip(*group, strict=True)
            axes.errorbar(at, height, yerr=bar, **style, linestyle="none", markersize=6, elinewidth=1.0, zorder=3)
    axes.set_xscale("log")
    if points:
        x, y = [point[0] for point in points], [point[1] for point in points]
        margin = 0.06 * max(max(y) - min(y), 1.0)
        span = max(max(x) / min(x), 10.0)
        axes.set_ylim(min(y) - margin, max(y) + 3 * margin)
        axes.set_xlim(min(x) / span**0.05, max(x) * span**0.2)  # space for names at the right
        _name_points(axes, [(point[0], point[1], point[3]) for point in points])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", frameon=False, ncols=2)
    finish_axes(axes, "accuracy in %")
    axes.set_xlabel("seconds to fit")
    set_title(figure, table.title)
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
            {"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "shrinkA": 0}
            if label_y - y > line_height / 2
            else None
        )
        axes.annotate(
            truncate(name),
            (x, y),
            xytext=(float(np.exp(label_start)), label_y),
            va="center",
            fontsize=8.5,
            color="#222222",
            arrowprops=arrow,
            parse_math=False,
            annotation_clip=False,
            zorder=4,
        )


MAX_TASKS_WITH_NUMBERS = 12
"""With more tasks, numbers in cells can't be read."""


def draw_task_matrices(heads: Sequence[HeadRuns], tasks: Sequence[str], title: str) -> Figure:
    """One heat map per head: accuracy on each task (columns) after each task (rows).

    Cells before a task was learned are hatched, and above the stairs.

    Args:
        heads: heads with figures.
        tasks: names of the tasks in order.
        title: above the plot.
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
        axes.set_title(_named(panels[i][0]), fontsize=9, loc="left", parse_math=False)
    bar = figure.colorbar(mesh, ax=grid, shrink=0.7, aspect=30, pad=0.01)
    bar.set_label("accuracy in %")
    bar.outline.set_visible(False)
    set_title(figure, f"{title}\nrow: after this task; column: measured on this task; hatched: before it was learned")
    return figure


def _named(learner: HeadRuns) -> str:
    suffix = (
        "" if learner.learns in learner.label else f" · {'learns ' * (learner.learns == 'nothing')}{learner.learns}"
    )
    return f"{truncate(learner.label, 40)}{suffix}"


def _panel(axes: Axes, matrix: Any, tasks: Sequence[str], low: float, has_row_names: bool) -> Any:
    n = len(tasks)
    mesh = axes.pcolormesh(matrix, cmap="YlGnBu", vmin=low, vmax=100, edgecolors="white", linewidth=0.8)
    for t, i in np.ndindex(matrix.shape):
        if t < i:
            axes.add_patch(_hatched(i, t))
        if n <= MAX_TASKS_WITH_NUMBERS:
            dark = np.dot(mesh.cmap(mesh.norm(matrix[t, i]))[:3], (0.299, 0.587, 0.114)) < 0.52
            text = axes.text(i + 0.5, t + 0.5, f"{matrix[t, i]:.0f}", ha="center", va="center", fontsize=7.5)
            text.set_color("white" if dark else "#222222")
            if t < i:
                text.set_fontstyle("italic")
    stairs = [(k + step, k + 0.0) for k in range(n) for step in (0, 1)]
    axes.plot(*zip(*stairs, (n, n), strict=True), color="#222222", linewidth=1.4)
    axes.set_xticks(np.arange(n) + 0.5, [truncate(name, 18) for name in tasks], rotation=40, ha="right", fontsize=7.5)
    axes.set_yticks(
        np.arange(n) + 0.5, [truncate(name, 18) for name in tasks] if has_row_names else [""] * n, fontsize=7.5
    )
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


def draw_learned_tasks(heads: Sequence[HeadRuns], title: str) -> Figure:
    """Mean accuracy on the tasks learned so far, after each task: one line per head, dashed for joint heads.

    Args:
        heads: heads with figures.
        title: above the plot.
    """
    figure = create_figure(8.5, 4.8)
    axes = figure.add_subplot()
    for i, head in enumerate(heads):
        cells = head.so_far
        x = np.arange(1, len(cells) + 1)
        y, sd = (100 * np.array([getattr(cell, name) for cell in cells]) for name in ("mean", "sd"))
        colour = COLOURS[i % len(COLOURS)]
        style: dict[str, Any] = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        (line,) = axes.plot(x, y, **style, linestyle="-" if head.learns == "task by task" else "--", linewidth=1.8)
        line.set_label(f"{truncate(head.label, 40)}  {y[-1]:.1f}")
        axes.fill_between(x, y - sd, y + sd, color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks(range(1, len(cells) + 1))
    axes.set_xlabel("tasks learned")
    finish_axes(axes, "accuracy on them in %")
    legend = figure.legend(loc="outside right upper", frameon=False, title="mean ± sd, at the end", alignment="left")
    for text in legend.get_texts():
        text.set_parse_math(False)
    set_title(figure, f"{title}\ndashed: joint, or learns nothing")
    return figure
