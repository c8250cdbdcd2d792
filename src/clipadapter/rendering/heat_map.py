"""Heat maps with a text in each cell: confusions, accuracies by data set, and accuracies by task."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.metrics import Evaluation
from clipadapter.rendering.plots import (
    INK,
    SUBTITLE_LETTERS_PER_INCH,
    create_figure,
    set_subtitle,
    set_title,
    truncate,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
DARK = 0.52
"""On a background of a lower lightness, text is white."""


def draw_cells(
    axes: Axes,
    layers: Sequence[tuple[Any, str, float, float]],
    columns: Sequence[str],
    rows: Sequence[str],
    text: Callable[[int, int], str],
    size: float = 8.5,
    rotation: float = 0.0,
) -> Any:
    """Draw coloured cells with a text in each, and the names of columns and rows, the first at the top.

    A layer is masked values of all cells, and their colour map with its limits; masked cells are left out. Returns what
    a colour bar of the last layer is made of.
    """
    lightness, mesh = np.ones((len(rows), len(columns))), None
    for values, colours, low, high in layers:
        masked = np.ma.masked_invalid(values)
        mesh = axes.pcolormesh(masked, cmap=colours, vmin=low, vmax=high, edgecolors="white", linewidth=1.0)
        known = ~np.ma.getmaskarray(masked)
        lightness[known] = (np.asarray(mesh.cmap(mesh.norm(masked)))[..., :3] @ (0.299, 0.587, 0.114))[known]
    for i, j in np.ndindex(lightness.shape):
        colour = "white" if lightness[i, j] < DARK else INK
        axes.text(j + 0.5, i + 0.5, text(i, j), ha="center", va="center", fontsize=size, color=colour)
    turn: dict[str, Any] = {"rotation": rotation, "ha": "right", "rotation_mode": "anchor"} if rotation else {}
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, parse_math=False, **turn)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows, parse_math=False)
    axes.set_ylim(len(rows), 0)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return mesh


def add_colour_bar(figure: Figure, mesh: Any, axes: Any, label: str, **options: Any) -> None:
    """A colour bar at the right."""
    bar = figure.colorbar(mesh, ax=axes, **{"shrink": 0.8, "aspect": 28, "pad": 0.02, **options})
    bar.set_label(label, parse_math=False)
    bar.outline.set_visible(False)


def confusion_figure(evaluation: Evaluation, title: str = "", limit: int = 25) -> Figure:
    """Which classes are predicted as which. Of many classes only those with most mistakes are drawn."""
    classes = worst_classes(evaluation.confusion, limit)
    counts, columns = evaluation.confusion[np.ix_(classes, classes)], [evaluation.classes[i].name for i in classes]
    rows, n_others = list(columns), len(evaluation.classes) - len(classes)
    if n_others:
        others = evaluation.confusion[classes].sum(axis=1) - counts.sum(axis=1)
        counts, columns = np.column_stack([counts, others]), [*columns, f"{n_others} others"]
    shares = counts / np.maximum(evaluation.confusion[classes].sum(axis=1, keepdims=True), 1)
    side, are_many = (0.34, True) if len(classes) > 8 else (0.75, False)
    figure = create_figure(max(5.0, 2.6 + side * len(columns)), 2.4 + side * len(classes))
    axes = figure.add_subplot(aspect="equal")
    is_right: NDArray[np.bool_] = np.eye(*counts.shape) > 0
    # Up to 1.15, so that the darkest colour still has the hue.
    layers = [
        (np.ma.masked_array(shares, ~part | (counts == 0)), colours, -0.05, 1.15)
        for part, colours in ((is_right, "Blues"), (~is_right, "Oranges"))
    ]
    names = [truncate(name) for name in columns]
    is_long = max(map(len, columns)) > 12 or len(columns) > 8
    draw_cells(
        axes,
        layers,
        names,
        [truncate(name) for name in rows],
        lambda i, j: str(counts[i, j]) if counts[i, j] else "",
        size=8 if are_many else 11,
        rotation=45 if is_long else 0,
    )
    axes.tick_params(labelsize=9 if len(columns) > 8 else 10)
    axes.set_facecolor("#f4f4f2")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    note = f"{len(classes)} of {len(evaluation.classes)} classes, those with most mistakes; " if n_others else ""
    note += "blue: right, orange: wrong; darker: a larger share of the row"
    # Few classes make narrow axes, and the layout cuts off what is wider than the figure.
    letters = max(20, int(SUBTITLE_LETTERS_PER_INCH * side * len(columns)))
    set_subtitle(axes, "\n".join(textwrap.wrap(note, letters)))
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
