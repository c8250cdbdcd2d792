"""Types of options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(path_type=Path)
COUNT = click.IntRange(1)


class Fraction(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A number between 0 and 1."""

    name = "fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. A percentage is refused; the message says which fraction it would be."""
        try:
            fraction = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number: give a fraction such as 0.05", param, ctx)
        if not 0 < fraction < 1:
            hint = f": {fraction:g} % is {fraction / 100:g}" if 1 <= fraction < 100 else ""
            self.fail(f"{value} is not between 0 and 1{hint}", param, ctx)
        return fraction


FRACTION = Fraction()


def parse_counts(ctx: click.Context | None, param: click.Parameter | None, value: str) -> list[int]:
    """Return the different numbers of a text such as ``1,2,4``, sorted. The callback of an option.

    >>> parse_counts(None, None, "4,1,16")
    [1, 4, 16]
    """
    try:
        counts = sorted({int(text) for text in value.split(",")})
    except ValueError:
        counts = [0]
    if counts[0] < 1:
        raise click.BadParameter(f"expected numbers of 1 or more such as 1,2,4, but got '{value}'", ctx, param)
    return counts
