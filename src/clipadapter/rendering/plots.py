"""Plots as PNG files, without the global state of matplotlib."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from clipadapter.errors import require
from clipadapter.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
BLUE, VERMILION = "#0072B2", "#D55E00"
"""Two colours of Okabe and Ito, which colour-blind people can distinguish."""
GRID_GREY = "#dddddd"


def create_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height are in inches."""
    # Not pyplot, which stores every figure and selects a backend for the whole process.
    figure: Figure = require("matplotlib.figure", "lite", "the plot").Figure(
        figsize=(width, height), dpi=DPI, layout="constrained"
    )
    return figure


def style_axes(axes: Axes, grid_colour: str = GRID_GREY) -> None:
    """A grid behind the data, and lines at the left and the bottom only."""
    axes.grid(color=grid_colour, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def truncate(name: str, length: int) -> str:
    """The first letters of a long name, with an ellipsis.

    >>> truncate("a long name", 6), truncate("short", 6)
    ('a lon…', 'short')
    """
    return name if len(name) <= length else name[: length - 1] + "…"


def save_png(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a PNG file, completely or not at all.

    Raises:
        InputError: if it can't be written.
    """
    data = BytesIO()
    with warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes, and is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(data, format="png", facecolor="white")
    return write_atomically(path, data.getvalue())
