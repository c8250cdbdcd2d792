"""A report, independent of Markdown, LaTeX and HTML: sections with tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure
else:
    Figure = Any


@dataclass(frozen=True)
class Grid:
    """A table as text.

    Args:
        title: above it.
        header: names of the columns.
        rows: as many cells each.
        best: (row, column) of the cells in bold.
        notes: sentences about this table.
        common: sentences on how it was measured, which other tables of the section share.
        minor: whether a page may collapse it.
        text_columns: columns of text; the others are numbers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    notes: tuple[str, ...] = ()
    common: tuple[str, ...] = ()
    minor: bool = False
    text_columns: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Plot:
    """A plot.

    Args:
        kind: part of the file name.
        title: what it shows.
        figure: matplotlib's figure.
    """

    kind: str
    title: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """A heading with tables and plots below it."""

    title: str
    blocks: tuple[Grid | Plot, ...]
    text: tuple[str, ...] = ()

    @property
    def plots(self) -> list[Plot]:
        """Its plots."""
        return [block for block in self.blocks if isinstance(block, Plot)]


@dataclass(frozen=True)
class Document:
    """A report.

    Args:
        name: of the suite and of the files.
        title: of the suite.
        question: the question that the suite answers.
        source: the paper's table or figure.
        summary: sentences on what was run.
        sections: the rest.
    """

    name: str
    title: str
    question: str
    source: str
    summary: tuple[str, ...]
    sections: Sequence[Section]

    def plot_names(self) -> dict[int, str]:
        """File names of the plots without suffix, by the id of the plot; they are numbered."""
        pictures = [picture for section in self.sections for picture in section.plots]
        return {id(picture): f"{self.name}-{i}-{picture.kind}" for i, picture in enumerate(pictures, 1)}
