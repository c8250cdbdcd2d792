"""``clipadapter predict``."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from tqdm import tqdm

from clipadapter.cli.encoder_options import ModelEncoderOptions
from clipadapter.cli.groups import cli_command
from clipadapter.cli.inputs import is_feature_table, is_missing, read_lines
from clipadapter.cli.option_types import COUNT, COUNT_OR_ALL, FILE, FOLDER
from clipadapter.cli.options import option_group, output_options, strict_option
from clipadapter.cli.output import START_AGAIN, Output, facts, note_kept
from clipadapter.cli.predict_models import PredictRequest, check_model, open_cached_model, open_model, open_table_model
from clipadapter.cli.sorting import PictureSorter, count_answers
from clipadapter.cli.uncertainty_options import DecisionArguments
from clipadapter.errors import DataError, ImageError, InputError
from clipadapter.runtime.model_folder import CONFIG_FILE, model_path
from clipadapter.utils.files import explain_missing, printable
from clipadapter.utils.formatting import describe_unreadable

if TYPE_CHECKING:
    from clipadapter.cli.prediction_files import AnsweredRows, PredictionFile
    from clipadapter.utils.prediction import Prediction

T = TypeVar("T")
MAX_NAMED_INPUTS = 3
PICTURES_PER_PART, ROWS_PER_PART = 1024, 1 << 16
"""Pictures, or rows of a table of features, of each part of --out."""
MAX_PART_SECONDS = 60.0
"""A part is written after this time, if its pictures are slow."""


@cli_command(
    "clipadapter predict model/ photo.jpg more/ --top 3 --json",
    first=("--top", "--out", "--sort-into", "--reject", "--coverage", "--json"),
)
@click.argument("model", type=FOLDER)
@click.argument("inputs", metavar="INPUT...", type=click.Path(allow_dash=True, path_type=str), nargs=-1, required=True)
@click.option(
    "--top", type=COUNT_OR_ALL, metavar="K|all", default=1, help="Number of classes to print for each picture, or all."
)
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
@click.option(
    "--out",
    "file",
    type=FILE,
    help="File for the predictions, in place of the output: .parquet, .jsonl or .csv. A run that was stopped continues "
    "if it is started again.",
)
@click.option(
    "--sort-into",
    "sorted_folder",
    type=FOLDER,
    help='Copy each picture into the folder of its class in this folder, or into "none of these". Of several labels '
    "the most probable counts. Nothing is moved or overwritten.",
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
    file: Path | None,
    sorted_folder: Path | None,
    strict: bool,
    decisions: DecisionArguments,
    encoder: ModelEncoderOptions,
    out: Output,
) -> None:
    """Predict the class of each picture.

    MODEL is a folder written by fit, or a file written by export, which needs neither PyTorch nor the encoder. An INPUT
    is a picture, a folder with pictures at any depth, a table (.csv, .tsv, .jsonl, .parquet) with the column path, or -
    for paths on standard input, one per line. The output has one line per picture, in the order of the pictures: class,
    probability, picture. A picture that is unlike every class is marked, with a score and a reason; with --reject it
    has the class "-" and a null label in JSON. --json writes one object per line: source, label, probability, top
    (label and score of each), nearest, unlike_every_class, ood_score, reason, labels (the set of --coverage) and error.
    For a folder, a terminal shows the number of pictures per class too, and how many of them are marked.

    If an INPUT has features, no picture is opened: a Parquet file that embed --to wrote, or a folder of shards.
    """
    request = PredictRequest(model, inputs, top, adapt, views, decisions, encoder, out, strict, tables=_tables(inputs))
    sorter = None if sorted_folder is None else _open_sorter(request, sorted_folder, file)
    if file is not None:
        _predict_to_file(request, file)
    else:
        _predict_to_output(request, sorter)


def _open_sorter(request: PredictRequest, folder: Path, file: Path | None) -> PictureSorter:
    if request.tables or file is not None:
        given = "--out" if file is not None else request.tables[0]
        raise InputError(f"--sort-into copies each picture when it is predicted, which {given} does not allow")
    return PictureSorter(folder, _list_folders(request.inputs))


def _list_folders(inputs: Sequence[str]) -> list[Path]:
    return [Path(text) for text in inputs if os.path.isdir(text)]  # noqa: PTH112 - False for a name that is too long


def _predict_to_output(request: PredictRequest, sorter: PictureSorter | None) -> None:
    """Print the predictions, and copy the pictures if there is a sorter."""
    out, width, n_pictures = request.out, 0, 0
    if request.tables:
        note_kept(START_AGAIN)
    answers: Counter[tuple[str | None, bool]] = Counter()
    taken: deque[Path] = deque()
    for prediction, class_names in _predict(request, taken):
        n_pictures += 1
        width = width or max(map(len, class_names), default=0)
        path = taken.popleft() if taken else None  # rows of a table have no file
        _report(prediction, request)
        if prediction.error is None or out.as_json:
            out.row(prediction.record(), _format_prediction(prediction, width))
        if prediction.error is None:
            answers[prediction.label, prediction.label is not None and prediction.unlike_every_class] += 1
            if sorter is not None and path is not None:
                sorter.add(path, prediction.label, class_names)
    if not answers:
        raise DataError(describe_unreadable(n_pictures) if n_pictures else _describe_empty(request.inputs))
    if answers.total() < n_pictures:
        out.warn(f"{n_pictures - answers.total()} of {n_pictures} pictures can't be read")
    if not out.as_json and (sorter is not None or (is_terminal() and _list_folders(request.inputs))):
        out.note(f"\n{count_answers(answers)}")
    if sorter is not None:
        out.note(sorter.describe())


def _report(prediction: Prediction, request: PredictRequest) -> None:
    """Warn of a picture that can't be read.

    Raises:
        ImageError: if the command is strict.
    """
    if prediction.error is None:
        return
    path, reason = Path(prediction.source), prediction.error
    if is_missing(path) and any(path == Path(text) for text in request.inputs):
        reason += explain_missing(path)  # not for each of a list, since it reads the folder
    if request.strict:
        raise ImageError(prediction.source, reason)
    request.out.warn(f"{prediction.source}: {reason}")


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


def _tables(inputs: Sequence[str]) -> tuple[Path, ...]:
    """The inputs, if they are tables of features.

    Raises:
        InputError: if only some of them are.
    """
    paths = [Path(text) for text in inputs]
    tables = tuple(path for path in paths if is_feature_table(path))
    if tables and len(tables) < len(paths):
        other = next(path for path in paths if path not in tables)
        raise InputError(f"{tables[0]} has features and {other} has not: predict them one after the other")
    return tables


def _predict(request: PredictRequest, taken: deque[Path]) -> Iterator[tuple[Prediction, Sequence[str]]]:
    """Yield the predictions, each with the class names. `taken` gets the paths of the pictures."""
    check_model(request)
    if request.tables:
        table_model = open_table_model(request)
        with _bar(None, request, "rows") as bar:
            for rows in chain.from_iterable(map(table_model.answer_file, range(len(table_model.files)))):
                yield from ((prediction, table_model.class_names) for prediction in rows.predictions())
                bar.update(len(rows))
        return
    if not request.has_exported_file:
        cached = open_cached_model(request)
        if cached is not None:
            options = request.options(cached.uncertainty, cached.class_names)
            taken.extend(map(Path, request.inputs))
            yield from ((prediction, cached.class_names) for prediction in cached.classify(list(taken), **options))
            return
        if all(text != "-" and is_missing(Path(text)) for text in request.inputs):
            from clipadapter.utils.prediction import unreadable  # imports numpy but not torch

            taken.extend(map(Path, request.inputs))
            yield from ((unreadable(text, "no such file"), ()) for text in request.inputs)
            return
    model = open_model(request)
    pictures = _list_pictures(request.inputs)
    with _bar(_count(pictures), request) as bar:
        for prediction in model.predict(_note_taken(pictures, taken, Path)):
            yield prediction, model.class_names
            bar.update()
    model.finish()


def _predict_to_file(request: PredictRequest, path: Path) -> None:
    """Write the predictions to a file, in parts, so that a run that was stopped continues."""
    from clipadapter.cli.prediction_files import PredictionFile, check_prediction_file

    check_prediction_file(path)
    check_model(request)
    with PredictionFile(path, _describe_run(request), keep_unreadable=not request.strict) as file:
        if request.adapt is not None:
            file.drop_rest()  # the answers depend on those before, which the parts do not have
        write = _write_table_predictions if request.tables else _write_picture_predictions
        n_earlier = write(request, file)
        n_rows, n_unreadable = file.n_rows, file.n_unreadable
        if n_unreadable == n_rows:
            file.remove_parts()
            raise DataError(describe_unreadable(n_rows) if n_rows else _describe_empty(request.inputs))
        file.finish()
    result = {"file": str(path), "pictures": n_rows, "unreadable": n_unreadable, "from_earlier_run": n_earlier}
    request.out.result(result, facts([(key.replace("_", " "), value) for key, value in result.items()]))


def _describe_run(request: PredictRequest) -> dict[str, Any]:
    """What must be equal so that a run continues an earlier one. Each part says which pictures it answers."""
    path = request.model
    is_exported_pair = path.with_suffix(".bin").is_file()
    files = [model_path(path, CONFIG_FILE)] if path.is_dir() else [path, *[path.with_suffix(".bin")] * is_exported_pair]
    decisions, encoder = request.decisions, request.encoder
    return {
        "model": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest(),
        "inputs": [text if text == "-" else str(Path(text).absolute()) for text in request.inputs],
        "top": request.top,
        "adapt": request.adapt,
        "views": request.views,
        "reject": decisions.reject,
        "coverage": decisions.coverage,
        "cost": None if decisions.cost is None else hashlib.sha256(decisions.cost.read_bytes()).hexdigest(),
        "minimise": decisions.minimise,
        "backend": encoder.backend,
        "precision": encoder.precision,
        "max_pixels": encoder.max_pixels,
    }


def _write_picture_predictions(request: PredictRequest, file: PredictionFile) -> int:
    """Write the predictions of pictures. Returns how many are from an earlier run."""
    from clipadapter.cli.prediction_files import file_facts, stamp_files

    pictures = _list_pictures(request.inputs)
    total, unanswered = _count(pictures), _skip_answered(file, pictures)
    n_earlier = file.n_rows
    remaining = unanswered if total is None else list(unanswered)
    if not remaining:
        return n_earlier
    taken: deque[bytes] = deque()
    model = open_model(request)
    rows: list[Prediction] = []
    started = time.monotonic()
    with _bar(total, request, initial=n_earlier, prints_rows=False) as bar:
        for prediction in model.predict(_note_taken(remaining, taken, file_facts)):  # a later change is noticed
            _report(prediction, request)
            rows.append(prediction)
            bar.update()
            if len(rows) == PICTURES_PER_PART or time.monotonic() - started > MAX_PART_SECONDS:
                file.write([rows], stamp_files(taken.popleft() for _ in rows))
                rows, started = [], time.monotonic()
    if rows:
        file.write([rows], stamp_files(taken.popleft() for _ in rows))
    model.finish()
    return n_earlier


def _skip_answered(file: PredictionFile, pictures: Iterable[Path | None]) -> Iterator[Path | None]:
    """The pictures after those that the parts of an earlier run answer."""
    from clipadapter.cli.prediction_files import file_facts, stamp_files

    remaining = iter(pictures)
    while (length := file.next_length()) is not None:
        block = list(islice((path for path in remaining if path is not None), length))
        if len(block) < length or not file.keep_next(stamp_files(map(file_facts, block))):
            file.drop_rest()
            return chain(block, remaining)
    return remaining


def _note_taken(
    pictures: list[Path] | list[Path | None] | Iterator[Path | None], taken: deque[T], note: Callable[[Path], T]
) -> list[Path] | Iterator[Path | None]:
    """The pictures. `taken` gets what `note` returns of each, before the picture is read."""
    if isinstance(pictures, list):
        paths = [path for path in pictures if path is not None]
        taken.extend(map(note, paths))
        return paths

    def noted() -> Iterator[Path | None]:
        for path in pictures:
            if path is not None:
                taken.append(note(path))
            yield path

    return noted()


def _write_table_predictions(request: PredictRequest, file: PredictionFile) -> int:
    """Write the predictions for tables of features. Returns how many are from an earlier run."""
    from clipadapter.cli.prediction_files import file_facts, stamp_files

    model = open_table_model(request)
    first_rows: list[int] = []
    facts = [file_facts(path) for _, _, path in model.files]
    n_rows = [table.count_rows(str(path)) for table, _, path in model.files]
    for own, n in zip(facts, n_rows, strict=True):
        first = 0
        while first < n and (length := file.next_length()) and file.keep_next(stamp_files([own], first, length)):
            first += length
        first_rows.append(first)
    n_earlier = file.n_rows
    with _bar(None, request, "rows", n_earlier, prints_rows=False) as bar:
        for position, (first, n) in enumerate(zip(first_rows, n_rows, strict=True)):
            for part in _gather(_without_unreadable(model.answer_file(position, first), request), ROWS_PER_PART):
                length = sum(map(len, part))
                file.write(part, stamp_files([facts[position]], first, length))
                first += length
                bar.update(length)
            if first != n:
                path = model.files[position][2]
                raise DataError(f"{path} had {n} rows and gave {first}: it was changed meanwhile; start again")
    return n_earlier


def _without_unreadable(blocks: Iterator[AnsweredRows], request: PredictRequest) -> Iterator[AnsweredRows]:
    """The rows as they are.

    Raises:
        ImageError: if the command is strict and a row has no prediction.
    """
    for rows in blocks:
        if request.strict and rows.n_unreadable:
            row = next(i for i, error in enumerate(rows.errors) if error is not None)
            raise ImageError(rows.sources[row], str(rows.errors[row]))
        yield rows


def _gather(blocks: Iterator[AnsweredRows], n_rows: int) -> Iterator[list[AnsweredRows]]:
    """Blocks that together have at least this number of rows, but the last ones."""
    waiting: list[AnsweredRows] = []
    for rows in blocks:
        waiting.append(rows)
        if sum(map(len, waiting)) >= n_rows:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _list_pictures(inputs: Sequence[str]) -> list[Path] | Iterator[Path | None]:
    """The pictures; an iterator if some come from standard input, whose number is not known.

    The number decides whether it is worthwhile to look for a faster backend.
    """
    pictures = _pictures(inputs)
    return pictures if "-" in inputs else [path for path in pictures if path is not None]


def _count(pictures: list[Path] | Iterator[Path | None]) -> int | None:
    return len(pictures) if isinstance(pictures, list) else None


def is_terminal() -> bool:
    """Whether the output is read by a person."""
    return sys.stdout.isatty()


def _bar(
    total: int | None, request: PredictRequest, what: str = "pictures", initial: int = 0, prints_rows: bool = True
) -> tqdm[Any]:
    """A progress bar, which is not shown between predictions on a terminal."""
    is_hidden = not request.out.progress or (prints_rows and is_terminal())
    return tqdm(total=total, initial=initial, desc=what, unit="img", disable=is_hidden)


def _format_prediction(prediction: Prediction, width: int) -> str:
    """Format one line per class. The first line has the set of classes, and why the picture is unlike all of them."""
    lines = [f"{name.ljust(width)}  {score:.3f}  {prediction.source}" for name, score in prediction.top]
    if prediction.labels is not None:
        lines[0] += f"  {{{', '.join(prediction.labels)}}}"
    if prediction.label is not None and prediction.unlike_every_class:
        lines[0] += f"  unlike every class (score {prediction.ood_score:.1f}): {prediction.reason}"
    elif prediction.reason is not None:
        reason = f"nearest {prediction.nearest}, but {prediction.reason}"
        lines[0] = f"{'-'.ljust(width)}  {prediction.probability:.3f}  {prediction.source}  {reason}"
    return "\n".join(map(printable, lines))
