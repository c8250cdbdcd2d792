"""``clipadapter rename-class``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.edit import by_option, change, login
from clipadapter.cli.options import FOLDER, Towers, model_options, output_options
from clipadapter.cli.output import Output


@click.command(epilog="Example: clipadapter rename-class model/ lynx 'Eurasian lynx'")
@click.argument("model", type=FOLDER)
@click.argument("name")
@click.argument("new")
@by_option
@model_options
@output_options
def command(model: Path, name: str, new: str, by: str | None, towers: Towers, out: Output) -> None:
    """Call a class NAME of a model NEW.

    The text of the class changes with its name, as if it had been fitted so; sentences that were written for it stay.
    """
    change(model, towers, False, out, lambda m: m.rename_class(name, new, by=login(by)))
