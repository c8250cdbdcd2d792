"""An explanation as a PNG file; matplotlib's global state is left alone."""

from __future__ import annotations

import textwrap
import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipadapter.data.images import read_image
from clipadapter.errors import ImageError
from clipadapter.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from clipadapter.explain.explanation import Explanation, Neighbour

DPI = 150
WIDTH = 10.5
FOR, AGAINST = "#0072B2", "#D55E00"
"""Okabe and Ito's blue and vermilion, which colour-blind people can tell apart."""
SHOWN = 5
"""Nearest shots that are drawn; `Explanation.to_dict` has all."""
SMALL = 192
"""Longest side of a drawn shot in pixels."""


def draw(found: Explanation, path: str | Path) -> Path:
    """Write the file, whole or not at all; see `Explanation.to_png`."""
    # Not pyplot: it keeps every figure, and would choose a backend for the whole process.
    from matplotlib.figure import Figure

    shots = found.nearest[:SHOWN]
    figure = Figure(figsize=(WIDTH, 3.9 + (2.3 if shots else 0)), dpi=DPI, layout="constrained")
    parts = figure.subfigures(2 if shots else 1, 1, height_ratios=[1.75, 1] if shots else None, squeeze=False)[:, 0]
    _upper(parts[0], found)
    if shots:
        _lower(parts[1], shots)
    figure.suptitle(_title(found), x=0.01, ha="left", fontsize=12, parse_math=False)
    return _save(figure, path)


def _title(found: Explanation) -> str:
    name = Path(found.source).name
    return "\n".join(textwrap.wrap(f"{name}: {found.sentences()[0]}", 110))


def _upper(figure: Any, found: Explanation) -> None:
    panels = figure.subplots(1, 3, width_ratios=[1, 1.12, 1])
    _show(panels[0], found.picture, "the picture")
    _heat(panels[1], found)
    _bars(panels[2], found)


def _show(axes: Axes, pixels: Any, title: str) -> None:
    axes.imshow(pixels)
    axes.set_anchor("N")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_axis_off()


def _heat(axes: Axes, found: Explanation) -> None:
    if found.heat is None or found.square is None or found.heat_range is None:
        axes.set_axis_off()
        why = next((note for note in found.notes if "heat map" in note), "no heat map")
        _words(axes, why)
        return
    side = len(found.square)
    grey = found.square.astype(np.float64) @ [0.299, 0.587, 0.114]
    axes.set_anchor("N")
    # Grey and pale beneath, so that all colour is the map's.
    axes.imshow(128 + grey / 2, cmap="gray", vmin=0, vmax=255)
    low, high = found.heat_range
    # The grid covers the square whatever its number of cells: the outer edges of the cells are those of the picture.
    image = axes.imshow(
        low + found.heat * (high - low),
        cmap="viridis",
        alpha=0.6,
        extent=(-0.5, side - 0.5, side - 0.5, -0.5),
        interpolation="bicubic",
    )
    axes.set_title(f"where it sees '{_short(found.label, 24)}'", fontsize=10, parse_math=False)
    axes.set_axis_off()
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.75, aspect=22, pad=0.02)
    bar.set_label("logit less the mean of the others'", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_alpha(1)


def _bars(axes: Axes, found: Explanation) -> None:
    if found.text is None or found.shots is None:
        axes.set_axis_off()
        _words(axes, "\n\n".join(found.sentences()[1:] + [note for note in found.notes if "heat map" not in note]))
        return
    values = [found.text, found.shots, found.margin]
    names = ["class text", "shots", "together"]
    axes.bar(names, values, color=[FOR if value >= 0 else AGAINST for value in values], width=0.6)
    axes.axhline(0, color="black", linewidth=0.8)
    reach = max(*np.abs(values), 1e-9)
    for i, value in enumerate(values):
        axes.annotate(
            f"{value:+.2f}",
            (i, value),
            xytext=(0, 3 if value >= 0 else -3),
            textcoords="offset points",
            ha="center",
            va="bottom" if value >= 0 else "top",
            fontsize=9,
        )
    axes.set_ylim(min(0, *values) - 0.12 * reach, max(0, *values) + 0.12 * reach)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(labelsize=9)
    axes.set_box_aspect(1)
    axes.set_anchor("N")
    title = f"how far '{_short(found.label, 14)}' leads '{_short(str(found.against), 14)}'"
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_ylabel("difference of logits", fontsize=8)
    axes.set_xlabel("\n".join(textwrap.wrap(" ".join(found.sentences()[3:]), 44)), fontsize=8, parse_math=False)


def _lower(figure: Any, shots: tuple[Neighbour, ...]) -> None:
    figure.suptitle("the shots most like it, by cosine", fontsize=10, x=0.01, ha="left")
    for axes, shot in zip(figure.subplots(1, SHOWN), [*shots, *[None] * (SHOWN - len(shots))], strict=True):
        if shot is None:
            axes.set_axis_off()
            continue
        place = Path(shot.source).name if shot.known else shot.source
        _show(axes, _picture_of(shot), f"{shot.similarity:.3f}  {_short(shot.label, 18)}\n{_short(place, 24)}")
        axes.title.set_fontsize(9)


def _picture_of(shot: Neighbour) -> Any:
    """The shot's pixels; plain grey if its file is not there any more, or was never named."""
    if shot.known:
        try:
            picture = read_image(shot.source)
        except ImageError:
            pass
        else:
            picture.thumbnail((SMALL, SMALL))
            return np.asarray(picture)
    return np.full((SMALL * 3 // 4, SMALL, 3), 225, np.uint8)


def _words(axes: Axes, text: str) -> None:
    lines = "\n".join("\n".join(textwrap.wrap(line, 34)) for line in text.split("\n"))
    axes.text(0.5, 0.5, lines, ha="center", va="center", fontsize=9, transform=axes.transAxes, parse_math=False)


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _save(figure: Figure, path: str | Path) -> Path:
    data = BytesIO()
    with warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes: no reason to have no picture.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(data, format="png", facecolor="white")
    return write_atomically(path, data.getvalue())
