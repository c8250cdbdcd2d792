"""The classes of commands: what every command has, options under headings in the help, and groups of commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from clipadapter.cli.options import declared_parameters
from clipadapter.cli.output import CONTINUE, KEPT_KEY, START_AGAIN, Output, collect_warnings, silence_libraries
from clipadapter.utils.registry import unknown


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
        order = {name: i for i, name in enumerate(self.first)}
        options.sort(key=lambda option: min(order.get(name, len(order)) for name in option.opts))
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        rest: list[tuple[str, str]] = []
        for option in options:
            record = option.get_help_record(ctx)
            if record is None:
                continue
            if not order.keys().isdisjoint(option.opts):
                sections["Options"].append(record)
            elif heading := getattr(option, "heading", ""):
                sections.setdefault(heading, []).append(record)
            else:
                (rest if order else sections["Options"]).append(record)
        for heading, records in {**sections, "Other options": rest}.items():
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
        ctx.meta.setdefault(KEPT_KEY, describe_store(ctx.params))
        if not self.takes_output or self.callback is None:
            return super().invoke(ctx)
        values = {name: value for name, value in ctx.params.items() if name not in ("as_json", "quiet")}
        out = Output(ctx.params["as_json"], ctx.params["quiet"])
        if ctx.find_root().params.get("debug"):
            return ctx.invoke(self.callback, out=out, **values)
        with silence_libraries(show_bars=out.progress), collect_warnings(out):
            return ctx.invoke(self.callback, out=out, **values)


def describe_store(parameters: Mapping[str, Any]) -> str:
    """What a command that was interrupted keeps, and how to go on, from its arguments; "" if it has no feature store.

    >>> describe_store({"cache": None, "no_cache": True})
    'the same command starts from the beginning'
    """
    if "cache" not in parameters:
        return ""
    file, model = parameters.get("file"), parameters.get("model")
    if parameters.get("adapt"):  # answers depend on all pictures before them
        return START_AGAIN
    if file is not None:
        return f"the finished parts of {file} are kept, and the same command continues from there"
    is_file = isinstance(model, Path) and model.is_file()  # an exported model stores no features
    return START_AGAIN if parameters.get("no_cache") or is_file else CONTINUE


def cli_command(
    example: str, *, name: str | None = None, extra: str = "lite", first: str = ""
) -> Callable[[Callable[..., None]], Command]:
    """Return the decorator that makes a function a command with the options and arguments that it declares.

    The help ends with the example. By default the name of the command in its group is that of the function.
    """

    def decorate(function: Callable[..., None]) -> Command:
        params, call = declared_parameters(function)
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
