"""Types of options that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from clipadapter.errors import InputError

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(path_type=Path)
COUNT = click.IntRange(1)
PLOT_SUFFIXES = (".png", ".pdf", ".svg")


class CountOrAll(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A number of 1 or more, or "all"."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; for "all" one that no list exceeds."""
        return sys.maxsize if value == "all" else COUNT.convert(value, param, ctx)


COUNT_OR_ALL = CountOrAll()


class FolderOrUri(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A folder, or a URI such as ``s3://bucket/folder``, which a path would change."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Return a path, or the text of a URI."""
        return value if isinstance(value, Path) or "://" in value else Path(value)


FOLDER_OR_URI = FolderOrUri()


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


class EncoderUri(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """The URI of an encoder, which is checked before the command imports torch."""

    name = "uri"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the URI.

        Raises:
            InputError: if its text shows that it can't be opened.
            EncoderUnavailableError: if the file or folder that it names is missing.
        """
        from clipadapter.encoders.registry import check_uri

        check_uri(str(value))
        return str(value)


ENCODER_URI = EncoderUri()


class LateChoice(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A choice whose names are listed only when they are needed: listing plug-ins takes long.

    Args:
        list_names: returns the names.
    """

    name = "choice"

    def __init__(self, list_names: Callable[[], Sequence[str]]) -> None:
        self.list_names = list_names

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the names for the help."""
        return f"[{'|'.join(self.list_names())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name; an unknown one is an error of usage."""
        return click.Choice(self.list_names()).convert(value, param, ctx)


class PlotFormats(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Formats of plots in a text such as ``png,pdf``."""

    name = "formats"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the formats, each once."""
        from clipadapter.rendering.plots import parse_plot_formats

        try:
            return value if isinstance(value, tuple) else parse_plot_formats(str(value))
        except InputError as error:
            self.fail(str(error), param, ctx)


PLOT_FORMATS = PlotFormats()


class HeadName(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """The name of a head. It is checked while the command line is parsed, before torch is imported."""

    name = "head"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name.

        Raises:
            UnknownNameError: if no head has it.
        """
        from clipadapter.heads.registry import HEADS

        HEADS.check(str(value))
        return str(value)


HEAD = HeadName()


def parse_heads(ctx: click.Context | None, param: click.Parameter | None, value: str | None) -> list[str] | None:
    """Return the names of a text such as ``clip-adapter,gda``, each once and checked; None for "all", as in suites.

    The callback of an option.

    Raises:
        UnknownNameError: if no head has one of the names.
    """
    if value is None or value.strip() == "all":
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    return [HEAD.convert(name, param, ctx) for name in dict.fromkeys(names)]


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
