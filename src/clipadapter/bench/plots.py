"""Learning curves and confusion matrices as PNG files; matplotlib's global state is left alone."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.run import Run
from clipadapter.bench.summary import Metric, Summary, summarise
from clipadapter.files import write_atomically
from clipadapter.metrics import METRICS, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, which colour-blind people can tell apart; yellow is left out, it is too light for a line."""
MARKERS = "osD^vPX*"
DPI = 150
NAME_LENGTH = 28


def learning_curve(runs: Sequence[Run], path: str | Path, title: str = "", metric: Metric = "accuracy") -> Path:
    """Draw the figure over the number of shots, one line a head, with a bar of one standard deviation either way.

    Args:
        runs: records of one comparison.
        path: PNG file to write.
        title: above the plot.
        metric: which figure.

    Raises:
        InputError: if there are no records, or the file can't be written.
    """
    summary = summarise(runs, metric)
    figure = _figure(8.0, 5.0)
    axes = figure.add_subplot()
    for i, head in enumerate(summary.heads):
        _line(axes, summary, head, i)
    axes.set_xscale("log", base=2)
    axes.set_xticks(summary.shots, [str(n) for n in summary.shots])
    axes.set_xlim(summary.shots[0] / 1.25, summary.shots[-1] * 1.25)
    axes.minorticks_off()
    axes.set_xlabel("shots a class")
    axes.set_ylabel(METRICS[metric].title_with_unit)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    seeds = len({run.seed for run in runs})
    legend = f"mean ± sd of {seeds} draws" if seeds > 1 else "one draw"
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, title=legend)
    _title(figure, title)
    return _save(figure, path)


def confusion_matrix(evaluation: Evaluation, path: str | Path, title: str = "", limit: int = 25) -> Path:
    """Draw which classes are taken for which; of many classes those with most mistakes, and a column for the rest.

    Args:
        evaluation: of the predictions.
        path: PNG file to write.
        title: above the plot.
        limit: how many classes are drawn at most.

    Raises:
        InputError: if the file can't be written.
    """
    shown = worst_classes(evaluation.confusion, limit)
    counts, columns = evaluation.confusion[np.ix_(shown, shown)], [evaluation.classes[i].name for i in shown]
    rest = len(evaluation.classes) - len(shown)
    if rest:
        others = evaluation.confusion[shown].sum(axis=1) - counts.sum(axis=1)
        counts, columns = np.column_stack([counts, others]), [*columns, f"{rest} others"]
    totals = evaluation.confusion[shown].sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    size = 0.34 if len(shown) > 8 else 0.75
    figure = _figure(3.6 + size * len(columns), 2.6 + size * len(shown))
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    _name_axes(axes, columns, [f"{evaluation.classes[i].name}" for i in shown])
    _write_counts(axes, counts, shares)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=25, pad=0.02)
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    head = title + (f"\nthe {len(shown)} of {len(evaluation.classes)} classes with most mistakes" if rest else "")
    _title(figure, head.strip())
    return _save(figure, path)


def worst_classes(confusion: NDArray[np.int64], limit: int) -> list[int]:
    """Positions of the classes that take part in the most mistakes, in class order; all if they are not too many.

    >>> worst_classes(np.array([[5, 0, 0], [0, 3, 2], [0, 1, 4]]), limit=2)
    [1, 2]
    """
    if len(confusion) <= limit:
        return list(range(len(confusion)))
    wrong = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * np.diag(confusion)
    return sorted(int(i) for i in np.argsort(-wrong, kind="stable")[:limit])


def _line(axes: Axes, summary: Summary, head: str, i: int) -> None:
    found = [(n, summary.cells[head, n]) for n in summary.shots if summary.cells[head, n].values]
    if not found:
        return
    factor = METRICS[summary.metric].scale
    # Heads stand a little beside each other, so that their bars can be told apart.
    shift = 2 ** (0.05 * (i - (len(summary.heads) - 1) / 2) / max(1, len(summary.heads) / 5))
    axes.errorbar(
        [n * shift for n, _ in found],
        [factor * cell.mean for _, cell in found],
        yerr=[factor * cell.sd for _, cell in found],
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
    axes.set_xticks(range(len(columns)), [_short(name) for name in columns], fontsize=size, parse_math=False, **turn)
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows], fontsize=size, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    size = 8 if len(counts) > 8 else 11
    for i, j in np.argwhere(counts):
        colour = "white" if shares[i, j] > 0.55 else "black"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=size, color=colour)


def _title(figure: Figure, text: str) -> None:
    """Put a title at the upper left, broken into lines that fit: the layout makes no room for a long one."""
    width = int(8 * figure.get_figwidth())  # letters; a legend may stand at the right
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, width)]
    if lines:
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11, parse_math=False)


def _short(name: str, length: int = NAME_LENGTH) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: it keeps every figure, and would choose a backend for the whole process.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _save(figure: Figure, path: str | Path) -> Path:
    data = BytesIO()
    with warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes: no reason to have no picture.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(data, format="png", facecolor="white")
    return write_atomically(path, data.getvalue())
