"""Figures without the global state of matplotlib: lines with bands, heat maps, and their files as PNG, PDF and SVG."""

from __future__ import annotations

import base64
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError, require
from clipadapter.utils.files import mark, path_without_links, write_atomically
from clipadapter.utils.formatting import shorten_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from clipadapter.metrics import Evaluation

Array = NDArray[Any]

DPI = 150
PLOT_FORMATS = ("png", "pdf", "svg")
BLUE, VERMILION = "#0072B2", "#D55E00"
"""Two colours of Okabe and Ito, which colour-blind people can distinguish."""
INK, GREY, PALE_GREY, GRID_GREY = "#222222", "#666666", "#c4c4c4", "#e2e2e2"
"""Text, secondary text, lines of secondary importance, and grids."""
SUBTITLE_LETTERS_PER_INCH = 13
MAX_NAME_CHARACTERS = 28
SETTINGS: dict[Any, Any] = {
    # TrueType fonts in PDF files, and text as text in SVG files: both can be searched, and edited by other programs.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "clipadapter",
}
MAX_COLOURED_LINES = 5  # more lines can't be distinguished: the others are thin and grey
LABEL_POINTS = 9.5
LABEL_LINE_POINTS = 1.4 * LABEL_POINTS
MAX_LABEL_CHARACTERS = 34
DARK = 0.52  # on a background of a lower lightness, text is white


def create_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height are in inches."""
    # Not pyplot, which stores every figure and selects a backend for the whole process.
    figure: Figure = require("matplotlib.figure", "lite", "the plot").Figure(
        figsize=(width, height), dpi=DPI, layout="constrained"
    )
    return figure


def style_axes(axes: Axes) -> None:
    """A grid behind the data, and lines at the left and the bottom only."""
    axes.grid(color=GRID_GREY, linewidth=0.8)
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
    """A name for a plot: of a long one the beginning and the end, as `shorten_name` in tables."""
    return shorten_name(name, length)


# ---- Lines with bands, labelled at their right end in place of a legend ----


@dataclass(frozen=True, eq=False)
class Curve:
    """A line of a plot, with its name at its right end."""

    label: str
    x: Array  # (n,) rising
    y: Array  # (n,)
    sd: Array | None  # (n,) half of the width of the band; None for no band
    colour: str
    marker: str = "o"
    linestyle: str = "-"
    is_level: bool = False  # does not depend on x: a star at the first x, and a dotted line through all others


def draw_curves(axes: Axes, curves: Sequence[Curve], others: Sequence[tuple[Array, Array]] = ()) -> None:
    """Draw lines with bands, earlier ones above later ones, and their names at the end; others are thin and grey."""
    for x, y in others:
        axes.plot(x, y, color=PALE_GREY, linewidth=0.9, zorder=1)
    for rank, curve in enumerate(reversed(curves)):
        _draw(axes, curve, zorder=3 + 0.1 * rank)
    heights = [curve.y for curve in curves] + [y for _, y in others]
    heights += [curve.y + sign * curve.sd for curve in curves if curve.sd is not None for sign in (-1, 1)]
    values = np.concatenate([*heights, np.zeros(0)])
    values = values if len(values) else np.array([0.0, 1.0])
    # A band that is much wider than all lines would make these flat.
    margin = 0.04 * max(float(np.ptp(values)), 1e-3)
    axes.set_ylim(values.min() - margin, values.max() + margin)
    _label_ends(axes, curves)


def _draw(axes: Axes, curve: Curve, zorder: float) -> None:
    style: dict[str, Any] = {"color": curve.colour, "zorder": zorder, "marker": curve.marker}
    if curve.is_level:
        axes.plot(curve.x, curve.y, linestyle=(0, (1, 2)), linewidth=1.3, **{**style, "marker": ""})
        axes.plot(curve.x[:1], curve.y[:1], markersize=14, linestyle="none", clip_on=False, **style)
        return
    # White edges, so that markers on one another can be distinguished.
    edge: dict[str, Any] = {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.8}
    axes.plot(curve.x, curve.y, linestyle=curve.linestyle, linewidth=2.0, **style, **edge)
    if curve.sd is not None:
        axes.fill_between(curve.x, curve.y - curve.sd, curve.y + curve.sd, color=curve.colour, alpha=0.14, linewidth=0)


def _label_ends(axes: Axes, curves: Sequence[Curve]) -> None:
    """Write the names of lines at the right of axes, near to their last points."""
    low, high = axes.get_ylim()
    # In points, before the layout is made, which changes the height a little.
    axes_height = axes.bbox.height * 72 / DPI
    gap = (high - low) * LABEL_LINE_POINTS / axes_height
    order = sorted(curves, key=lambda curve: curve.y[-1])
    for curve, height in zip(order, spread([curve.y[-1] for curve in order], gap, low, high), strict=True):
        axes.annotate(
            truncate(curve.label, MAX_LABEL_CHARACTERS),
            (curve.x[-1], curve.y[-1]),
            xytext=(1.035, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=LABEL_POINTS,
            color=darken(curve.colour),
            arrowprops={
                "arrowstyle": "-",
                "color": curve.colour,
                "linewidth": 0.9,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),  # the line ends at the left of the text
            },
            annotation_clip=False,
            parse_math=False,
        )


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Rising values, moved as little as necessary so that neighbours are a gap apart, within limits if they fit.

    >>> spread([1.0, 1.1, 5.0], gap=1.0, low=0.0, high=10.0)
    [0.55, 1.55, 5.0]
    >>> spread([9.9, 10.0], gap=1.0, low=0.0, high=10.0)
    [9.0, 10.0]
    """
    groups: list[list[float]] = []  # values that touch: they are centred on their mean
    for value in values:
        groups.append([value])
        while len(groups) > 1 and _start(groups[-1], gap, low, high) - _start(groups[-2], gap, low, high) < gap * len(
            groups[-2]
        ):
            last = groups.pop()
            groups[-1] += last
    starts = [(_start(group, gap, low, high), len(group)) for group in groups]
    return [round(start + k * gap, 10) for start, n in starts for k in range(n)]


def _start(group: Sequence[float], gap: float, low: float, high: float) -> float:
    extent = gap * (len(group) - 1)
    return max(low, min(sum(group) / len(group) - extent / 2, high - extent))


def darken(colour: str) -> str:
    """A colour such as "#0072B2", mixed with a quarter of the colour of text, so that letters in it can be read.

    >>> darken("#ffffff")
    '#c7c7c7'
    """
    channels = zip(*(bytes.fromhex(own[1:]) for own in (colour, INK)), strict=True)
    return "#" + bytes(int(0.75 * own + 0.25 * ink) for own, ink in channels).hex()


# ---- Heat maps with a text in each cell: confusions, accuracies by data set, and accuracies by task ----


def draw_cells(
    axes: Axes,
    layers: Sequence[tuple[Any, str, float, float]],
    columns: Sequence[str],
    rows: Sequence[str],
    text: Callable[[int, int], str],
    size: float = 8.5,
    rotation: float = 0.0,
) -> Any:
    """Draw coloured cells with a text in each, the first row at the top; masked ones are left out. For a colour bar."""
    lightness, mesh = np.ones((len(rows), len(columns))), None
    for values, colours, low, high in layers:  # masked values of all cells, and their colour map with its limits
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


# ---- Files ----


def parse_plot_formats(text: str) -> tuple[str, ...]:
    """The formats in a text such as "png,pdf", each once, in the order of the text."""
    formats = tuple(dict.fromkeys(part.strip().lower().removeprefix(".") for part in text.split(",") if part.strip()))
    if not formats or not set(formats) <= set(PLOT_FORMATS):
        raise InputError(f"plots are written as {', '.join(PLOT_FORMATS)}, but '{text}' was given: give png,pdf")
    return formats


def save_plot(figure: Figure, path: str | Path, writer: str) -> Path:
    """Write a figure with the `mark` of a command as a PNG, PDF or SVG file, as the suffix says.

    Drawn again it gives the same bytes.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in PLOT_FORMATS:
        endings = ", ".join(f".{one}" for one in PLOT_FORMATS)
        raise InputError(f"{path.name} does not end with {endings}: give a file name that does")
    return write_atomically(path, render_plot(figure, kind, mark(writer)))


def save_plots(figure: Figure, path: str | Path, writer: str, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write a figure in each of some formats, see `save_plot`."""
    path = Path(path)
    return [save_plot(figure, path_without_links(path.parent, f"{path.name}.{kind}"), writer) for kind in formats]


def render_plot(figure: Figure, kind: str, software: str = "clipadapter") -> bytes:
    """A figure as the bytes of a PNG, PDF or SVG file, which names what wrote it."""
    from matplotlib import rc_context

    data, without_date = BytesIO(), {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    facts = {"Software" if kind == "png" else "Creator": software, **without_date}
    with rc_context(SETTINGS), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes, and is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(data, format=kind, metadata=facts, facecolor="white")
    return _embed_font(data.getvalue()) if kind == "svg" else data.getvalue()


def _embed_font(svg: bytes) -> bytes:
    """Add the letters that an SVG file uses of matplotlib's font: a viewer without it would break the layout."""
    from fontTools import subset
    from matplotlib import font_manager

    letters = "".join(re.findall(r">([^<]*)</t(?:ext|span)>", svg.decode()))
    options = subset.Options(flavor="woff", layout_features=[], hinting=False, drop_tables=["FFTM"])
    data = BytesIO()
    with subset.load_font(font_manager.findfont("DejaVu Sans"), options) as font:
        cutter = subset.Subsetter(options)
        cutter.populate(text=f"{letters}&<>")  # some of these may be entities
        cutter.subset(font)
        font["head"].modified = font["head"].created  # the same figure gives the same bytes
        subset.save_font(font, data, options)
    source = f"data:font/woff;base64,{base64.b64encode(data.getvalue()).decode()}"
    style = f"<style>@font-face {{ font-family: 'DejaVu Sans'; src: url({source}) format('woff'); }}</style>"
    return svg.replace(b"<defs>", f"<defs>{style}".encode(), 1)
