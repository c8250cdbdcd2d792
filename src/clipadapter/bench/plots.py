"""Learning curves and confusion matrices as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.run import Run
from clipadapter.bench.summary import Metric, Summary, summarise
from clipadapter.metrics import METRICS, Evaluation
from clipadapter.rendering.plots import COLOURS, MARKERS, create_figure, save_png, set_title, style_axes, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_learning_curve(runs: Sequence[Run], path: str | Path, title: str = "", metric: Metric = "accuracy") -> Path:
    """Draw a metric over the number of shots: one line per head, with error bars of one standard deviation.

    Args:
        runs: records of one comparison.
        path: PNG file to write.
        title: above the plot.
        metric: name of the metric.

    Raises:
        InputError: if there are no records, or the file can't be written.
    """
    summary = summarise(runs, metric)
    figure = create_figure(8.0, 5.0)
    axes = figure.add_subplot()
    for i, head in enumerate(summary.heads):
        _line(axes, summary, head, i)
    axes.set_xscale("log", base=2)
    axes.set_xticks(summary.shots, [str(n) for n in summary.shots])
    axes.set_xlim(summary.shots[0] / 1.25, summary.shots[-1] * 1.25)
    axes.minorticks_off()
    axes.set_xlabel("shots per class")
    axes.set_ylabel(METRICS[metric].title_with_unit)
    style_axes(axes)
    seeds = len({run.seed for run in runs})
    legend_title = f"mean ± sd of {seeds} draws" if seeds > 1 else "one draw"
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, title=legend_title)
    set_title(figure, title)
    return save_png(figure, path)


def draw_confusion_matrix(evaluation: Evaluation, path: str | Path, title: str = "", limit: int = 25) -> Path:
    """Draw which classes are predicted as which. Of many classes only those with most mistakes are drawn.

    Args:
        evaluation: of the predictions.
        path: PNG file to write.
        title: above the plot.
        limit: maximum number of drawn classes.

    Raises:
        InputError: if the file can't be written.
    """
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
    fractions = counts / np.maximum(totals, 1)
    size = 0.34 if len(classes) > 8 else 0.75
    figure = create_figure(3.6 + size * len(columns), 2.6 + size * len(classes))
    axes = figure.add_subplot()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    _name_axes(axes, columns, [f"{evaluation.classes[i].name}" for i in classes])
    _write_counts(axes, counts, fractions)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=25, pad=0.02)
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    heading = title + (
        f"\nthe {len(classes)} of {len(evaluation.classes)} classes with most mistakes" if n_others else ""
    )
    set_title(figure, heading.strip())
    return save_png(figure, path)


def worst_classes(confusion: NDArray[np.int64], limit: int) -> list[int]:
    """Positions of the classes with the most mistakes, as true or predicted class, in class order.

    >>> worst_classes(np.array([[5, 0, 0], [0, 3, 2], [0, 1, 4]]), limit=2)
    [1, 2]
    """
    if len(confusion) <= limit:
        return list(range(len(confusion)))
    wrong = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * np.diag(confusion)
    return sorted(int(i) for i in np.argsort(-wrong, kind="stable")[:limit])


def _line(axes: Axes, summary: Summary, head: str, i: int) -> None:
    points = [(n, summary.cells[head, n]) for n in summary.shots if summary.cells[head, n].values]
    if not points:
        return
    factor = METRICS[summary.metric].scale
    # Heads are shifted slightly, so that their error bars can be distinguished.
    shift = 2 ** (0.05 * (i - (len(summary.heads) - 1) / 2) / max(1, len(summary.heads) / 5))
    axes.errorbar(
        [n * shift for n, _ in points],
        [factor * cell.mean for _, cell in points],
        yerr=[factor * cell.sd for _, cell in points],
        label=head,
        color=COLOURS[i % len(COLOURS)],
        marker=MARKERS[i % len(MARKERS)],
        linestyle="-" if i < len(COLOURS) else "--",
        linewidth=1.8,
        markersize=6,
        capsize=3,
        elinewidth=1.2,
    )


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
        colour = "white" if fractions[i, j] > 0.55 else "black"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=size, color=colour)
