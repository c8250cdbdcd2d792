"""``clipadapter rename-class``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.edit import ModelEdit, author_option
from clipadapter.cli.encoder_options import ModelEncoderOptions
from clipadapter.cli.groups import cli_command
from clipadapter.cli.option_types import FOLDER
from clipadapter.cli.options import option_group, output_options
from clipadapter.cli.output import Output


@cli_command("clipadapter rename-class model/ lynx 'Eurasian lynx'")
@click.argument("model", type=FOLDER)
@click.argument("name")
@click.argument("new")
@author_option
@option_group("encoder", ModelEncoderOptions)
@output_options
def command(model: Path, name: str, new: str, author: str | None, encoder: ModelEncoderOptions, out: Output) -> None:
    """Rename a class of a model from NAME to NEW.

    The model is refitted with prompts of the new name. Sentences that were written for the class stay as they are.
    """
    edit = ModelEdit(author, encoder, out)
    edit.apply(model, lambda m, author: m.rename_class(name, new, by=author))
