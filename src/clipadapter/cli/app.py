"""The program ``clipadapter``: finds its commands in the modules of `cli.commands`, and turns errors into exit codes.

0 is success, 1 a failed run or a wrong input, 2 a wrong command line, 3 drift that `monitor` detected, 130 Ctrl-C.
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import os
import shlex
import sys
import threading
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from clipadapter import __version__
from clipadapter.cli.commands import SECTIONS, SHARED_MODULES
from clipadapter.cli.declarations import Command, SuggestingGroup
from clipadapter.cli.output import KEPT_KEY, Failure, echo, escape_lines
from clipadapter.errors import ClipAdapterError, LayoutError, needs_training

ARGUMENTS_KEY = "clipadapter.arguments"
GARBAGE_THRESHOLDS = (5_000, 10, 100)
"""New objects per search of them for garbage, such searches per search of older objects, and those per search of all.
Python's own are 700, 10 and 10. With 20,000 new objects, requests with damaged pictures made a server grow."""


class Commands(SuggestingGroup):
    """The commands of `cli.commands`. A module is imported only when its command or its help is needed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments, so that an error can print the command to repeat."""
        ctx.meta[ARGUMENTS_KEY] = list(args)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names, sorted."""
        return sorted(name for members in SECTIONS.values() for name in members)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a module and return its object ``command``; of a later one in a module that with its name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        own = cmd_name.replace("-", "_")
        module = importlib.import_module(f"clipadapter.cli.commands.{SHARED_MODULES.get(cmd_name, own)}")
        command: click.Command = getattr(module, own if cmd_name in SHARED_MODULES else "command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in their sections, one line each."""
        for section, members in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl(list(members.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Expected errors become one line and an exit code."""
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:  # a group without a command: its help
            raise
        except click.UsageError as error:  # of a command: its arguments may be names of files
            raise click.UsageError(escape_lines(error.format_message().expandtabs()), error.ctx) from error
        except ClipAdapterError as error:
            if ctx.params["debug"]:
                raise
            repeat = _repeat_command(error, ctx.meta[ARGUMENTS_KEY]) if isinstance(error, LayoutError) else ""
            raise Failure(f"{error}{repeat}") from error
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand or ""
            command = self.get_command(ctx, name)
            extra = command.extra if isinstance(command, Command) else "lite"
            missing = needs_training(error, f"clipadapter {name}".strip(), extra)
            if missing is None or ctx.params["debug"]:
                raise
            raise Failure(str(missing)) from error
        except OSError as error:  # only errors about a file or a disk are the user's; a closed pipe is not an error
            if ctx.params["debug"] or not (reason := _describe_os_error(error)):
                raise
            raise Failure(reason) from error
        except KeyboardInterrupt:
            kept = ctx.meta.get(KEPT_KEY, "")
            echo(f"\ninterrupted: {kept}" if kept else "\ninterrupted", err=True)
            ctx.exit(130)


def _describe_os_error(error: OSError) -> str:
    """What the user can know about an error of the operating system; empty if it is none of the user's."""
    if error.errno == errno.EPIPE:
        return ""
    if error.filename:
        return f"{error.filename!s} can't be used: {error.strerror}"
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # the disk of standard output
    return f"the output can't be written: {error.strerror}" if is_full else ""


def _repeat_command(error: LayoutError, arguments: Sequence[str]) -> str:
    """The command line with the folder that was probably meant; empty if the folder can't be found in it."""
    if not error.folders:
        return ""
    meant = str(error.folders[0])
    changed = [meant if Path(argument) == error.source else argument for argument in arguments]
    return "" if changed == list(arguments) else f". Repeat with: {shlex.join(['clipadapter', *changed])}"


EPILOG = """\b
Example:
  clipadapter scan shots/
  clipadapter fit shots/ --out model/
  clipadapter predict model/ photo.jpg
"""


@click.group(
    cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks, and the messages of other libraries.")
def app(debug: bool) -> None:
    """Adapt CLIP-like models to your own classes with a few labelled pictures.

    DATA is a folder with one folder of pictures per class, optionally below train, val and test; or a table
    (.csv, .tsv, .jsonl, .parquet) with the columns path, label and optionally split. Results go to stdout,
    everything else to stderr.
    """


def main() -> None:
    """Run the program and end the process. This is the entry point of the installed command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal can't show must not end a run
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # file names are bytes, and may not be UTF-8
    # Imports of torch and timm make some 400,000 objects that live to the end. To search them for garbage several times
    # during the imports is a tenth of a short command.
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    try:
        app(prog_name="clipadapter")
    except SystemExit as end:
        _end_process(end.code)


def _end_process(code: Any) -> None:
    """End the process as a forked one of `multiprocessing` ends: after threads and exit handlers, without unloading."""
    # To free all objects takes a second. With `gc.freeze`, extension modules report what was not freed as leaks.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # a closed pipe: Python's own end knows what to say
        sys.exit(code)
    os._exit(code or 0)
