"""``clipadapter add-examples``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from clipadapter.cli.edit import by_option, change, login, pictures
from clipadapter.cli.fit_options import class_names_option
from clipadapter.cli.options import FOLDER, Towers, model_options, output_options, strict_option
from clipadapter.cli.output import Output
from clipadapter.errors import InputError
from clipadapter.files import MANIFEST_SUFFIXES

NO_LABEL = "a picture alone does not say what it shows: give --label NAME, or a folder a class"
Labels = Sequence[str] | Sequence[tuple[str, ...]]


@click.command(epilog="Example: clipadapter add-examples model/ more/    or: ... model/ a.jpg b.jpg --label lynx")
@click.argument("model", type=FOLDER)
@click.argument("inputs", metavar="DATA...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--label", metavar="NAME", help="All are pictures of this class, whatever their folders are called.")
@class_names_option
@by_option
@strict_option
@model_options
@output_options
def command(
    model: Path,
    inputs: tuple[Path, ...],
    label: str | None,
    class_names: Path | None,
    by: str | None,
    strict: bool,
    towers: Towers,
    out: Output,
) -> None:
    """Teach a model more pictures of its classes.

    DATA is a folder with a folder a class, or a table, as for fit; with --label pictures, or folders of pictures.
    Pictures that it has learned from already are left out, so that a folder that grows can be given again.
    """
    paths, labels = _labelled(inputs, label, class_names)
    change(model, towers, strict, out, lambda m: m.add_examples(paths, labels, by=login(by)))


def _labelled(inputs: Sequence[Path], label: str | None, class_names: Path | None) -> tuple[list[Path], Labels]:
    from clipadapter.data import load_dataset, read_class_names

    names = {} if class_names is None else read_class_names(class_names)
    if label is not None:
        if names:
            raise InputError("--label says what all pictures show, so --class-names has nothing to say: leave one out")
        found = pictures(inputs)
        return found, [label] * len(found)
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
