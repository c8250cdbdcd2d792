"""``clipadapter add-class``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.edit import ModelEdit, collect_pictures, edit_options
from clipadapter.cli.groups import cli_command
from clipadapter.cli.option_types import FOLDER


@cli_command("clipadapter add-class model/ 'snow leopard' photos/snow-leopard/")
@click.argument("model", type=FOLDER)
@click.argument("name")
@click.argument("inputs", metavar="PICTURES...", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--text",
    "sentences",
    multiple=True,
    metavar="SENTENCE",
    help="Description of the class in place of the templates. May be repeated.",
)
@edit_options
def command(model: Path, name: str, inputs: tuple[Path, ...], sentences: tuple[str, ...], edit: ModelEdit) -> None:
    """Add a class to a model, from pictures or folders of pictures.

    The pictures that the model was fitted to are not needed, since the model stores their features. The new class is
    the last one. The folder then has a new version of the model; 'clipadapter undo' goes back.
    """
    pictures = collect_pictures(inputs)
    edit.apply(model, lambda m, author: m.add_class(name, pictures, descriptions=sentences or None, by=author))
