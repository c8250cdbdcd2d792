"""Figures as PNG, PDF and SVG files, without the global state of matplotlib."""

from __future__ import annotations

import base64
import re
import textwrap
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import InputError, require
from clipadapter.utils.files import path_without_links, write_atomically
from clipadapter.utils.formatting import shorten_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
PLOT_FORMATS = ("png", "pdf", "svg")
BLUE, VERMILION = "#0072B2", "#D55E00"
"""Two colours of Okabe and Ito, which colour-blind people can distinguish."""
INK, GREY, PALE_GREY, GRID_GREY = "#222222", "#666666", "#c4c4c4", "#e2e2e2"
"""Text, secondary text, lines of secondary importance, and grids."""
SUBTITLE_LETTERS_PER_INCH = 13
MAX_NAME_CHARACTERS = 28
GREEK = {
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "delta": "δ",
    "epsilon": "ε",
    "eta": "η",
    "lambda": "λ",
    "mu": "μ",
    "sigma": "σ",
    "tau": "τ",
}
SETTINGS: dict[Any, Any] = {
    # TrueType fonts in PDF files, and text as text in SVG files: both can be searched, and edited by other programs.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "clipadapter",
}


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
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(color="#999999", labelcolor="#333333")


def set_title(figure: Figure, text: str) -> None:
    """Put a title at the upper left, broken into lines that fit: the layout makes no room for a long one."""
    width = int(9.5 * figure.get_figwidth())  # characters
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, width)]
    if lines:
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=12, parse_math=False)


def set_subtitle(axes: Axes, text: str) -> None:
    """Put a note in grey above the axes, such as what a band means, broken into lines that fit on the page."""
    width = int(SUBTITLE_LETTERS_PER_INCH * (axes.figure.get_figwidth() - 1))  # type: ignore[union-attr]
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, width)]
    axes.set_title("\n".join(lines), loc="left", fontsize=9, color=GREY, parse_math=False)


def label_axes(axes: Axes, title: str, note: str, x: str = "", y: str = "") -> None:
    """Style axes, and write the names of both, a note above them, and the title of the figure."""
    style_axes(axes)
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y)
    set_subtitle(axes, note)
    set_title(axes.figure, title)  # type: ignore[arg-type]


def truncate(name: str, length: int = MAX_NAME_CHARACTERS) -> str:
    """A name for a plot: of a long one the beginning and the end, as `shorten_name` in tables.

    >>> truncate("a long name", 6), truncate("short", 6)
    ('a l…me', 'short')
    """
    return shorten_name(name, length)


def format_greek(text: str) -> str:
    """A text in which the names of Greek letters are letters, as in papers.

    >>> format_greek("alpha"), format_greek("clip-adapter (beta=0.2)"), format_greek("alphabet")
    ('α', 'clip-adapter (β=0.2)', 'alphabet')
    """
    return re.sub(r"(?<![A-Za-z])(" + "|".join(GREEK) + r")(?![A-Za-z])", lambda match: GREEK[match[1]], text)


def parse_plot_formats(text: str) -> tuple[str, ...]:
    """The formats in a text such as "png,pdf", each once, in the order of the text.

    >>> parse_plot_formats("PDF, png,pdf")
    ('pdf', 'png')
    """
    formats = tuple(dict.fromkeys(part.strip().lower().removeprefix(".") for part in text.split(",") if part.strip()))
    if not formats or not set(formats) <= set(PLOT_FORMATS):
        raise InputError(f"plots are written as {', '.join(PLOT_FORMATS)}, but '{text}' was given: give png,pdf")
    return formats


def save_plot(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a PNG, PDF or SVG file, completely or not at all. The suffix of the path says which.

    Text is text in PDF and SVG files, and these contain the font. A figure that is drawn again gives the same bytes.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in PLOT_FORMATS:
        endings = ", ".join(f".{one}" for one in PLOT_FORMATS)
        raise InputError(f"{path.name} does not end with {endings}: give a file name that does")
    return write_atomically(path, render_plot(figure, kind))


def save_plots(figure: Figure, path: str | Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write a figure in each of some formats, see `save_plot`."""
    path = Path(path)
    return [save_plot(figure, path_without_links(path.parent, f"{path.name}.{kind}")) for kind in formats]


def render_plot(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a PNG, PDF or SVG file."""
    from matplotlib import rc_context

    if kind == "png":
        return _render(figure, format="png")
    with rc_context(SETTINGS):
        if kind == "pdf":
            return _render(figure, format="pdf", metadata={"CreationDate": None})
        return _embed_font(_render(figure, format="svg", metadata={"Date": None}))


def _render(figure: Figure, **options: Any) -> bytes:
    data = BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes, and is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(data, facecolor="white", **options)
    return data.getvalue()


def _embed_font(svg: bytes) -> bytes:
    """Add the letters that an SVG file uses of matplotlib's font: a viewer without it would break the layout."""
    from fontTools import subset
    from matplotlib import font_manager

    letters = set("".join(re.findall(r">([^<]*)</t(?:ext|span)>", svg.decode())))
    names = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}
    options = subset.Options(flavor="woff", layout_features=[], hinting=False, drop_tables=["FFTM"])
    data = BytesIO()
    with subset.load_font(font_manager.findfont("DejaVu Sans"), options) as font:
        cutter = subset.Subsetter(options)
        cutter.populate(text="".join(letters | set(names.values())))
        cutter.subset(font)
        font["head"].modified = font["head"].created  # the same figure gives the same bytes
        subset.save_font(font, data, options)
    source = f"data:font/woff;base64,{base64.b64encode(data.getvalue()).decode()}"
    style = f"<style>@font-face {{ font-family: 'DejaVu Sans'; src: url({source}) format('woff'); }}</style>"
    return svg.replace(b"<defs>", f"<defs>{style}".encode(), 1)
