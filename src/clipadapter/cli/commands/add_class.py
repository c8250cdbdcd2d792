"""``clipadapter add-class``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.edit import by_option, change, login, pictures
from clipadapter.cli.options import FOLDER, Towers, model_options, output_options, strict_option
from clipadapter.cli.output import Output


@click.command(epilog="Example: clipadapter add-class model/ 'snow leopard' photos/snow-leopard/")
@click.argument("model", type=FOLDER)
@click.argument("name")
@click.argument("inputs", metavar="PICTURES...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--text",
    "sentences",
    multiple=True,
    metavar="SENTENCE",
    help="What the class looks like, in place of the templates; may be given many times.",
)
@by_option
@strict_option
@model_options
@output_options
def command(
    model: Path,
    name: str,
    inputs: tuple[Path, ...],
    sentences: tuple[str, ...],
    by: str | None,
    strict: bool,
    towers: Towers,
    out: Output,
) -> None:
    """Teach a model one more class, from pictures or folders of pictures.

    The pictures it has learned from are not needed: the model keeps their features. The class comes last in the
    order. The folder then holds the next version; 'undo' takes it back.
    """
    found = pictures(inputs)
    change(model, towers, strict, out, lambda m: m.add_class(name, found, descriptions=sentences or None, by=login(by)))
