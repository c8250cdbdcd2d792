"""``clipadapter correct``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.edit import by_option, change, login, pictures
from clipadapter.cli.options import FOLDER, Towers, model_options, output_options, strict_option
from clipadapter.cli.output import Output
from clipadapter.errors import InputError


@click.command(epilog="Example: clipadapter correct model/ photo.jpg --label lynx")
@click.argument("model", type=FOLDER)
@click.argument("inputs", metavar="PICTURES...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--label",
    "labels",
    multiple=True,
    required=True,
    metavar="NAME",
    help="What they show; many times where pictures may have several labels.",
)
@by_option
@strict_option
@model_options
@output_options
def command(
    model: Path,
    inputs: tuple[Path, ...],
    labels: tuple[str, ...],
    by: str | None,
    strict: bool,
    towers: Towers,
    out: Output,
) -> None:
    """Say what pictures really show, and have a model learn it.

    A picture that it has learned from gets the new label, wherever the file lies now; another one is learned from
    besides.
    """
    from clipadapter.classifier import FewShotClassifier

    found = pictures(inputs)

    def act(classifier: FewShotClassifier) -> None:
        several = classifier.support_.targets is not None
        if len(labels) > 1 and not several:
            raise InputError(f"a picture has one class in this model, but got {' and '.join(labels)}")
        classifier.correct(found, [labels if several else labels[0]] * len(found), by=login(by))

    change(model, towers, strict, out, act)
