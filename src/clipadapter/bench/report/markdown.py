"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from clipadapter.bench.report.document import Document, Grid, Plot
from clipadapter.bench.summary import markdown_table


def render_markdown(document: Document, names: Mapping[int, str]) -> str:
    """The page.

    Args:
        document: the report.
        names: file names of the plots, by the id of the plot.
    """
    parts = [f"# {_escape(document.title)}"]
    parts += [_escape(document.question)] if document.question else []
    parts += [f"After: {_escape(document.source)}."] if document.source else []
    parts += [_escape(" ".join(document.summary))]
    for section in document.sections:
        parts += [f"## {_escape(section.title)}", *(_escape(text) for text in section.text)]
        for block in section.blocks:
            if isinstance(block, Plot):
                parts.append(f"![{_escape(block.title)}]({names[id(block)]})")
            else:
                parts += _render_grid(block)
    return "\n\n".join(parts) + "\n"


def _render_grid(grid: Grid) -> list[str]:
    rows = [
        [f"**{_escape(cell)}**" if (i, j) in grid.best else _escape(cell) for j, cell in enumerate(row)]
        for i, row in enumerate(grid.rows)
    ]
    notes = [*map(_escape, grid.notes), _escape(" ".join(grid.common))]
    table = markdown_table([_escape(cell) for cell in grid.header], rows, grid.text_columns)
    return [f"### {_escape(grid.title)}", table, *(note for note in notes if note)]


def _escape(text: str) -> str:
    r"""Escape text for Markdown: names of classes and heads may have any characters.

    >>> _escape("a_b *<b>*")
    'a\\_b \\*&lt;b&gt;\\*'
    """
    text = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "*_`[]":
        text = text.replace(character, f"\\{character}")
    return text
