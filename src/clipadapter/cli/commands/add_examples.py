"""``clipadapter add-examples``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from clipadapter.cli.edit import ModelEdit, collect_pictures, edit_options
from clipadapter.cli.fit_options import class_names_option
from clipadapter.cli.groups import cli_command
from clipadapter.cli.option_types import FOLDER
from clipadapter.errors import InputError
from clipadapter.utils.files import MANIFEST_SUFFIXES

NO_LABEL = "a picture alone has no label: give --label NAME, or one folder per class"
Labels = Sequence[str] | Sequence[tuple[str, ...]]


@cli_command("clipadapter add-examples model/ more/    or: ... model/ a.jpg b.jpg --label lynx")
@click.argument("model", type=FOLDER)
@click.argument("inputs", metavar="DATA...", type=FOLDER, nargs=-1, required=True)
@click.option("--label", metavar="NAME", help="Class of all pictures, whatever their folders are called.")
@class_names_option
@edit_options
def command(
    model: Path, inputs: tuple[Path, ...], label: str | None, class_names: Path | None, edit: ModelEdit
) -> None:
    """Add pictures of its classes to a model.

    DATA is a folder with one folder per class, or a table, as for fit; with --label pictures, or folders of pictures.
    Pictures that the model has already are left out, so that a growing folder can be given again.
    """
    paths, labels = _read_labelled(inputs, label, class_names)
    edit.apply(model, lambda m, author: m.add_examples(paths, labels, by=author))


def _read_labelled(inputs: Sequence[Path], label: str | None, class_names: Path | None) -> tuple[list[Path], Labels]:
    from clipadapter.data import load_dataset, read_class_names

    names = {} if class_names is None else read_class_names(class_names)
    if label is not None:
        if names:
            raise InputError("--label sets the class of all pictures, so --class-names has no effect: leave one out")
        pictures = collect_pictures(inputs)
        return pictures, [label] * len(pictures)
    if any(path.is_file() and path.suffix.lower() not in MANIFEST_SUFFIXES for path in inputs):
        raise InputError(NO_LABEL)
    paths: list[Path] = []
    labels: list[str | tuple[str, ...]] = []
    for path in inputs:
        dataset = load_dataset(path, one_class=True)
        if not dataset.class_names:
            raise InputError(NO_LABEL)
        if "train" in dataset.splits:
            dataset = dataset.split("train")
        dataset = dataset.rename({name: new for name, new in names.items() if name in dataset.class_names})
        paths += dataset.paths
        labels += dataset.label_sets if dataset.multilabel else dataset.labels
    return paths, labels  # type: ignore[return-value]
