"""Options that several commands share. Each is declared once.

A single option is a decorator, such as `seed_option`. Options that belong together are the fields of a dataclass, each
declared by `option`; the decorator `option_group` hands them to the command as one object. Such dataclasses are in
`encoder_options`, `fit_options` and `uncertainty_options`. All defaults are shown in help texts: `app` sets
``show_default``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import field, fields
from typing import Any

import click

from clipadapter.cli.groups import GroupedOption
from clipadapter.cli.option_types import COUNT, PLOT_FORMATS, parse_counts
from clipadapter.cli.output import Output, collect_warnings, silence_libraries

DEFAULT_MAX_PIXELS = 100_000_000
"""`clipadapter.data.images.MAX_PIXELS`, which ``--help`` does not import."""
Command = Callable[..., None]
Decorator = Callable[[Command], Command]

seed_option = click.option("--seed", type=int, default=0, help="Seed of all random choices.")
seeds_option = click.option(
    "--seeds", type=COUNT, default=3, metavar="N", help="How many times shots are drawn, with the seeds 1 to N."
)
shots_option = click.option(
    "--shots",
    default="1,2,4,8,16",
    metavar="N,...",
    callback=parse_counts,
    help="Numbers of shots per class to compare.",
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
    type=PLOT_FORMATS,
    help="Files of each plot: png, pdf, svg or several.",
)
split_option = click.option("--split", metavar="NAME", help="Split of the data: train, val or test.")
strict_option = click.option("--strict", is_flag=True, help="Fail at the first picture that can't be read.")


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


def option(*names: str, default: Any = None, **attributes: Any) -> Any:
    """Declare a field of a dataclass that is also an option of the command line.

    Args:
        names: of the option, such as "--device".
        default: of the field and the option.
        attributes: further arguments of ``click.option``.
    """
    return field(default=default, metadata={"names": names, "attributes": attributes})


def field_option(cls: type[Any], name: str) -> Decorator:
    """Return the decorator that adds one option of a dataclass to a command.

    Args:
        cls: a dataclass.
        name: of a field that `option` declares. The command gets the value under this name.
    """
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


def output_options(function: Command) -> Command:
    """Add ``--json`` and ``--quiet``. The command gets them as ``out``. Put it right above the function."""

    @click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Write only errors to stderr.")
    @functools.wraps(function)
    def wrapped(as_json: bool, quiet: bool, **values: Any) -> None:
        out = Output(as_json, quiet)
        if click.get_current_context().find_root().params.get("debug"):
            function(out=out, **values)
            return
        with silence_libraries(show_bars=out.progress), collect_warnings(out):
            function(out=out, **values)

    return wrapped
