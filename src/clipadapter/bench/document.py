"""A report: sections with tables and plots, as Markdown, LaTeX and HTML."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipadapter import __version__
from clipadapter.rendering.html import create_environment
from clipadapter.rendering.plots import render_plot
from clipadapter.rendering.tables import WIDE_CELL_CHARACTERS, Grid, escape_markdown, latex_comment

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """A plot: a part of its file name, what it shows, and matplotlib's figure."""

    kind: str
    title: str
    figure: Figure

    @property
    def address(self) -> str:
        """A data URL. As an image, its ids can't clash with those of another plot."""
        return f"data:image/svg+xml;base64,{base64.b64encode(render_plot(self.figure, 'svg')).decode()}"


@dataclass(frozen=True)
class Section:
    """A heading with tables and plots below it."""

    title: str
    blocks: tuple[Grid | Plot, ...]
    text: tuple[str, ...] = ()
    common: tuple[str, ...] = ()  # sentences on how all tables were measured


@dataclass(frozen=True)
class Document:
    """A report."""

    name: str  # of the suite and of the files
    title: str  # of the suite
    question: str  # the question that the suite answers
    source: str  # the paper's table or figure
    summary: tuple[str, ...]  # sentences on what was run
    sections: Sequence[Section]  # the rest

    @property
    def plots(self) -> dict[str, Plot]:
        """All plots by the names of their files without suffix; they are numbered."""
        plots = [block for section in self.sections for block in section.blocks if isinstance(block, Plot)]
        return {f"{self.name}-{i}-{plot.kind}": plot for i, plot in enumerate(plots, 1)}

    def to_latex(self) -> str:
        """The tables, with short captions. How those of a section were measured is a comment above them."""
        parts = ["% needs \\usepackage[T1]{fontenc} and \\usepackage{booktabs}", f"% {' '.join(self.title.split())}"]
        for section in self.sections:
            parts.append("\n".join(latex_comment(section.common)))
            parts += [block.to_latex() for block in section.blocks if isinstance(block, Grid)]
        return "\n\n".join(filter(None, parts)) + "\n"

    def to_markdown(self, plot_format: str = "png") -> str:
        """The page; its pictures are files of this format."""
        escape, names = escape_markdown, {id(plot): f"{name}.{plot_format}" for name, plot in self.plots.items()}
        parts = [f"# {escape(self.title)}", *([escape(self.question)] if self.question else [])]
        parts += [f"After: {escape(self.source)}."] if self.source else []
        parts.append(escape(" ".join(self.summary)))
        for section in self.sections:
            parts += [f"## {escape(section.title)}", *map(escape, section.text)]
            for block in section.blocks:
                if isinstance(block, Plot):
                    parts.append(f"![{escape(block.title)}]({names[id(block)]})")
                else:
                    parts += [f"### {escape(block.title)}", block.to_markdown(), *map(escape, block.notes)]
            if section.common:
                parts += ["### How it was measured", escape(" ".join(section.common))]
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """One page without other files: plots are embedded as SVG, and all text is escaped."""
        environment = create_environment("clipadapter.bench")
        environment.tests["plot"] = lambda block: isinstance(block, Plot)
        template = environment.get_template("report.html")
        return template.render(document=self, version=__version__, wide=WIDE_CELL_CHARACTERS)
