"""The command ``clipadapter``: finds its commands by the modules of ``cli.commands``, and turns errors into exit codes.

0 is success, 1 a failed run or a wrong input, 2 a command line that can't be understood, 3 drift that `monitor` found,
130 Ctrl-C.
"""

from __future__ import annotations

import errno
import importlib
import pkgutil
import sys
from io import TextIOWrapper
from typing import Any

import click

from clipadapter import __version__
from clipadapter.cli import commands
from clipadapter.cli.output import Failure
from clipadapter.errors import ClipAdapterError, needs_training
from clipadapter.registry import unknown

INTERRUPTED = 130
EXTRAS = {"demo": "demo", "doctor": "lite,doctor", "export": "lite,onnx", "studio": "lite,studio"}
"""What a command needs, where that is more than an encoder."""
SECTIONS = {
    "To begin": ("scan", "fit", "predict", "eval", "studio", "demo"),
    "To keep it learning": (
        "add-class",
        "add-examples",
        "correct",
        "rename-class",
        "remove-class",
        "history",
        "undo",
        "monitor",
    ),
    "To choose and to trust": ("compare", "heads", "encoders", "doctor", "explain", "report"),
    "To take with you": ("export", "serve", "push", "pull"),
}
"""Commands in the order of the help; those that are not named come last."""


class Commands(click.Group):
    """Public modules of the package as commands; a module is imported when its command or its help is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the modules, sorted."""
        names = (module.name for module in pkgutil.iter_modules(commands.__path__))
        return sorted(name.replace("_", "-") for name in names)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands with a line each, in sections."""
        named = {name for names in SECTIONS.values() for name in names}
        rest = tuple(name for name in self.list_commands(ctx) if name not in named)
        for title, names in {**SECTIONS, "For studies, and more": rest}.items():
            found = {name: self.get_command(ctx, name) for name in names}
            room = formatter.width - 6 - max(map(len, names), default=0)
            with formatter.section(title):
                formatter.write_dl([(name, each.get_short_help_str(room)) for name, each in found.items() if each])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The object called ``command`` of one module."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = cmd_name.replace("-", "_")
        command: click.Command = importlib.import_module(f"clipadapter.cli.commands.{module}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown name says what comes close."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            ctx.fail(str(unknown("command", args[0], known)))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what goes wrong on purpose becomes one line and an exit code."""
        try:
            return super().invoke(ctx)
        except ClipAdapterError as error:
            if ctx.params["debug"]:
                raise
            raise Failure(str(error)) from error
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand or ""
            missing = needs_training(error, f"clipadapter {name}".strip(), EXTRAS.get(name, "lite"))
            if missing is None or ctx.params["debug"]:
                raise
            raise Failure(str(missing)) from error
        except OSError as error:  # of a file that can't even be looked at; others are none of the user's
            if ctx.params["debug"] or not error.filename or error.errno == errno.EPIPE:
                raise
            raise Failure(f"{error.filename!s} can't be used: {error.strerror}") from error
        except KeyboardInterrupt:
            click.echo("\ninterrupted", err=True)
            ctx.exit(INTERRUPTED)


EPILOG = """\b
Example:
  clipadapter scan shots/
  clipadapter fit shots/ --out model/
  clipadapter predict model/ photo.jpg
"""


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks, and what other libraries have to say.")
def app(debug: bool) -> None:
    """Adapt CLIP-like models to your own classes from a few labelled pictures.

    DATA is a folder with one folder of pictures a class, optionally under train, val and test, or a table
    (.csv, .tsv, .jsonl, .parquet) with the columns path, label and optionally split. Results go to stdout,
    all else to stderr.
    """


def main() -> None:
    """Entry point of the installed command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal can't show must not end a run
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # file names are bytes, and need not be UTF-8
    app(prog_name="clipadapter")
