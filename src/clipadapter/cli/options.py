"""Options that several commands share, and their types. Each is declared once.

A single option is a decorator, such as `seed_option`. Options that belong together are the fields of a dataclass, each
declared by `option`; the decorator `option_group` hands them to the command as one object. Such dataclasses are in
`encoder_options`, `fit_options` and `uncertainty_options`. All defaults are shown in help texts: `app` sets
``show_default``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import field, fields
from pathlib import Path
from typing import Any

import click

from clipadapter.errors import InputError

DEFAULT_MAX_PIXELS = 100_000_000
"""`clipadapter.data.images.MAX_PIXELS`, which ``--help`` does not import."""
PLOT_SUFFIXES = (".png", ".pdf", ".svg")
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
Command = Callable[..., None]
Decorator = Callable[[Command], Command]


class Parsed(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """The type of an option whose text a function turns into the value, before the command imports torch.

    A `click.BadParameter` of the function is an error of usage (exit code 2), other errors are the command's own (1).
    The names of a choice are listed only when its help is printed, since listing plug-ins takes long.
    """

    def __init__(self, parse: Callable[[Any], Any], choices: Callable[[], Iterable[str]] | None = None) -> None:
        self.name, self._parse, self._choices = "value", parse, choices

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """The choices for the help."""
        return self._choices and f"[{'|'.join(self._choices())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value of a text; a default that is a value already stays."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except click.BadParameter as error:
            self.fail(error.message, param, ctx)


def late_choice(list_names: Callable[[], Iterable[str]]) -> Parsed:
    """A choice whose names are listed when they are needed."""
    return Parsed(lambda text: click.Choice(list(list_names())).convert(text, None, None), list_names)


def _parse_fraction(text: str) -> float:
    """A number between 0 and 1. A percentage is refused; the message says which fraction it would be."""
    try:
        fraction = float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number: give a fraction such as 0.05") from None
    if not 0 < fraction < 1:
        hint = f": {fraction:g} % is {fraction / 100:g}" if 1 <= fraction < 100 else ""
        raise click.BadParameter(f"{text} is not between 0 and 1{hint}")
    return fraction


def _parse_encoder(text: str) -> str:
    from clipadapter.encoders.registry import check_uri

    check_uri(text)
    return text


def _parse_head(text: str) -> str:
    from clipadapter.heads.registry import HEADS

    HEADS.check(text)
    return text


def _parse_heads(text: str) -> list[str] | None:
    """Names, each once; None for "all", as in suites."""
    if text.strip() == "all":
        return None
    return [_parse_head(name) for name in dict.fromkeys(filter(None, map(str.strip, text.split(","))))]


def parse_counts(text: str) -> list[int]:
    """The different numbers of a text, sorted.

    >>> parse_counts("4,1,16")
    [1, 4, 16]
    """
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = [0]
    if counts[0] < 1:
        raise click.BadParameter(f"expected numbers of 1 or more such as 1,2,4, but got '{text}'")
    return counts


def _parse_plot_formats(text: str) -> tuple[str, ...]:
    from clipadapter.rendering.plots import parse_plot_formats

    try:
        return parse_plot_formats(text)
    except InputError as error:
        raise click.BadParameter(str(error)) from error


FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(path_type=Path)
COUNT = click.IntRange(1)
COUNTS = Parsed(parse_counts)
COUNT_OR_ALL = Parsed(lambda text: sys.maxsize if text == "all" else COUNT.convert(text, None, None))
"""For "all" a number that no list exceeds."""
FOLDER_OR_URI = Parsed(lambda text: text if "://" in text else Path(text))
"""A folder, or a URI such as ``s3://bucket/folder``, which a path would change."""
FRACTION = Parsed(_parse_fraction)
ENCODER_URI = Parsed(_parse_encoder)
HEAD = Parsed(_parse_head)
HEADS = Parsed(_parse_heads)

seed_option = click.option("--seed", type=int, default=0, help="Seed of all random choices.")
seeds_option = click.option(
    "--seeds", type=COUNT, default=3, metavar="N", help="How many times shots are drawn, with the seeds 1 to N."
)
folds_option = click.option(
    "--folds",
    type=click.IntRange(2),
    default=5,
    metavar="N",
    help="Folds of the cross-validation, if there is no test folder.",
)
curve_option = click.option(
    "--curve/--no-curve", default=True, help="Also fit to fewer of the shots of the model: a learning curve."
)
title_option = click.option(
    "--title", default="", show_default=False, metavar="TEXT", help="Title of plots; by default what they show."
)
plot_format_option = click.option(
    "--plot-format",
    "plot_formats",
    default="png",
    metavar="FORMAT,...",
    type=Parsed(_parse_plot_formats),
    help="Files of each plot: png, pdf, svg or several.",
)
split_option = click.option("--split", metavar="NAME", help="Split of the data: train, val or test.")
strict_option = click.option("--strict", is_flag=True, help="Fail at the first picture that can't be read.")


def shots_option(default: str) -> Decorator:
    """The numbers of shots that a command compares."""
    return click.option(
        "--shots", default=default, metavar="N,...", type=COUNTS, help="Numbers of shots per class to compare."
    )


def _limit_pixels(ctx: click.Context, param: click.Parameter, value: int) -> int:
    """Set the size of the largest picture that the process reads, until the command ends."""
    if value != DEFAULT_MAX_PIXELS:
        from clipadapter.data import set_max_pixels

        set_max_pixels(value)
        ctx.call_on_close(set_max_pixels)
    return value


MAX_PIXELS_ATTRIBUTES: dict[str, Any] = {
    "default": DEFAULT_MAX_PIXELS,
    "type": COUNT,
    "metavar": "N",
    "callback": _limit_pixels,
    "help": "Larger pictures are refused; 108000000 reads those of a phone with 108 megapixels.",
}
max_pixels_option = click.option("--max-pixels", expose_value=False, **MAX_PIXELS_ATTRIBUTES)


class GroupedOption(click.Option):
    """An option that the help lists under a heading."""

    def __init__(self, *args: Any, heading: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.heading = heading


def option(*names: str, default: Any = None, **attributes: Any) -> Any:
    """Declare a field of a dataclass that is also an option, with its names and the arguments of ``click.option``."""
    return field(default=default, metadata={"names": names, "attributes": attributes})


def field_option(cls: type[Any], name: str) -> Decorator:
    """Return the decorator that adds one field of a dataclass to a command, which gets the value under this name."""
    declared = cls.__dataclass_fields__[name]
    attributes = {"cls": GroupedOption, "heading": getattr(cls, "HEADING", ""), **declared.metadata["attributes"]}
    return click.option(*declared.metadata["names"], name, default=declared.default, **attributes)


def option_group(name: str, cls: type[Any], only: Collection[str] = (), without: Collection[str] = ()) -> Decorator:
    """Return the decorator that adds the options of a dataclass and hands their values to the command as one object.

    Args:
        name: of the command's parameter.
        cls: a dataclass with fields that `option` declares, in the order of the help. Its ``HEADING`` is above them.
        only: names of the fields that this command offers; the others keep their default. Empty means all.
        without: names of fields that this command does not offer.
    """
    declared = [part.name for part in fields(cls) if part.metadata and part.name not in without]
    names = [part for part in declared if not only or part in only]

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def wrapped(**values: Any) -> None:
            group = cls(**{field_name: values.pop(field_name) for field_name in names})
            function(**{name: group}, **values)

        command: Command = wrapped
        for field_name in reversed(names):
            command = field_option(cls, field_name)(command)
        return command

    return decorate
