"""Plot of an explanation."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.data.images import read_image
from clipadapter.encoders.rare_patches import BORDER
from clipadapter.errors import ImageError
from clipadapter.rendering.plots import BLUE, VERMILION, create_figure, save_plot, set_title, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from clipadapter.explain.explanation import Explanation, Neighbour

WIDTH_INCHES = 10.5
WIDTH_OF_FOUR_PANELS = 14.0
TEXT_LINE_INCHES = 0.2
POSITIVE_COLOUR, NEGATIVE_COLOUR = BLUE, VERMILION
MAX_SHOTS = 5
"""Nearest shots that are drawn; `Explanation.to_dict` has all."""
SHOT_SIDE = 192
"""Longest side of a drawn shot in pixels."""
MIN_RARE_DISTANCE, MAX_USUAL_DISTANCE = 1.0, 2.0
"""Of the map of rare patches: the first colour is the distance of an ordinary patch. The last colour is at least the
second value, so that a picture without rare patches has no strong colours."""
MISSING_GREY = 225
GREY_WEIGHTS = (0.299, 0.587, 0.114)
"""Luminance of red, green and blue (ITU-R BT.601)."""


def plot_explanation(explanation: Explanation, path: str | Path, title: str = "") -> Path:
    """Write the plot as a PNG, PDF or SVG file; see `Explanation.plot`."""
    shots = explanation.nearest[:MAX_SHOTS]
    height, width = np.shape(explanation.picture)[:2]
    # The widths are such that the picture and the square of the heat map have the same height.
    rare_patches = None if explanation.square is None else explanation.rare_patches
    widths = [float(np.clip(width / height, 0.5, 1.6)), *[1.2] * (1 if rare_patches is None else 2), 1.15]
    figure_width = WIDTH_INCHES if rare_patches is None else WIDTH_OF_FOUR_PANELS
    heights = [(figure_width - 1.4) / sum(widths) + 1.0]
    details = [
        textwrap.fill(each, int(14 * figure_width), break_on_hyphens=False) for each in explanation.detail_sentences()
    ]
    if details:
        heights.append(TEXT_LINE_INCHES * (1 + "\n".join(details).count("\n") + 1))
    if shots:
        heights.append(2.5)
    figure = create_figure(figure_width, sum(heights))
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    panels = rows[0].subplots(1, len(widths), width_ratios=widths)
    _show_image(panels[0], explanation.picture, "the picture")
    _plot_heat_map(panels[1], explanation)
    if rare_patches is not None and explanation.square is not None:
        plot_rare_patches(panels[2], rare_patches, explanation.square)
    _plot_margin(panels[-1], explanation)
    if details:
        text = "\n".join(details)
        rows[1].text(0.01, 0.9, text, ha="left", va="top", fontsize=8, parse_math=False)
    if shots:
        _plot_shots(rows[-1], shots)
    set_title(figure, title or f"{Path(explanation.source).name}: {explanation.sentences()[0]}")
    return save_plot(figure, path)


def _show_image(axes: Axes, pixels: Any, title: str) -> None:
    axes.imshow(pixels)
    axes.set_anchor("N")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_axis_off()


def _plot_heat_map(axes: Axes, explanation: Explanation) -> None:
    if explanation.heat_map is None or explanation.square is None or explanation.heat_range is None:
        axes.set_axis_off()
        _show_text(axes, next((note for note in explanation.notes if "heat map" in note), "no heat map"))
        return
    low, high = explanation.heat_range
    image = _draw_map(axes, explanation.square, low + explanation.heat_map * (high - low), (low, high))
    block = ", block final" if explanation.blocks else ""
    title = f"heat map of '{truncate(explanation.label, 24)}'{block}"
    _label_map(axes, image, title, "logit less the mean of the others")


def plot_rare_patches(axes: Axes, distances: NDArray[np.float64], square: NDArray[np.uint8]) -> None:
    """Draw the map of what differs from the rest of the picture."""
    limits = MIN_RARE_DISTANCE, max(MAX_USUAL_DISTANCE, float(distances.max()))
    height, width = (BORDER / (cells + 2 * BORDER) for cells in distances.shape)
    image = _draw_map(axes, square, distances, limits, (height, width))
    _label_map(axes, image, "what differs from the rest", "distance, usually 1")


def _label_map(axes: Axes, image: AxesImage, title: str, label: str) -> None:
    axes.set_anchor("N")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_axis_off()
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.75, aspect=22, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_alpha(1)


def _draw_map(
    axes: Axes, square: Any, values: Any, limits: tuple[float, float], borders: tuple[float, float] = (0.0, 0.0)
) -> AxesImage:
    """Draw a grid (h, w) over a square (s, s, 3) with borders above and left, below and right: shares of its side."""
    side = len(square)
    grey = square.astype(np.float64) @ GREY_WEIGHTS
    # The picture is drawn in pale grey, so that all colour is that of the map.
    axes.imshow(128 + grey / 2, cmap="gray", vmin=0, vmax=255)
    # The grid covers the area for any number of cells: the outer edges of the cells are those of the area.
    top, left = (border * side - 0.5 for border in borders)
    image = axes.imshow(
        values,
        cmap="viridis",
        alpha=0.6,
        extent=(left, side - 1 - left, side - 1 - top, top),
        interpolation="bicubic",
        vmin=limits[0],
        vmax=limits[1],
    )
    axes.set_xlim(-0.5, side - 0.5)
    axes.set_ylim(side - 0.5, -0.5)
    return image


def _plot_margin(axes: Axes, explanation: Explanation) -> None:
    sentences = explanation.margin_sentences()
    if explanation.text_margin is None or explanation.shots_margin is None:
        axes.set_axis_off()
        notes = [note for note in explanation.notes if "heat map" not in note]
        _show_text(axes, "\n\n".join(sentences + notes))
        return
    values = [explanation.text_margin, explanation.shots_margin, explanation.margin]
    colours = [POSITIVE_COLOUR if value >= 0 else NEGATIVE_COLOUR for value in values]
    bars = axes.bar(["class text", "shots", "sum"], values, color=colours, width=0.6)
    axes.bar_label(bars, fmt="{:+.2f}", padding=3, fontsize=9)
    axes.axhline(0, color="black", linewidth=0.8)
    reach = max(*np.abs(values), 1e-9)
    axes.set_ylim(min(0, *values) - 0.12 * reach, max(0, *values) + 0.12 * reach)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(labelsize=9)
    axes.set_box_aspect(1)
    axes.set_anchor("N")
    title = f"lead of '{truncate(explanation.label, 12)}' over '{truncate(str(explanation.against), 12)}'"
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_ylabel("difference of logits", fontsize=8)
    axes.set_xlabel("\n".join(textwrap.wrap(" ".join(sentences[2:]), 44)), fontsize=8, parse_math=False)


def _plot_shots(figure: Any, shots: tuple[Neighbour, ...]) -> None:
    figure.suptitle("the most similar shots, by cosine", fontsize=10, x=0.01, ha="left")
    for axes, shot in zip(figure.subplots(1, MAX_SHOTS), [*shots, *[None] * (MAX_SHOTS - len(shots))], strict=True):
        if shot is None:
            axes.set_axis_off()
            continue
        name = Path(shot.source).name if shot.is_path else shot.source
        title = f"{shot.similarity:.3f}  {truncate(shot.label, 18)}\n{truncate(name, 24)}"
        _show_image(axes, read_shot(shot), title)
        axes.title.set_fontsize(9)


def read_shot(shot: Neighbour) -> Any:
    """The pixels of a shot; a grey area if its file is missing, or its path is not known."""
    if shot.is_path:
        try:
            picture = read_image(shot.source)
        except ImageError:
            pass
        else:
            picture.thumbnail((SHOT_SIDE, SHOT_SIDE))
            return np.asarray(picture)
    return np.full((SHOT_SIDE * 3 // 4, SHOT_SIDE, 3), MISSING_GREY, np.uint8)


def _show_text(axes: Axes, text: str) -> None:
    lines = "\n".join("\n".join(textwrap.wrap(line, 34)) for line in text.split("\n"))
    axes.text(0.5, 0.5, lines, ha="center", va="center", fontsize=9, transform=axes.transAxes, parse_math=False)
