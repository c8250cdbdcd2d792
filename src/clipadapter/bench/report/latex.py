r"""The tables of a report as LaTeX, for ``\input`` in a paper."""

from __future__ import annotations

import re
import textwrap

from clipadapter.bench.report.document import Document, Grid
from clipadapter.rendering.marks import NOT_AS_PUBLISHED, TRANSDUCTIVE

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "‡": r"$\ddagger$",
    "·": r"$\cdot$",
    "“": "``",
    "”": "''",
    "–": "--",
    "…": r"\dots{}",
    "[": "{[}",
    "]": "{]}",
}


WIDE_CELL_CHARACTERS = 40
"""Columns with longer text are broken into lines."""
COMMENT_CHARACTERS = 100
MARKS = {
    TRANSDUCTIVE: "transductive",
    NOT_AS_PUBLISHED: "not the published method",
}


def render_latex(document: Document) -> str:
    """The tables, with short captions. How they were measured is a comment above each. Plots are not included."""
    parts = ["% needs \\usepackage[T1]{fontenc} and \\usepackage{booktabs}", f"% {' '.join(document.title.split())}"]
    parts += [_table(block) for section in document.sections for block in section.blocks if isinstance(block, Grid)]
    return "\n\n".join(parts) + "\n"


def _caption(grid: Grid) -> str:
    """The title, the unit, and the meaning of bold cells and of the marks of this table, as LaTeX."""
    unit = re.match(r"[^.:]*\bin %[^.]*\.", grid.notes[0]) if grid.notes else None
    names = " ".join(row[0] for row in grid.rows if row)
    marks = [
        f"{escape_latex(mark)} {meaning}"
        for mark, meaning in MARKS.items()
        if re.search(rf"{re.escape(mark)}(?!\w)", names)
    ]
    sentences = [f"{escape_latex(grid.title)}.", escape_latex(unit[0]) if unit else ""]
    sentences += [r"\textbf{Bold}: best of a column."] if grid.best else []
    sentences += [f"{'; '.join(marks)}."] if marks else []
    return " ".join(filter(None, sentences))


def _comments(grid: Grid) -> list[str]:
    """Provenance and notes as comment lines."""
    wrapped = (textwrap.wrap(" ".join(note.split()), COMMENT_CHARACTERS) for note in (*grid.notes, *grid.common))
    return [f"% {line}" for lines in wrapped for line in lines]


def _table(grid: Grid) -> str:
    columns = "".join(_column(grid, j) for j in range(len(grid.header)))
    rows = [
        [
            rf"\textbf{{{escape_latex(cell)}}}" if (i, j) in grid.best else escape_latex(cell)
            for j, cell in enumerate(row)
        ]
        for i, row in enumerate(grid.rows)
    ]
    lines = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join(
        [
            *_comments(grid),
            r"\begin{table}",
            r"\centering",
            r"\small",
            rf"\caption{{{_caption(grid)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(escape_latex, grid.header)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _column(grid: Grid, j: int) -> str:
    if j not in grid.text_columns:
        return "r"
    return "p{5cm}" if max((len(row[j]) for row in grid.rows), default=0) > WIDE_CELL_CHARACTERS else "l"


def escape_latex(text: str) -> str:
    r"""Escape text for LaTeX.

    >>> escape_latex("50 % of a_b ± 1")
    '50 \\% of a\\_b $\\pm$ 1'
    """
    return "".join(SPECIAL.get(character, character) for character in " ".join(text.split()))
