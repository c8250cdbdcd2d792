"""How options are declared, the options that several commands share, and their types.

An option is declared once: by `option`, as the default of a parameter of its command. Options that several commands
share are constants, such as `seed_option`. Those that belong together are the fields of a dataclass, which `options_of`
hands to the command as one object; such dataclasses are in `encoder_options`, `fit_options` and `uncertainty_options`.
All defaults are shown in help texts: `app` sets ``show_default``.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import Field, field, fields
from pathlib import Path
from typing import Any

import click

from clipadapter.errors import InputError

DEFAULT_MAX_PIXELS = 100_000_000
"""`clipadapter.data.images.MAX_PIXELS`, which ``--help`` does not import."""
PLOT_SUFFIXES = (".png", ".pdf", ".svg")
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def option(*names: str, default: Any = None, **attributes: Any) -> Any:
    """Declare an option of a command, as the default of a parameter, or a field of a dataclass of options.

    The arguments are its names and those of ``click.option``.
    """
    return field(default=default, metadata={"names": names, "attributes": attributes})


def argument(**attributes: Any) -> Any:
    """Declare an argument of a command, as the default of a parameter, with the arguments of ``click.argument``."""
    return field(metadata={"names": (), "attributes": attributes})


def options_of(cls: type[Any], only: Collection[str] = (), without: Collection[str] = ()) -> Any:
    """Declare the options of a dataclass, as the default of a parameter, which gets their values as one object.

    Fields that `option` declares are options, in the order of the help, below its ``HEADING``; with ``only`` or
    ``without`` some of them.
    """
    declared = [part.name for part in fields(cls) if part.metadata and part.name not in without]
    return field(metadata={"group": cls, "names": [name for name in declared if not only or name in only]})


class GroupedOption(click.Option):
    """An option that the help lists under a heading."""

    def __init__(self, *args: Any, heading: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.heading = heading


def click_parameter(declared: Field[Any], name: str, heading: str = "") -> click.Parameter:
    """The option or argument of a declaration; a command gets its value under this name."""
    attributes = dict(declared.metadata["attributes"])
    if not declared.metadata["names"]:
        return click.Argument([name], **attributes)
    if declared.default is not None:
        attributes["default"] = declared.default
    return GroupedOption([*declared.metadata["names"], name], **{"heading": heading, **attributes})


def declared_parameters(function: Callable[..., None]) -> tuple[list[click.Parameter], Callable[..., None]]:
    """The parameters that a function declares, and the function that takes their values one by one."""
    parameters: list[click.Parameter] = []
    groups: dict[str, tuple[type[Any], Sequence[str]]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        declared = parameter.default
        if not isinstance(declared, Field):
            continue  # `out`, which `groups.Command` gives
        if "group" not in declared.metadata:
            parameters.append(click_parameter(declared, name))
            continue
        cls, names = groups[name] = declared.metadata["group"], declared.metadata["names"]
        heading = getattr(cls, "HEADING", "")
        parameters += [click_parameter(cls.__dataclass_fields__[part], part, heading) for part in names]

    @functools.wraps(function)
    def call(**values: Any) -> None:
        for name, (cls, names) in groups.items():
            values[name] = cls(**{part: values.pop(part) for part in names})
        function(**values)

    return parameters, call


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

seed_option = option("--seed", type=int, default=0, help="Seed of all random choices.")
seeds_option = option(
    "--seeds", type=COUNT, default=3, metavar="N", help="How many times shots are drawn, with the seeds 1 to N."
)
folds_option = option(
    "--folds",
    type=click.IntRange(2),
    default=5,
    metavar="N",
    help="Folds of the cross-validation, if there is no test folder.",
)
curve_option = option(
    "--curve/--no-curve", default=True, help="Also fit to fewer of the shots of the model: a learning curve."
)
title_option = option(
    "--title", default="", show_default=False, metavar="TEXT", help="Title of plots; by default what they show."
)
plot_format_option = option(
    "--plot-format",
    default="png",
    metavar="FORMAT,...",
    type=Parsed(_parse_plot_formats),
    help="Files of each plot: png, pdf, svg or several.",
)
split_option = option("--split", metavar="NAME", help="Split of the data: train, val or test.")
strict_option = option(
    "--strict", default=False, is_flag=True, help="Fail at the first picture that can't be read.", heading=""
)


def shots_option(default: str) -> Any:
    """The numbers of shots that a command compares."""
    return option(
        "--shots", default=default, metavar="N,...", type=COUNTS, help="Numbers of shots per class to compare."
    )


def _limit_pixels(ctx: click.Context, param: click.Parameter, value: int) -> int:
    """Set the size of the largest picture that the process reads, until the command ends."""
    if value != DEFAULT_MAX_PIXELS:
        from clipadapter.data import set_max_pixels

        set_max_pixels(value)
        ctx.call_on_close(set_max_pixels)
    return value


max_pixels_option = option(
    "--max-pixels",
    default=DEFAULT_MAX_PIXELS,
    type=COUNT,
    metavar="N",
    callback=_limit_pixels,
    help="Larger pictures are refused; 108000000 reads those of a phone with 108 megapixels.",
)
"""A command need not use its value."""
