"""``clipadapter predict``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from clipadapter.cli.encoder_options import ModelEncoderOptions
from clipadapter.cli.groups import Section, cli_command
from clipadapter.cli.inputs import is_missing, read_lines
from clipadapter.cli.option_types import COUNT, FOLDER
from clipadapter.cli.options import option_group, output_options, strict_option
from clipadapter.cli.output import Output
from clipadapter.cli.uncertainty_options import DecisionArguments
from clipadapter.errors import ArtifactError, DataError, ImageError, InputError, MissingExtraError, needs_training
from clipadapter.files import IMAGE_SUFFIXES, quote_path
from clipadapter.formats import is_exported
from clipadapter.formatting import describe_unreadable
from clipadapter.model_folder import why_no_model

if TYPE_CHECKING:
    from clipadapter.prediction import Prediction
    from clipadapter.runtime.quick import QuickModel
    from clipadapter.uncertainty import Uncertainty

MAX_QUICK_PICTURES = 32
"""Up to this number, predicting without torch is faster than importing torch."""
MAX_NAMED_INPUTS = 3


@dataclass(frozen=True)
class PredictRequest:
    """The arguments and options of the command that say what is predicted."""

    model: Path
    inputs: Sequence[str]
    top: int
    adapt: str | None
    views: int
    decisions: DecisionArguments
    encoder: ModelEncoderOptions
    out: Output

    def options(self, uncertainty: Uncertainty, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the keyword arguments of ``classify``, checked. All calls with them share one cache of ``adapt``."""
        cache = uncertainty.open_cache(self.adapt, len(class_names))
        return {"top": self.top, "adapt": cache, **self.decisions.check(uncertainty, class_names, self.out)}


@cli_command("clipadapter predict model/ photo.jpg more/ --top 3 --json", Section.START, 3)
@click.argument("model", type=FOLDER)
@click.argument("inputs", metavar="INPUT...", type=click.Path(allow_dash=True, path_type=str), nargs=-1, required=True)
@click.option("--top", type=COUNT, metavar="K", default=1, help="Number of classes to print for each picture.")
@click.option(
    "--adapt",
    type=click.Choice(["tda"]),
    help="Let earlier pictures change the answers to later ones, for many pictures of one kind. Their order matters.",
)
@click.option(
    "--views",
    type=COUNT,
    metavar="N",
    default=1,
    show_default=True,
    help="Look at N crops of each picture; the most confident ones vote. N times as slow; not for exported files.",
)
@strict_option
@option_group("decisions", DecisionArguments)
@option_group("encoder", ModelEncoderOptions)
@output_options
def command(
    model: Path,
    inputs: tuple[str, ...],
    top: int,
    adapt: str | None,
    views: int,
    strict: bool,
    decisions: DecisionArguments,
    encoder: ModelEncoderOptions,
    out: Output,
) -> None:
    """Predict the class of each picture.

    MODEL is a folder written by fit, or a file written by export, which needs neither PyTorch nor the encoder. An INPUT
    is a picture, a folder with pictures at any depth, a table (.csv, .tsv, .jsonl, .parquet) with the column path, or -
    for paths on standard input, one per line. The output has one line per picture, in the order of the pictures: class,
    probability, picture. A picture of none of the classes has the class "-" and a reason; its label is null in JSON.
    --json writes one object per line: source, label, probability, top (label and score of each), nearest, reason,
    labels (the set of --coverage) and error.
    """
    n_pictures = n_readable = 0
    for prediction, width in _predict(PredictRequest(model, inputs, top, adapt, views, decisions, encoder, out)):
        n_pictures += 1
        n_readable += prediction.error is None
        if prediction.error is not None:
            if strict:
                raise ImageError(prediction.source, prediction.error)
            out.warn(f"{prediction.source}: {prediction.error}")
        if prediction.error is None or out.as_json:
            out.row(prediction.record(), _format_prediction(prediction, width))
    if not n_readable:
        raise DataError(describe_unreadable(n_pictures) if n_pictures else _describe_empty(inputs))
    if n_readable < n_pictures:
        out.warn(f"{n_pictures - n_readable} of {n_pictures} pictures can't be read")


def _describe_empty(inputs: Sequence[str]) -> str:
    names = ", ".join("standard input" if text == "-" else text for text in inputs[:MAX_NAMED_INPUTS])
    more = f" and {len(inputs) - MAX_NAMED_INPUTS} more" if len(inputs) > MAX_NAMED_INPUTS else ""
    return f"there are no pictures in {names}{more}"


def _pictures(inputs: Sequence[str]) -> Iterator[Path | None]:
    """The pictures of all inputs; None where the next line of standard input is not there yet."""
    for text in inputs:
        if text == "-":
            yield from (None if line is None else Path(line) for line in read_lines(sys.stdin) if line != "")
        else:
            yield from _expand(Path(text))


def _expand(path: Path) -> Iterable[Path]:
    """List the pictures of one input."""
    from clipadapter.data import list_images
    from clipadapter.data.load import read_listing
    from clipadapter.data.manifests import is_manifest

    try:
        if path.is_dir():
            return list_images(path)
        return read_listing(path).dataset.paths if is_manifest(path) else [path]
    except OSError:  # a name too long, or no permission: reported when the picture is read
        return [path]


def _predict(request: PredictRequest) -> Iterator[tuple[Prediction, int]]:
    """Yield the predictions a few batches at a time, each with the width of the longest class name."""
    if is_exported(request.model) and not request.model.is_dir():
        yield from _predict_exported(request)
        return
    if why := why_no_model(request.model):
        raise ArtifactError(f"{why}, or a file that 'clipadapter export' wrote")
    if request.views > 1:
        _check_views(request)
    quick = _open_quick(request)
    if quick is not None:
        options = request.options(quick.uncertainty, quick.class_names)
        predictions = quick.classify([Path(text) for text in request.inputs], **options)
        yield from _with_width(predictions, quick.class_names)
        return
    if all(text != "-" and is_missing(Path(text)) for text in request.inputs):
        from clipadapter.prediction import unreadable  # imports numpy but not torch

        yield from ((unreadable(text, "no such file"), 0) for text in request.inputs)
        return
    try:
        classifier = request.encoder.load(request.model)
    except ModuleNotFoundError as error:
        missing = needs_training(error, "the folder of a saved model")
        if missing is None:
            raise
        advice = f"export it where it was fitted: clipadapter export {quote_path(request.model)}"
        raise MissingExtraError(f"{missing}; or {advice}") from error
    options = request.options(classifier.uncertainty_, classifier.class_names_)
    pictures = _pictures(request.inputs)
    # The number of pictures decides whether a faster backend is looked for; that of standard input is not known.
    listed = None if "-" in request.inputs else [path for path in pictures if path is not None]
    images = listed if listed else pictures
    answers = classifier.iter_predictions(images, views=request.views, **options)
    with _bar(answers, len(listed) if listed else None, request.out) as bar:
        yield from _with_width(bar, classifier.class_names_)
    if request.encoder.is_default:
        classifier.make_quick(request.model)


def _check_views(request: PredictRequest) -> None:
    """Refuse more views than memory allows for one picture, before the model is loaded."""
    from clipadapter.features import FEWER_PREDICTION_VIEWS, ViewCost
    from clipadapter.persistence import read_config

    ViewCost(1, request.views, read_config(request.model).encoder.dim).check(FEWER_PREDICTION_VIEWS)


def _predict_exported(request: PredictRequest) -> Iterator[tuple[Prediction, int]]:
    """Yield the predictions of an exported file."""
    from clipadapter.runtime import DEFAULT_BATCH_SIZE

    if request.views > 1:
        raise InputError(
            f"{request.model.name} is an exported file, which looks at the plain picture only: leave --views out, or "
            "give the folder of the saved model"
        )
    predictor = request.encoder.open_exported(request.model)
    options = request.options(predictor.uncertainty, predictor.class_names)
    batch_size = min(request.encoder.batch_size, DEFAULT_BATCH_SIZE)
    predictions = predictor.iter_predictions(_pictures(request.inputs), batch_size=batch_size, **options)
    with _bar(predictions, None, request.out) as bar:
        yield from _with_width(bar, predictor.class_names)


def _bar(predictions: Iterable[Prediction], total: int | None, out: Output) -> tqdm[Prediction]:
    """The predictions with a progress bar, which is not shown between predictions on a terminal."""
    is_hidden = not out.progress or sys.stdout.isatty()
    return tqdm(predictions, total=total, desc="pictures", unit="img", disable=is_hidden)


def _with_width(predictions: Iterable[Prediction], class_names: Sequence[str]) -> Iterator[tuple[Prediction, int]]:
    width = max(map(len, class_names))
    return ((prediction, width) for prediction in predictions)


def _open_quick(request: PredictRequest) -> QuickModel | None:
    """Open the model without torch, if the inputs are a few picture files and all options have their defaults."""
    from clipadapter.runtime.quick import open_quick

    if not request.encoder.is_default or request.views > 1 or len(request.inputs) > MAX_QUICK_PICTURES:
        return None
    if any(Path(text).suffix.lower() not in IMAGE_SUFFIXES for text in request.inputs):
        return None
    return open_quick(request.model)


def _format_prediction(prediction: Prediction, width: int) -> str:
    """Format one line per class. The first line has the set of classes, or why the picture is none of them."""
    lines = [f"{name.ljust(width)}  {score:.3f}  {prediction.source}" for name, score in prediction.top]
    if prediction.labels is not None:
        lines[0] += f"  {{{', '.join(prediction.labels)}}}"
    if prediction.reason is not None:
        reason = f"nearest {prediction.nearest}, but {prediction.reason}"
        lines[0] = f"{'-'.ljust(width)}  {prediction.probability:.3f}  {prediction.source}  {reason}"
    return "\n".join(lines)
