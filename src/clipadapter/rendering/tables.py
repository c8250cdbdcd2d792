r"""One table as text for a terminal, as Markdown and as LaTeX. HTML pages write it by their templates."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from clipadapter.utils.formatting import table as format_text_table

# Marks of names and figures in tables and plots: each has one meaning, which a table that uses it says below.
# All of them are in the code page of western Windows terminals.
BEST = "•"  # before the best figure of a column, where bold type is not possible
TRANSDUCTIVE = "*"  # after a head that uses the unlabelled test pictures when it is fitted
NOT_AS_PUBLISHED = "‡"  # after a head that is not the published method, by `heads.Fidelity`
UNVERIFIED = "?"  # after a data set whose numbers of pictures were not verified
LATEX = {
    "\\": r"\textbackslash{}",
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
    **{character: f"\\{character}" for character in "{}&%$#_"},
}
MARKS = {TRANSDUCTIVE: "transductive", NOT_AS_PUBLISHED: "not the published method"}
WIDE_CELL_CHARACTERS = 40  # columns with longer text are broken into lines
COMMENT_CHARACTERS = 100


@dataclass(frozen=True)
class Grid:
    """A table as text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()  # (row, column) of the cells in bold
    notes: tuple[str, ...] = ()  # sentences about this table
    minor: bool = False  # whether a page may collapse it
    text_columns: frozenset[int] = frozenset({0})  # the others are numbers

    def cells(self, escape: Callable[[str], str], before: str, after: str = "") -> list[list[str]]:
        """The rows, escaped; the best of a column stands between two texts."""
        return [
            [f"{before}{escape(cell)}{after}" if (i, j) in self.best else escape(cell) for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]

    def to_text(self) -> str:
        """Aligned columns, with a dot before the best."""
        return format_text_table(self.header, self.cells(str, BEST), self.text_columns)

    def to_markdown(self) -> str:
        """A Markdown table, with the best in bold."""
        rows = self.cells(escape_markdown, "**", "**")
        return markdown_table([escape_markdown(cell) for cell in self.header], rows, self.text_columns)

    def to_latex(self) -> str:
        """A table for booktabs, with a short caption. The notes are a comment above it."""
        columns = "".join(self._latex_column(j) for j in range(len(self.header)))
        lines = [
            *latex_comment(self.notes),
            r"\begin{table}",
            r"\centering",
            r"\small",
            rf"\caption{{{self._caption()}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(escape_latex, self.header)) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in self.cells(escape_latex, r"\textbf{", "}")),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines)

    def _latex_column(self, j: int) -> str:
        if j not in self.text_columns:
            return "r"
        return "p{5cm}" if max((len(row[j]) for row in self.rows), default=0) > WIDE_CELL_CHARACTERS else "l"

    def _caption(self) -> str:
        """The title, the unit, and the meaning of bold cells and of the marks of this table, as LaTeX."""
        unit = re.match(r"[^.:]*\bin %[^.]*\.", self.notes[0]) if self.notes else None
        names = " ".join(row[0] for row in self.rows if row)
        marks = [
            f"{escape_latex(mark)} {meaning}"
            for mark, meaning in MARKS.items()
            if re.search(rf"{re.escape(mark)}(?!\w)", names)
        ]
        sentences = [f"{escape_latex(self.title)}.", escape_latex(unit[0]) if unit else ""]
        sentences += [r"\textbf{Bold}: best of a column."] if self.best else []
        sentences += [f"{'; '.join(marks)}."] if marks else []
        return " ".join(filter(None, sentences))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Collection[int] = (0,)) -> str:
    r"""A Markdown table of cells that are Markdown. Columns of text are aligned left, columns of numbers right.

    >>> print(markdown_table(["head", "1 shot"], [["a|b", "50.0"]]))
    | head | 1 shot |
    | --- | ---: |
    | a\|b | 50.0 |
    """
    rule = ["---" if i in text_columns else "---:" for i in range(len(header))]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, rule, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape_markdown(text: str) -> str:
    r"""Escape text for Markdown: names of classes and heads may have any characters.

    >>> escape_markdown("a_b *<b>*")
    'a\\_b \\*&lt;b&gt;\\*'
    """
    text = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[*_`\[\]]", r"\\\g<0>", text)


def latex_comment(sentences: Iterable[str]) -> list[str]:
    """Lines of a comment."""
    wrapped = (textwrap.wrap(" ".join(text.split()), COMMENT_CHARACTERS) for text in sentences)
    return [f"% {line}" for lines in wrapped for line in lines]


def escape_latex(text: str) -> str:
    r"""Escape text for LaTeX.

    >>> escape_latex("50 % of a_b ± 1")
    '50 \\% of a\\_b $\\pm$ 1'
    """
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))
