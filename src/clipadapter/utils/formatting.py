"""Text for people: lists of names, counts, and tables for a terminal or a notebook."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from clipadapter.errors import InputError, brief
from clipadapter.utils.files import printable

CELL_STYLE = "padding:2px 10px;vertical-align:middle;border:0;border-bottom:1px solid rgba(128,128,128,.3);"
"""Without colours of its own, so that notebooks in dark themes can show it."""

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
DECIMAL = re.compile(r"[+-]?\d+\.\d+")
MAX_TEXT_LETTERS = 1000  # letters in the last column of a table for notebooks, which has no column beside it
MAX_NAME_LETTERS = 60
"""Letters of a name in a table. The names of folders may have 255, and those in a list of pictures any number."""


def format_list(items: Iterable[object], limit: int = 5) -> str:
    """The first items of a list and the number of the others for a message: "a, b and 5 more"."""
    every = list(items)
    texts = [printable(item if isinstance(item, str | Path) else brief(item)) for item in every[:limit]]
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(texts) + more


def check_names(names: Iterable[Any]) -> tuple[Any, ...]:
    """Class names as a tuple, once each is known to be a name: a text, a number or the like."""
    every = tuple(names)
    for i, name in enumerate(every):
        if getattr(name, "ndim", 0) or isinstance(name, list | tuple | set | dict):
            raise InputError(f"class names must be texts, but number {i} is {brief(name)}")
    return every


def shorten_name(name: str, limit: int = MAX_NAME_LETTERS) -> str:
    """A name as one line of printable text for a table; of a long one the beginning and the end, where names differ."""
    line, tail = printable(name), limit // 3
    return line if len(line) <= limit else f"{line[: limit - tail - 1]}…{line[-tail:]}"


def format_count(count: int, noun: str) -> str:
    """A number with its noun, whose plural ends in "s": "1 new picture", "2 new pictures"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_seconds(seconds: float) -> str:
    """A duration for people."""
    if seconds < 60:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def describe_unreadable(count: int) -> str:
    """Say that none of some pictures can be read."""
    return "the picture can't be read" if count == 1 else f"none of the {count:,} pictures can be read"


def describe_classes(names: Sequence[str]) -> str:
    """The number of classes and the first names: "4 classes (cat, cow, dog and 1 more)"."""
    return f"{len(names):,} class{'' if len(names) == 1 else 'es'} ({format_list(names, limit=3)})"


def describe_shots(shots: Mapping[str, int], total: int) -> str:
    """The numbers of shots: "4 per class", or "4 to 5 per class, 9 in total"."""
    smallest, largest = min(shots.values()), max(shots.values())
    return f"{smallest} per class" if smallest == largest else f"{smallest} to {largest} per class, {total} in total"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], text_columns: Collection[int] | None = None) -> str:
    """Format rows as aligned columns, of numbers to the right; ``text_columns`` None: those with any text."""
    # Long cells are shortened, except those of the last column, which have no column beside them.
    cells = [list(map(str, row)) for row in (header, *rows)]
    lines = [[*map(shorten_name, row[:-1]), *map(printable, row[-1:])] for row in cells]
    columns = []
    for i, texts in enumerate(zip(*lines, strict=True)):
        is_number = _is_number_column(rows, i) if text_columns is None else i not in text_columns
        width = max(map(len, texts))
        columns.append([text.rjust(width) if is_number else text.ljust(width) for text in texts])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def html_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format rows as an HTML table like `table`; texts are escaped, and a list of thumbnails is shown."""
    columns = []
    for i, (heading, *cells) in enumerate(zip(header, *rows, strict=True)):
        style = f"{CELL_STYLE}text-align:{'right' if _is_number_column(rows, i) else 'left'};"
        limit = MAX_NAME_LETTERS if i < len(header) - 1 else MAX_TEXT_LETTERS
        texts = [f'<td style="{style}">{_html_cell(cell, limit)}</td>' for cell in cells]
        columns.append([f'<th style="{style}">{escape(heading)}</th>', *texts])
    lines = [f"<tr>{''.join(line)}</tr>" for line in zip(*columns, strict=True)]
    head, body = f"<thead>{lines[0]}</thead>" if any(header) else "", "".join(lines[1:])
    return f'<table style="border-collapse:collapse;margin:4px 0;">{head}<tbody>{body}</tbody></table>'


def html_block(title: str, *parts: str) -> str:
    """A title, which is escaped, and HTML below it, for a notebook."""
    return f"<div><b>{escape(title)}</b>{''.join(parts)}</div>"


def _html_cell(cell: object, limit: int) -> str:
    """Text, escaped; of a list of thumbnails, JPEG files in base64, the pictures, without those that are empty."""
    if not isinstance(cell, list):
        return escape(shorten_name(str(cell), limit))
    style = "display:inline-block;margin:1px 3px 1px 0;"
    urls = (f"data:image/jpeg;base64,{escape(data)}" for data in cell if data)
    return "".join(f'<img src="{url}" alt="" style="{style}">' for url in urls)


def _is_number_column(rows: Sequence[Sequence[object]], i: int) -> bool:
    """Whether a column has numbers only, which may be formatted, and empty cells."""
    cells = [row[i] for row in rows if row[i] != ""]
    number = NUMBER if i else DECIMAL  # the first column has names, which may look like whole numbers
    return bool(cells) and all(isinstance(cell, int | float) or number.fullmatch(str(cell)) for cell in cells)
