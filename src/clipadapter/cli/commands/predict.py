"""``clipadapter predict``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from clipadapter.cli.options import FOLDER, Towers, model_options, output_options
from clipadapter.cli.output import Output
from clipadapter.cli.uncertainty_options import Wanted, doubts, wanted_options
from clipadapter.errors import (
    ArtifactError,
    DataError,
    ImageError,
    InputError,
    MissingExtraError,
    needs_training,
)
from clipadapter.files import IMAGE_SUFFIXES, is_exported, why_no_model

if TYPE_CHECKING:
    from clipadapter.prediction import Prediction
    from clipadapter.runtime.quick import QuickModel
    from clipadapter.uncertainty import Uncertainty

FEW = 32
"""Pictures that are not worth the time that torch takes to be loaded."""
BATCHES = 4
"""Batches between two writings: enough to keep the reading threads busy, few enough not to wait long."""


@click.command(epilog="Example: clipadapter predict model/ photo.jpg more/ --top 3 --json")
@click.argument("model", type=FOLDER)
@click.argument("inputs", metavar="INPUT...", type=click.Path(allow_dash=True, path_type=str), nargs=-1, required=True)
@click.option(
    "--top", type=click.IntRange(1), metavar="K", default=1, show_default=True, help="How many classes to name."
)
@click.option("--strict", is_flag=True, help="Fail at the first picture that can't be read.")
@wanted_options
@model_options
@output_options
def command(
    model: Path, inputs: tuple[str, ...], top: int, strict: bool, wanted: Wanted, towers: Towers, out: Output
) -> None:
    """Name the class of each picture.

    MODEL is the folder that fit wrote, or a file that export wrote: that needs neither PyTorch nor the encoder.
    An INPUT is a picture, a folder with pictures anywhere below it, a table (.csv, .tsv, .jsonl, .parquet) with
    the column path, or - for paths on standard input, one a line. Answers come in the order of the pictures,
    while the others are still being read: class, probability, picture. A picture of none of the classes is
    called "-", with the reason; its label is null in JSON. --json writes one object a line: source, label,
    probability, top (label and score of each), nearest, reason, labels (the set of --coverage) and error.
    """
    total = read = 0
    for answer, width in _answers(model, inputs, top, wanted, towers, out):
        total += 1
        read += answer.error is None
        if answer.error is not None:
            if strict:
                raise ImageError(answer.source, answer.error)
            out.warn(f"{answer.source}: {answer.error}")
        if answer.error is None or out.as_json:
            out.row(answer.record(), _lines(answer, width))
    if not read:
        raise DataError(f"none of the {total} pictures can be read" if total else "there are no pictures to name")
    if read < total:
        out.warn(f"{total - read} of {total} pictures can't be read")


def _pictures(inputs: Iterable[str]) -> Iterator[Path]:
    for text in inputs:
        if text == "-":
            yield from (Path(line) for line in (line.rstrip("\r\n") for line in sys.stdin) if line)
        else:
            yield from _expand(Path(text))


def _expand(path: Path) -> Iterable[Path]:
    """What one input stands for."""
    from clipadapter.data import list_images
    from clipadapter.data.load import read_listing
    from clipadapter.data.manifests import is_manifest

    try:
        if path.is_dir():
            return list_images(path)
        return read_listing(path).dataset.paths if is_manifest(path) else [path]
    except OSError:  # a name too long, or a folder that is another's: told when the picture is read
        return [path]


def _answers(
    model: Path, inputs: Sequence[str], top: int, wanted: Wanted, towers: Towers, out: Output
) -> Iterator[tuple[Prediction, int]]:
    """Answers, each with the width of the longest class name, a few batches at a time."""
    if is_exported(model) and not model.is_dir():
        yield from _exported(model, inputs, top, wanted, towers, out)
        return
    if why := why_no_model(model):
        raise ArtifactError(f"{why}, or a file that 'clipadapter export' wrote")
    quick = _quick(model, inputs, towers)
    if quick is not None:
        asked = _asked(wanted, quick.uncertainty, quick.class_names, out)
        yield from _told(quick.classify([Path(text) for text in inputs], top, **asked), quick.class_names)
        return
    pictures = _pictures(inputs)
    try:
        classifier = towers.load(model)
    except ModuleNotFoundError as error:
        missing = needs_training(error, "a saved model's folder")
        if missing is None:
            raise
        raise MissingExtraError(f"{missing}; or export it where it was fitted: clipadapter export {model}") from error
    asked = _asked(wanted, classifier.uncertainty_, classifier.class_names_, out)
    hidden = not out.progress or sys.stdout.isatty()  # a bar where answers don't scroll by
    with tqdm(desc="pictures", unit="img", disable=hidden) as bar:
        while chunk := list(islice(pictures, BATCHES * classifier.batch_size)):
            yield from _told(classifier.classify(chunk, top, **asked), classifier.class_names_)
            bar.update(len(chunk))
    if towers.plain:
        classifier.make_quick(model)


def _exported(
    model: Path, inputs: Sequence[str], top: int, wanted: Wanted, towers: Towers, out: Output
) -> Iterator[tuple[Prediction, int]]:
    """Answers of an exported file."""
    from clipadapter.runtime import DEFAULT_BATCH_SIZE, Predictor

    if (towers.encoder, towers.device, towers.precision) != (None, "cpu", "auto"):
        raise InputError(
            f"{model.name} holds its encoder as it was exported, for the CPU: leave out --encoder, --device and "
            "--precision, or give the model's folder"
        )
    predictor = Predictor(model, backend=towers.backend)
    asked = _asked(wanted, predictor.uncertainty, predictor.class_names, out)
    hidden = not out.progress or sys.stdout.isatty()
    answers = predictor.stream(_pictures(inputs), top, min(towers.batch_size, DEFAULT_BATCH_SIZE), **asked)
    with tqdm(answers, desc="pictures", unit="img", disable=hidden) as bar:
        yield from _told(bar, predictor.class_names)


def _asked(wanted: Wanted, uncertainty: Uncertainty, class_names: Sequence[str], out: Output) -> dict[str, Any]:
    """What is asked for beside the model's own; tells of rates that the shots can't set."""
    asked = wanted.asked(class_names)
    for text in doubts(uncertainty, wanted.reject, wanted.coverage):
        out.warn(text)
    return asked


def _told(answers: Iterable[Prediction], names: Sequence[str]) -> Iterator[tuple[Prediction, int]]:
    width = max(map(len, names))
    return ((answer, width) for answer in answers)


def _quick(model: Path, inputs: Sequence[str], towers: Towers) -> QuickModel | None:
    """The model without torch, for a few plain files and nothing special."""
    from clipadapter.runtime.quick import open_quick

    if not towers.plain or len(inputs) > FEW or any(Path(text).suffix.lower() not in IMAGE_SUFFIXES for text in inputs):
        return None
    return open_quick(model)


def _lines(answer: Prediction, width: int) -> str:
    """An answer for a person: a line a class, the first with the set of classes, or why it is none of them."""
    lines = [f"{name.ljust(width)}  {score:.3f}  {answer.source}" for name, score in answer.top]
    if answer.labels is not None:
        lines[0] += f"  {{{', '.join(answer.labels)}}}"
    if answer.reason is not None:
        why = f"nearest {answer.nearest}, but {answer.reason}"
        lines[0] = f"{'-'.ljust(width)}  {answer.probability:.3f}  {answer.source}  {why}"
    return "\n".join(lines)
