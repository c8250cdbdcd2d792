"""``clipadapter remove-class``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.edit import ModelEdit, author_option
from clipadapter.cli.encoder_options import ModelEncoderOptions
from clipadapter.cli.groups import cli_command
from clipadapter.cli.option_types import FOLDER
from clipadapter.cli.options import option_group, output_options
from clipadapter.cli.output import Output


@cli_command("clipadapter remove-class model/ fox")
@click.argument("model", type=FOLDER)
@click.argument("name")
@author_option
@option_group("encoder", ModelEncoderOptions)
@output_options
def command(model: Path, name: str, author: str | None, encoder: ModelEncoderOptions, out: Output) -> None:
    """Remove a class and its shots from a model.

    Where pictures may have several labels, they remain shots of their other classes.
    """
    edit = ModelEdit(author, encoder, out)
    edit.apply(model, lambda m, author: m.remove_class(name, by=author))
