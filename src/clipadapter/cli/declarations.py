"""How commands and their options are declared, and the classes of commands and of groups.

An option is declared once: by `option`, as the default of a parameter of its command. Options that several commands
share are constants of `options`. Those that belong together are the fields of a dataclass there, which `options_of`
hands to the command as one object. All defaults are shown in help texts: `app` sets ``show_default``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import Field, field, fields
from pathlib import Path
from typing import Any

import click

from clipadapter.cli.output import CONTINUE, KEPT_KEY, START_AGAIN, Output, collect_warnings
from clipadapter.utils.registry import unknown

# ---- Options ----


def option(usage: str, help: str = "", *, default: Any = None, multiple: bool = False, **attributes: Any) -> Any:
    """Declare an option of a command, as the default of a parameter, or a field of a dataclass of options.

    ``usage`` has its names and what stands for its value, as the help shows them: ``-d, --data NAME``. The other
    arguments are those of ``click.option``, and its ``heading`` in the help.
    """
    words = usage.split()
    attributes |= {"help": help or None, "multiple": multiple}
    if not words[-1].startswith("-"):
        attributes["metavar"] = words.pop()
    names = [word.rstrip(",") for word in words]
    return field(
        default=() if multiple and default is None else default, metadata={"names": names, "attributes": attributes}
    )


def flag(usage: str, help: str, **attributes: Any) -> Any:
    """Declare an option without a value."""
    return option(usage, help, default=False, is_flag=True, **attributes)


def argument(**attributes: Any) -> Any:
    """Declare an argument of a command, as the default of a parameter, with the arguments of ``click.argument``."""
    return field(metadata={"names": (), "attributes": attributes})


def options_of(cls: type[Any], only: Collection[str] = (), without: Collection[str] = (), **defaults: Any) -> Any:
    """Declare the options of a dataclass, as the default of a parameter, which gets their values as one object.

    Fields that `option` declares are options, in the order of the help, below its ``HEADING``; with ``only`` or
    ``without`` some of them, with ``defaults`` some have other defaults.
    """
    declared = [part.name for part in fields(cls) if part.metadata and part.name not in without]
    names = [name for name in declared if not only or name in only]
    return field(metadata={"group": cls, "names": names, "defaults": defaults})


class GroupedOption(click.Option):
    """An option that the help lists under a heading."""

    def __init__(self, *args: Any, heading: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.heading = heading


def _click_parameter(declared: Field[Any], name: str, heading: str = "", default: Any = None) -> click.Parameter:
    names, attributes = declared.metadata["names"], dict(declared.metadata["attributes"])
    if not names:
        return click.Argument([name], **attributes)
    default = declared.default if default is None else default
    if default is not None:
        attributes["default"] = default
    return GroupedOption([*names, name], **{"heading": heading, **attributes})


def _declared_parameters(function: Callable[..., None]) -> tuple[list[click.Parameter], Callable[..., None]]:
    """The parameters that a function declares, and the function that takes their values one by one."""
    parameters: list[click.Parameter] = []
    groups: dict[str, tuple[type[Any], Sequence[str]]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        declared = parameter.default
        if not isinstance(declared, Field):
            continue  # `out`, which `Command` gives
        if "group" not in declared.metadata:
            parameters.append(_click_parameter(declared, name))
            continue
        cls, names = groups[name] = declared.metadata["group"], declared.metadata["names"]
        heading, defaults = getattr(cls, "HEADING", ""), declared.metadata["defaults"]
        for part in names:
            parameters.append(_click_parameter(cls.__dataclass_fields__[part], part, heading, defaults.get(part)))

    @functools.wraps(function)
    def call(**values: Any) -> None:
        for name, (cls, names) in groups.items():
            values[name] = cls(**{part: values.pop(part) for part in names})
        function(**values)

    return parameters, call


# ---- Commands ----


def output_options() -> list[click.Parameter]:
    """The options that every command has."""
    return [
        click.Option(["--json", "as_json"], is_flag=True, help="Write JSON to stdout."),
        click.Option(["-q", "--quiet"], is_flag=True, help="Write only errors to stderr."),
    ]


class Command(click.Command):
    """A command with ``--json`` and ``--quiet``, which its function gets as ``out``, unless it declares these itself.

    ``extra`` is that of the package that the command needs; "lite" installs the extra ``train`` and an encoder. The
    help lists the options ``first`` first.
    """

    def __init__(self, *args: Any, extra: str = "lite", first: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.extra = extra
        self.first = (*first.split(), "--help") if first else ()
        self.takes_output = not any(parameter.name == "as_json" for parameter in self.params)
        if self.takes_output:
            self.params += output_options()

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
    """Return the decorator that makes a function a command with the options and arguments that it declares.

    The help ends with the example. By default the name of the command in its group is that of the function.
    """

    def decorate(function: Callable[..., None]) -> Command:
        params, call = _declared_parameters(function)
        epilog = f"Example: {example}" if example else None
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
        callback=share_output_options, params=output_options(), epilog=f"Example: {example}", help=help
    )
    for command in commands:
        group.add_command(command)
    return group
