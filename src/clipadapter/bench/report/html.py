"""A report as one HTML page that asks for nothing else: pictures stand in it as SVG."""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

from clipadapter import __version__
from clipadapter.bench.report.document import Document, Grid, Picture
from clipadapter.bench.report.plots import svg

LONG = 40
"""Longer cells get a wide column."""


def html(document: Document) -> str:
    """The page; all text is escaped."""
    environment = Environment(
        loader=PackageLoader("clipadapter.bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    environment.filters["address"] = _address
    environment.filters["numbered"] = _numbered
    return environment.get_template("report.html").render(document=document, version=__version__)


def _address(picture: Picture) -> str:
    """A picture as an address that holds it. As an image, its ids can't meet those of another."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg(picture.drawing)).decode()}"


def _numbered(grid: Grid) -> list[list[tuple[str, str]]]:
    """(text, CSS classes) of each cell."""
    return [[(cell, _classes(grid, i, j, cell)) for j, cell in enumerate(row)] for i, row in enumerate(grid.rows)]


def _classes(grid: Grid, i: int, j: int, cell: str) -> str:
    said = {"best": (i, j) in grid.best, "word": j in grid.words, "long": len(cell) > LONG}
    return " ".join(name for name, holds in said.items() if holds)
