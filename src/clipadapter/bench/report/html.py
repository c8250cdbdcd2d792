"""A report as one HTML page without other files: plots are embedded as SVG."""

from __future__ import annotations

import base64

from clipadapter import __version__
from clipadapter.bench.report.document import Document, Plot
from clipadapter.rendering.html import create_environment
from clipadapter.rendering.plots import render_plot
from clipadapter.rendering.tables import WIDE_CELL_CHARACTERS, Grid


def render_html(document: Document) -> str:
    """The page; all text is escaped."""
    environment = create_environment("clipadapter.bench.report")
    environment.tests["plot"] = lambda block: isinstance(block, Plot)
    environment.filters["address"] = _address
    environment.filters["numbered"] = _numbered
    return environment.get_template("report.html").render(document=document, version=__version__)


def _address(plot: Plot) -> str:
    """A plot as a data URL. As an image, its ids can't clash with those of another plot."""
    return f"data:image/svg+xml;base64,{base64.b64encode(render_plot(plot.figure, 'svg')).decode()}"


def _numbered(grid: Grid) -> list[list[tuple[str, str]]]:
    """(text, CSS classes) of each cell."""
    return [[(cell, _classes(grid, i, j, cell)) for j, cell in enumerate(row)] for i, row in enumerate(grid.rows)]


def _classes(grid: Grid, i: int, j: int, cell: str) -> str:
    conditions = {"best": (i, j) in grid.best, "word": j in grid.text_columns, "long": len(cell) > WIDE_CELL_CHARACTERS}
    return " ".join(name for name, applies in conditions.items() if applies)
