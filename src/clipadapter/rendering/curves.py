"""Lines with bands, labelled at their right end in place of a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.rendering.plots import DPI, INK, PALE_GREY, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]
MAX_COLOURED_LINES = 5
"""More lines can't be distinguished: the others are thin and grey."""
LABEL_POINTS = 9.5
LABEL_LINE_POINTS = 1.4 * LABEL_POINTS
MAX_LABEL_CHARACTERS = 34


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
    """Draw lines with bands, earlier ones above later ones, and write the name of each at its right end.

    The axes have their scale and ticks; limits are set here, so that all bands are seen. Others, (x, y), are thin and
    grey, without a name.
    """
    for x, y in others:
        axes.plot(x, y, color=PALE_GREY, linewidth=0.9, zorder=1)
    for rank, curve in enumerate(reversed(curves)):
        _draw(axes, curve, zorder=3 + 0.1 * rank)
    # A band that is much wider than all lines would make these flat.
    low, high = _value_range(curves, others)
    margin = 0.04 * max(high - low, 1e-3)
    axes.set_ylim(low - margin, high + margin)
    label_ends(axes, [(curve.label, curve.x[-1], curve.y[-1], curve.colour) for curve in curves])


def _draw(axes: Axes, curve: Curve, zorder: float) -> None:
    style: dict[str, Any] = {"color": curve.colour, "zorder": zorder}
    if curve.is_level:
        axes.plot(curve.x, curve.y, linestyle=(0, (1, 2)), linewidth=1.3, **style)
        axes.plot(
            curve.x[:1], curve.y[:1], marker=curve.marker, markersize=14, linestyle="none", clip_on=False, **style
        )
        return
    # White edges, so that markers on one another can be distinguished.
    marker: dict[str, Any] = {
        "marker": curve.marker,
        "markersize": 6.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.8,
    }
    axes.plot(curve.x, curve.y, linestyle=curve.linestyle, linewidth=2.0, **style, **marker)
    if curve.sd is not None:
        axes.fill_between(curve.x, curve.y - curve.sd, curve.y + curve.sd, color=curve.colour, alpha=0.14, linewidth=0)


def _value_range(curves: Sequence[Curve], others: Sequence[tuple[Array, Array]]) -> tuple[float, float]:
    parts = [curve.y for curve in curves] + [y for _, y in others]
    parts += [curve.y + sign * curve.sd for curve in curves if curve.sd is not None for sign in (-1, 1)]
    values = np.concatenate([*parts, np.zeros(0)])
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Write the names of lines at the right of axes, near to the last points (name, x, y, colour)."""
    low, high = axes.get_ylim()
    # In points, before the layout is made, which changes the height a little.
    axes_height = axes.bbox.height * 72 / DPI
    gap = (high - low) * LABEL_LINE_POINTS / axes_height
    order = sorted(range(len(ends)), key=lambda i: ends[i][2])
    heights = spread([ends[i][2] for i in order], gap, low, high)
    for i, height in zip(order, heights, strict=True):
        name, x, y, colour = ends[i]
        axes.annotate(
            truncate(name, MAX_LABEL_CHARACTERS),
            (x, y),
            xytext=(1.035, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=LABEL_POINTS,
            color=darken(colour),
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
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


def darken(colour: str, share: float = 0.25) -> str:
    """A colour such as "#0072B2", mixed with the colour of text, so that letters in it can be read.

    >>> darken("#ffffff", 0.5)
    '#909090'
    """
    mixed = ((1 - share) * a + share * b for a, b in zip(_channels(colour), _channels(INK), strict=True))
    return "#" + "".join(f"{int(channel):02x}" for channel in mixed)


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
