"""The commands that change a model, but for ``undo``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipadapter.cli.edit import EditOptions, collect_pictures
from clipadapter.cli.fit_options import class_names_option
from clipadapter.cli.groups import cli_command
from clipadapter.cli.options import FOLDER, argument, option, options_of
from clipadapter.cli.output import Output
from clipadapter.errors import InputError
from clipadapter.utils.files import MANIFEST_SUFFIXES

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier

NO_LABEL = "a picture alone has no label: give --label NAME, or one folder per class"
Labels = Sequence[str] | Sequence[tuple[str, ...]]


@cli_command("clipadapter add-class model/ 'snow leopard' photos/snow-leopard/")
def add_class(
    out: Output,
    model: Path = argument(type=FOLDER),
    name: str = argument(),
    inputs: tuple[Path, ...] = argument(metavar="PICTURES...", type=FOLDER, nargs=-1, required=True),
    sentences: tuple[str, ...] = option(
        "--text",
        default=(),
        multiple=True,
        metavar="SENTENCE",
        help="Description of the class in place of the templates. May be repeated.",
    ),
    edit: EditOptions = options_of(EditOptions),
) -> None:
    """Add a class to a model, from pictures or folders of pictures.

    The pictures that the model was fitted to are not needed, since the model stores their features. The new class is
    the last one. The folder then has a new version of the model; 'clipadapter undo' goes back.
    """
    pictures = collect_pictures(inputs)
    edit.apply(model, out, lambda m, author: m.add_class(name, pictures, descriptions=sentences or None, by=author))


@cli_command("clipadapter add-examples model/ more/    or: ... model/ a.jpg b.jpg --label lynx")
def add_examples(
    out: Output,
    model: Path = argument(type=FOLDER),
    inputs: tuple[Path, ...] = argument(metavar="DATA...", type=FOLDER, nargs=-1, required=True),
    label: str | None = option(
        "--label", metavar="NAME", help="Class of all pictures, whatever their folders are called."
    ),
    class_names: Path | None = class_names_option,
    edit: EditOptions = options_of(EditOptions),
) -> None:
    """Add pictures of its classes to a model.

    DATA is a folder with one folder per class, or a table, as for fit; with --label pictures, or folders of pictures.
    Pictures that the model has already are left out, so that a growing folder can be given again.
    """
    paths, labels = _read_labelled(inputs, label, class_names)
    edit.apply(model, out, lambda m, author: m.add_examples(paths, labels, by=author))


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


@cli_command("clipadapter correct model/ photo.jpg --label lynx")
def correct(
    out: Output,
    model: Path = argument(type=FOLDER),
    inputs: tuple[Path, ...] = argument(metavar="PICTURES...", type=FOLDER, nargs=-1, required=True),
    labels: tuple[str, ...] = option(
        "--label",
        default=(),
        multiple=True,
        required=True,
        metavar="NAME",
        help="Right class of the pictures. May be repeated if pictures may have several labels.",
    ),
    edit: EditOptions = options_of(EditOptions),
) -> None:
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

    edit.apply(model, out, relabel)


@cli_command("clipadapter rename-class model/ lynx 'Eurasian lynx'")
def rename_class(
    out: Output,
    model: Path = argument(type=FOLDER),
    name: str = argument(),
    new: str = argument(),
    edit: EditOptions = options_of(EditOptions, without=["strict"]),
) -> None:
    """Rename a class of a model from NAME to NEW.

    The model is refitted with prompts of the new name. Sentences that were written for the class stay as they are.
    """
    edit.apply(model, out, lambda m, author: m.rename_class(name, new, by=author))


@cli_command("clipadapter remove-class model/ fox")
def remove_class(
    out: Output,
    model: Path = argument(type=FOLDER),
    name: str = argument(),
    edit: EditOptions = options_of(EditOptions, without=["strict"]),
) -> None:
    """Remove a class and its shots from a model.

    Where pictures may have several labels, they remain shots of their other classes.
    """
    edit.apply(model, out, lambda m, author: m.remove_class(name, by=author))
