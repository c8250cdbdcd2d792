"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from clipadapter.bench.report.document import Document, Grid, Picture
from clipadapter.bench.summary import markdown_table


def markdown(document: Document, names: Mapping[int, str]) -> str:
    """The page.

    Args:
        document: the report.
        names: file names of the pictures without their ending, by the picture's id.
    """
    parts = [f"# {_plain(document.title)}"]
    parts += [_plain(document.question)] if document.question else []
    parts += [f"After: {_plain(document.source)}."] if document.source else []
    parts += [_plain(" ".join(document.summary))]
    for section in document.sections:
        parts += [f"## {_plain(section.title)}", *(_plain(text) for text in section.text)]
        for block in section.blocks:
            if isinstance(block, Picture):
                parts.append(f"![{_plain(block.title)}]({names[id(block)]}.png)")
            else:
                parts += _grid(block)
    return "\n\n".join(parts) + "\n"


def _grid(grid: Grid) -> list[str]:
    rows = [
        [f"**{_plain(cell)}**" if (i, j) in grid.best else _plain(cell) for j, cell in enumerate(row)]
        for i, row in enumerate(grid.rows)
    ]
    notes = [*map(_plain, grid.notes), _plain(" ".join(grid.common))]
    table = markdown_table([_plain(cell) for cell in grid.header], rows, grid.words)
    return [f"### {_plain(grid.title)}", table, *(note for note in notes if note)]


def _plain(text: str) -> str:
    r"""Text that is shown as it stands: names of classes and heads are anyone's.

    >>> _plain("a_b *<b>*")
    'a\\_b \\*&lt;b&gt;\\*'
    """
    text = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "*_`[]":
        text = text.replace(character, f"\\{character}")
    return text
