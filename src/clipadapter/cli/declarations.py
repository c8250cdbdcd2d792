"""How commands and their options are declared, and the classes of commands and of groups.

An option is declared once: by `option`, as the default of a parameter of its command, whose annotation says the type.
Options that several commands share are constants of `options`. Those that belong together are the fields of a dataclass
there, which `options_of` hands to the command as one object. All defaults are shown in help texts: `app` sets
``show_default``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import Field, field, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import click

from clipadapter.cli.output import CONTINUE, KEPT_KEY, START_AGAIN, Output, collect_warnings
from clipadapter.utils.registry import unknown

# ---- Options ----

TYPES = {Path: click.Path(path_type=Path), int: int, float: float}  # of click, by the type of a value


def option(usage: str, help: str = "", *, default: Any = None, **attributes: Any) -> Any:
    """Declare an option by its names and what stands for its value, ``-d, --data NAME``, as in ``click.option``."""
    words = usage.split()
    attributes["help"] = help or None
    if not words[-1].startswith("-"):
        attributes["metavar"] = words.pop()
    names = [word.rstrip(",") for word in words]
    return field(default=default, metadata={"names": names, "attributes": attributes})


def flag(usage: str, help: str, **attributes: Any) -> Any:
    """Declare an option without a value."""
    return option(usage, help, default=False, is_flag=True, **attributes)


def argument(**attributes: Any) -> Any:
    """Declare an argument of a command, as the default of a parameter, with the arguments of ``click.argument``."""
    return field(metadata={"names": (), "attributes": attributes})


def options_of(cls: type[Any], only: Collection[str] = (), without: Collection[str] = (), **defaults: Any) -> Any:
    """Declare the options that a dataclass has as fields, or some of them, listed under its ``HEADING``."""
    declared = [part.name for part in fields(cls) if part.metadata and part.name not in without]
    names = [name for name in declared if not only or name in only]
    return field(metadata={"group": cls, "names": names, "defaults": defaults})


class GroupedOption(click.Option):
    """An option that the help lists under a heading."""

    def __init__(self, *args: Any, heading: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.heading = heading


def _parameters_of(
    declared: Field[Any], name: str, annotation: Any, heading: str = "", default: Any = None
) -> tuple[list[click.Parameter], Callable[[dict[str, Any]], Any]]:
    """The parameters of an option, an argument or a dataclass of them, and what takes its value out of all values."""
    if (cls := declared.metadata.get("group")) is None:
        return [_click_parameter(declared, name, annotation, heading, default)], lambda values: values.pop(name)
    own, types = cls.__dataclass_fields__, get_type_hints(cls, include_extras=True)
    defaults, heading = declared.metadata["defaults"], getattr(cls, "HEADING", "")
    parts = {
        part: _parameters_of(own[part], part, types[part], heading, defaults.get(part))
        for part in declared.metadata["names"]
    }
    parameters = [parameter for each, _ in parts.values() for parameter in each]
    return parameters, lambda values: cls(**{part: take(values) for part, (_, take) in parts.items()})


def _click_parameter(declared: Field[Any], name: str, annotation: Any, heading: str, default: Any) -> click.Parameter:
    # An annotation is TYPE, TYPE | None or tuple[TYPE, ...]. Texts and flags click knows by their defaults.
    parts = [annotation] if get_origin(annotation) in (Annotated, Literal, None) else get_args(annotation)
    kind: Any = TYPES.get(parts[0])
    if get_origin(parts[0]) is Annotated:
        kind = get_args(parts[0])[1]
    elif get_origin(parts[0]) is Literal:
        kind = click.Choice(get_args(parts[0]))
    names, attributes = declared.metadata["names"], {"type": kind, **declared.metadata["attributes"]}
    is_several = ... in parts
    if not names:
        several = {"nargs": -1, "required": True} if is_several else {}
        optional = {"required": False} if NoneType in parts else {}
        return click.Argument([name], **{**several, **optional, **attributes})
    default = declared.default if default is None else default
    if default is not None:
        attributes["default"] = default
    return GroupedOption([*names, name], **{"heading": heading, "multiple": is_several, **attributes})


# ---- Commands ----


OUTPUT_OPTIONS = (
    click.Option(["--json", "as_json"], is_flag=True, help="Write JSON to stdout."),
    click.Option(["-q", "--quiet"], is_flag=True, help="Write only errors to stderr."),
)
"""The options that every command has."""


class Command(click.Command):
    """A command with ``--json`` and ``--quiet``, its function's ``out``, unless it declares these itself."""

    def __init__(self, *args: Any, extra: str = "lite", first: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.extra = extra
        self.first = (*first.split(), "--help") if first else ()
        self.takes_output = not any(parameter.name == "as_json" for parameter in self.params)
        if self.takes_output:
            self.params += OUTPUT_OPTIONS

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings."""
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        first = [option for name in self.first for option in options if name in option.opts]
        rest = "Other options" if first else "Options"
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for option in (*first, *(option for option in options if option not in first)):
            heading = "Options" if option in first else getattr(option, "heading", "") or rest
            if record := option.get_help_record(ctx):
                sections.setdefault(heading, []).append(record)
        if first:
            sections[rest] = sections.pop(rest, [])  # after the headings
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments. An unknown option may be a parameter of a head, which ``--set`` takes."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if not any("--set" in parameter.opts for parameter in self.params):
                raise
            name = error.option_name.lstrip("-").replace("-", "_")
            message = f"{error.message} A parameter of a head is given as --set {name}=VALUE."
            raise click.NoSuchOption(error.option_name, message, error.possibilities, ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. What an interrupted one keeps is that of its feature store, unless the command says it."""
        if "cache" in ctx.params:
            model = ctx.params.get("model")
            is_file = isinstance(model, Path) and model.is_file()  # an exported model stores no features
            ctx.meta.setdefault(KEPT_KEY, START_AGAIN if is_file or ctx.params.get("no_cache") else CONTINUE)
        if not self.takes_output or self.callback is None:
            return super().invoke(ctx)
        values = {name: value for name, value in ctx.params.items() if name not in ("as_json", "quiet")}
        out = Output(ctx.params["as_json"], ctx.params["quiet"])
        if ctx.find_root().params.get("debug"):
            return ctx.invoke(self.callback, out=out, **values)
        with collect_warnings(out):
            return ctx.invoke(self.callback, out=out, **values)


def cli_command(
    example: str, *, name: str | None = None, extra: str = "lite", first: str = ""
) -> Callable[[Callable[..., None]], Command]:
    """Make a function a command. ``extra`` installs what it needs; the help lists the options ``first`` first."""

    def decorate(function: Callable[..., None]) -> Command:
        declared = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
        types = get_type_hints(function, include_extras=True)
        # `Command` gives `out`.
        parts = {
            name: _parameters_of(one, name, types.get(name)) for name, one in declared.items() if isinstance(one, Field)
        }

        @functools.wraps(function)
        def call(**values: Any) -> None:
            own = {part: take(values) for part, (_, take) in parts.items()}
            function(**own, **values)

        epilog = f"Example: {example}" if example else None
        params = [parameter for each, _ in parts.values() for parameter in each]
        make = click.command(name, cls=Command, params=params, epilog=epilog, extra=extra, first=first)
        command: Command = make(call)
        return command

    return decorate


class SuggestingGroup(click.Group):
    """A group that suggests the closest name if there is no such command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of the first argument."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            ctx.fail(str(unknown("command", args[0], known)))
        return super().resolve_command(ctx, args)


def command_group(example: str, help: str, *commands: Command) -> click.Group:
    """A group of commands; its ``--json`` and ``--quiet`` are the defaults of those of its commands."""

    def share_output_options(as_json: bool, quiet: bool) -> None:
        context = click.get_current_context()
        context.default_map = dict.fromkeys(group.commands, {"as_json": as_json, "quiet": quiet})

    group = SuggestingGroup(
        callback=share_output_options, params=[*OUTPUT_OPTIONS], epilog=f"Example: {example}", help=help
    )
    for command in commands:
        group.add_command(command)
    return group
