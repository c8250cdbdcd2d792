r"""The tables of a report as LaTeX, for ``\input`` in a paper."""

from __future__ import annotations

from clipadapter.bench.report.document import Document, Grid

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
    "†": r"$\dagger$",
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


def render_latex(document: Document) -> str:
    """The tables, each with its notes as a caption. Plots are not included."""
    parts = ["% needs \\usepackage[T1]{fontenc} and \\usepackage{booktabs}", f"% {' '.join(document.title.split())}"]
    parts += [_table(block) for section in document.sections for block in section.blocks if isinstance(block, Grid)]
    return "\n\n".join(parts) + "\n"


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
    caption = " ".join([f"{escape_latex(grid.title)}.", *map(escape_latex, (*grid.notes, *grid.common))])
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\small",
            rf"\caption{{{caption}}}",
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
