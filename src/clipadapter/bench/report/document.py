"""A report: sections with tables and plots, as Markdown, LaTeX and HTML."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipadapter import __version__
from clipadapter.rendering.html import create_environment
from clipadapter.rendering.plots import render_plot
from clipadapter.rendering.tables import WIDE_CELL_CHARACTERS, Grid, escape_markdown, latex_comment

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure
else:
    Figure = Any


@dataclass(frozen=True)
class Plot:
    """A plot: a part of its file name, what it shows, and matplotlib's figure."""

    kind: str
    title: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """A heading with tables and plots below it."""

    title: str
    blocks: tuple[Grid | Plot, ...]
    text: tuple[str, ...] = ()
    common: tuple[str, ...] = ()  # sentences on how all tables were measured

    @property
    def plots(self) -> list[Plot]:
        """Its plots."""
        return [block for block in self.blocks if isinstance(block, Plot)]


@dataclass(frozen=True)
class Document:
    """A report."""

    name: str  # of the suite and of the files
    title: str  # of the suite
    question: str  # the question that the suite answers
    source: str  # the paper's table or figure
    summary: tuple[str, ...]  # sentences on what was run
    sections: Sequence[Section]  # the rest

    def plot_names(self) -> dict[int, str]:
        """File names of the plots without suffix, by the id of the plot; they are numbered."""
        pictures = [picture for section in self.sections for picture in section.plots]
        return {id(picture): f"{self.name}-{i}-{picture.kind}" for i, picture in enumerate(pictures, 1)}

    def to_latex(self) -> str:
        """The tables, with short captions. How those of a section were measured is a comment above them."""
        head = ["% needs \\usepackage[T1]{fontenc} and \\usepackage{booktabs}", f"% {' '.join(self.title.split())}"]
        parts = [
            part
            for section in self.sections
            for part in (
                "\n".join(latex_comment(section.common)),
                *(block.to_latex() for block in section.blocks if isinstance(block, Grid)),
            )
        ]
        return "\n\n".join([*head, *filter(None, parts)]) + "\n"

    def to_markdown(self, names: Mapping[int, str]) -> str:
        """The page; names are those of the files of the plots, by the id of the plot."""
        escape = escape_markdown
        parts = [f"# {escape(self.title)}", *([escape(self.question)] if self.question else [])]
        parts += [f"After: {escape(self.source)}."] if self.source else []
        parts.append(escape(" ".join(self.summary)))
        for section in self.sections:
            parts += [f"## {escape(section.title)}", *map(escape, section.text)]
            for block in section.blocks:
                if isinstance(block, Plot):
                    parts.append(f"![{escape(block.title)}]({names[id(block)]})")
                    continue
                parts += [f"### {escape(block.title)}", block.to_markdown(), *map(escape, block.notes)]
            if section.common:
                parts += ["### How it was measured", escape(" ".join(section.common))]
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """One page without other files: plots are embedded as SVG, and all text is escaped."""
        environment = create_environment("clipadapter.bench.report")
        environment.tests["plot"] = lambda block: isinstance(block, Plot)
        environment.filters["address"] = _address
        environment.filters["numbered"] = _numbered
        return environment.get_template("report.html").render(document=self, version=__version__)


def _address(plot: Plot) -> str:
    """A plot as a data URL. As an image, its ids can't clash with those of another plot."""
    return f"data:image/svg+xml;base64,{base64.b64encode(render_plot(plot.figure, 'svg')).decode()}"


def _numbered(grid: Grid) -> list[list[tuple[str, str]]]:
    """(text, CSS classes) of each cell."""

    def classes(i: int, j: int, cell: str) -> str:
        facts = {"best": (i, j) in grid.best, "word": j in grid.text_columns, "long": len(cell) > WIDE_CELL_CHARACTERS}
        return " ".join(name for name, applies in facts.items() if applies)

    return [[(cell, classes(i, j, cell)) for j, cell in enumerate(row)] for i, row in enumerate(grid.rows)]
