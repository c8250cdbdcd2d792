"""Figures as PNG and SVG files, without the global state of matplotlib."""

from __future__ import annotations

import textwrap
import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import require
from clipadapter.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
BLUE, VERMILION = "#0072B2", "#D55E00"
"""Two colours of Okabe and Ito, which colour-blind people can distinguish."""
COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours without yellow, which is too light for a line."""
MARKERS = "osD^vPX*"
GRID_GREY = "#dddddd"
MAX_NAME_CHARACTERS = 28


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


def set_title(figure: Figure, text: str) -> None:
    """Put a title at the upper left, broken into lines that fit: the layout makes no room for a long one."""
    width = int(8 * figure.get_figwidth())  # characters; a legend may stand at the right
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, width)]
    if lines:
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11, parse_math=False)


def truncate(name: str, length: int = MAX_NAME_CHARACTERS) -> str:
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
    return write_atomically(path, _render(figure, format="png"))


def render_svg(figure: Figure) -> bytes:
    """A figure as an SVG file. The same figure gives the same bytes."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "clipadapter"}):
        return _render(figure, format="svg", metadata={"Date": None})


def _render(figure: Figure, **options: Any) -> bytes:
    data = BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes, and is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(data, facecolor="white", **options)
    return data.getvalue()
