"""A look at a stream as a PNG file; matplotlib's global state is left alone."""

from __future__ import annotations

import textwrap
import time
import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from clipadapter.errors import require
from clipadapter.files import write_atomically
from clipadapter.monitor.messages import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from clipadapter.monitor.drift import ClassShare, Drift

DPI = 150
NOW, USUAL, GREY = "#D55E00", "#0072B2", "#dddddd"
"""Okabe and Ito's vermilion and blue, which colour-blind people can tell apart."""
SHOWN = 15
"""Classes that are drawn, those whose share changed most."""
LETTERS = 24


def draw(found: Drift, path: str | Path) -> Path:
    """Write the file, whole or not at all; see `Drift.to_png`."""
    # Not pyplot: it keeps every figure, and would choose a backend for the whole process.
    made = require("matplotlib.figure", "lite", "the plot").Figure
    classes = sorted(found.classes, key=lambda one: -abs(one.now - one.usual))[:SHOWN]
    figure: Figure = made(figsize=(11.0, max(5.6, 1.8 + 0.36 * len(classes))), dpi=DPI, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1], squeeze=False)[0]
    panels = left.subplots(2, 1, sharex=True)
    _none(panels[0], found)
    _distance(panels[1], found)
    _name_time(panels[1], found)
    _classes(right.subplots(), classes, len(found.classes))
    title = "\n".join(textwrap.wrap(f"{found.pictures} pictures: {found.sentence()}", 105))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, parse_math=False)
    data = BytesIO()
    with warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes: no reason to have no picture.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(data, format="png", facecolor="white")
    return write_atomically(path, data.getvalue())


def _middles(found: Drift) -> list[float]:
    return [(one.start + one.end) / 2 for one in found.windows]


def _none(axes: Axes, found: Drift) -> None:
    axes.set_title('share of "none of these"', fontsize=10, loc="left")
    _plain(axes)
    known = [(x, one.none) for x, one in zip(_middles(found), found.windows, strict=True) if one.none]
    if not known or found.none is None:
        _words(axes, "this model can't tell pictures of none of its classes")
        return
    x, shares = [x for x, _ in known], [[100 * value for value in none] for _, none in known]
    axes.fill_between(x, [low for _, low, _ in shares], [high for _, _, high in shares], color=NOW, alpha=0.2, lw=0)
    axes.plot(x, [now for now, _, _ in shares], color=NOW, marker="o", markersize=4)
    usual = found.none.rate if found.reference == "shots" else found.none.usual
    word = "promised" if found.reference == "shots" else "usual"
    axes.axhline(100 * usual, color=USUAL, linestyle="--", label=f"{word} {percent(usual)}")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("% of the pictures")
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _distance(axes: Axes, found: Drift) -> None:
    axes.set_title("distance of the looks from the usual", fontsize=10, loc="left")
    _plain(axes)
    known = [
        (x, one.distance, one.chance)
        for x, one in zip(_middles(found), found.windows, strict=True)
        if one.distance is not None and one.chance is not None
    ]
    if not known:
        _words(axes, "looks were left out")
        return
    x = [x for x, _, _ in known]
    axes.fill_between(x, -2, [chance for _, _, chance in known], color=USUAL, alpha=0.2, lw=0, label="by chance (95 %)")
    axes.plot(x, [distance for _, distance, _ in known], color=NOW, marker="o", markersize=4)
    axes.set_ylabel("deviations of chance")
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _name_time(axes: Axes, found: Drift) -> None:
    """Dates where they are known, else numbers of pictures."""
    times = [one.begins for one in found.windows]
    if any(when is None for when in times):
        axes.set_xlabel("picture")
        return
    form = "%Y-%m-%d" if (times[-1] or 0) - (times[0] or 0) > 3 * 86400 else "%m-%d %H:%M"
    step = -(-len(times) // 6)
    axes.set_xticks(
        [one.start for one in found.windows][::step], [time.strftime(form, time.localtime(at)) for at in times][::step]
    )
    axes.tick_params(axis="x", labelsize=8)


def _classes(axes: Axes, classes: list[ClassShare], total: int) -> None:
    rest = f", the {len(classes)} that changed most of {total}" if len(classes) < total else ""
    axes.set_title(f"how frequent the classes are{rest}", fontsize=10, loc="left")
    _plain(axes)
    places = list(range(len(classes)))[::-1]
    axes.hlines(places, [100 * one.low for one in classes], [100 * one.high for one in classes], color=NOW, lw=2)
    axes.plot([100 * one.now for one in classes], places, "o", color=NOW, label="now (95 %)")
    axes.plot([100 * one.usual for one in classes], places, "D", color=USUAL, markersize=5, label="usual")
    names = [one.name if len(one.name) <= LETTERS else f"{one.name[: LETTERS - 1]}…" for one in classes]
    axes.set_yticks(places, names, parse_math=False)
    axes.set_xlim(left=0)
    axes.set_xlabel("% of the pictures")
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _plain(axes: Axes) -> None:
    axes.grid(color=GREY, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _words(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9)
