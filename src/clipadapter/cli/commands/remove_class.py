"""``clipadapter remove-class``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.edit import by_option, change, login
from clipadapter.cli.options import FOLDER, Towers, model_options, output_options
from clipadapter.cli.output import Output


@click.command(epilog="Example: clipadapter remove-class model/ fox")
@click.argument("model", type=FOLDER)
@click.argument("name")
@by_option
@model_options
@output_options
def command(model: Path, name: str, by: str | None, towers: Towers, out: Output) -> None:
    """Have a model forget a class and its shots.

    Where pictures may have several labels, they stay as shots of their other classes.
    """
    change(model, towers, False, out, lambda m: m.remove_class(name, by=login(by)))
