"""``clipadapter correct``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.cli.edit import ModelEdit, collect_pictures, edit_options
from clipadapter.cli.groups import cli_command
from clipadapter.cli.option_types import FOLDER
from clipadapter.errors import InputError

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier


@cli_command("clipadapter correct model/ photo.jpg --label lynx")
@click.argument("model", type=FOLDER)
@click.argument("inputs", metavar="PICTURES...", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--label",
    "labels",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Right class of the pictures. May be repeated if pictures may have several labels.",
)
@edit_options
def command(model: Path, inputs: tuple[Path, ...], labels: tuple[str, ...], edit: ModelEdit) -> None:
    """Correct the labels of pictures, and refit the model.

    A picture among the shots of the model gets the new label, even if its file was moved. Any other picture becomes a
    new shot.
    """
    pictures = collect_pictures(inputs)

    def relabel(classifier: FewShotClassifier, author: str) -> None:
        is_multilabel = classifier.support_.targets is not None
        if len(labels) > 1 and not is_multilabel:
            raise InputError(f"a picture has one class in this model, but got {' and '.join(labels)}")
        classifier.correct(pictures, [labels if is_multilabel else labels[0]] * len(pictures), by=author)

    edit.apply(model, relabel)
