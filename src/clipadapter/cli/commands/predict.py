"""``clipadapter predict``."""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from clipadapter.cli.encoder_options import ModelEncoderOptions
from clipadapter.cli.groups import cli_command
from clipadapter.cli.inputs import check_output_folder, is_feature_table, is_missing
from clipadapter.cli.options import COUNT, COUNT_OR_ALL, FILE, FOLDER, argument, option, options_of, strict_option
from clipadapter.cli.output import START_AGAIN, Output, note_kept, plain_facts
from clipadapter.cli.predict_models import Block, PictureAnswers, PredictRequest, TableAnswers, check_model
from clipadapter.cli.uncertainty_options import DecisionArguments
from clipadapter.errors import DataError, ImageError, InputError
from clipadapter.utils.files import explain_missing, printable
from clipadapter.utils.formatting import describe_unreadable, format_count, table

if TYPE_CHECKING:
    from clipadapter.utils.prediction import Prediction

MAX_NAMED_INPUTS = 3
PICTURES_PER_PART, ROWS_PER_PART = 1024, 1 << 16
"""Pictures, or rows of a table of features, of each part of --out."""
MAX_PART_SECONDS = 60.0
"""A part is written after this time, if its pictures are slow."""


@cli_command(
    "clipadapter predict model/ photo.jpg more/ --top 3 --json",
    first="--top --out --sort-into --reject --coverage --json",
)
def command(
    out: Output,
    model: Path = argument(type=FOLDER),
    inputs: tuple[str, ...] = argument(
        metavar="INPUT...", type=click.Path(allow_dash=True, path_type=str), nargs=-1, required=True
    ),
    top: int = option(
        "--top",
        type=COUNT_OR_ALL,
        metavar="K|all",
        default=1,
        help="Number of classes to print for each picture, or all.",
    ),
    adapt: str | None = option(
        "--adapt",
        type=click.Choice(["tda"]),
        help="Let earlier pictures change the answers to later ones, for many pictures of one kind. Their order "
        "matters.",
    ),
    views: int = option(
        "--views",
        type=COUNT,
        metavar="N",
        default=1,
        help="Look at N crops of each picture; the most confident ones vote. N times as slow; not for exported files.",
    ),
    file: Path | None = option(
        "--out",
        type=FILE,
        help="File for the predictions, in place of the output: .parquet, .jsonl or .csv. A run that was stopped "
        "continues if it is started again.",
    ),
    sorted_folder: Path | None = option(
        "--sort-into",
        type=FOLDER,
        help='Copy each picture into the folder of its class in this folder, or into "none of these". Of several '
        "labels the most probable counts. Nothing is moved or overwritten.",
    ),
    strict: bool = strict_option,
    decisions: DecisionArguments = options_of(DecisionArguments),
    encoder: ModelEncoderOptions = options_of(ModelEncoderOptions),
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
    if sorted_folder is not None and (request.tables or file is not None):
        given = "--out" if file is not None else request.tables[0]
        raise InputError(f"--sort-into copies each picture when it is predicted, which {given} does not allow")
    sorter = None if sorted_folder is None else PictureSorter(sorted_folder, _list_folders(inputs))
    if file is not None:
        _predict_to_file(request, file)
    else:
        _predict_to_output(request, sorter)


def _list_folders(inputs: Sequence[str]) -> list[Path]:
    return [Path(text) for text in inputs if os.path.isdir(text)]  # noqa: PTH112 - False for a name that is too long


def _predict_to_output(request: PredictRequest, sorter: PictureSorter | None) -> None:
    """Print the predictions, and copy the pictures if there is a sorter."""
    out, width, n_pictures = request.out, 0, 0
    if request.tables:
        note_kept(START_AGAIN)
    answers: Counter[tuple[str | None, bool]] = Counter()
    check_model(request)
    source = TableAnswers(request) if request.tables else PictureAnswers(request, Path, quick=True)
    with _bar(source, request) as bar:
        for prediction in chain.from_iterable(map(_predictions, chain.from_iterable(source.groups()))):
            n_pictures += 1
            width = width or max(map(len, source.class_names), default=0)
            path = source.taken.popleft() if source.taken else None  # rows of a table have no file
            _report(prediction, request)
            if prediction.error is None or out.as_json:
                out.row(prediction.record(), _format_prediction(prediction, width))
            if prediction.error is None:
                answers[prediction.label, prediction.label is not None and prediction.unlike_every_class] += 1
                if sorter is not None and path is not None:
                    sorter.add(path, prediction.label, source.class_names)
            bar.update()
    if not answers:
        raise DataError(describe_unreadable(n_pictures) if n_pictures else _describe_empty(request.inputs))
    if answers.total() < n_pictures:
        out.warn(f"{n_pictures - answers.total()} of {n_pictures} pictures can't be read")
    if not out.as_json and (sorter is not None or (is_terminal() and _list_folders(request.inputs))):
        out.note(f"\n{count_answers(answers)}")
    if sorter is not None:
        out.note(sorter.describe())


def _predictions(rows: Block) -> Iterator[Prediction]:
    return iter(rows) if isinstance(rows, list) else rows.predictions()


def _report(prediction: Prediction, request: PredictRequest) -> None:
    """Warn of a picture that can't be read, or end a strict command."""
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


def _tables(inputs: Sequence[str]) -> tuple[Path, ...]:
    """The inputs, if they are tables of features."""
    paths = [Path(text) for text in inputs]
    tables = tuple(path for path in paths if is_feature_table(path))
    if tables and len(tables) < len(paths):
        other = next(path for path in paths if path not in tables)
        raise InputError(f"{tables[0]} has features and {other} has not: predict them one after the other")
    return tables


def _predict_to_file(request: PredictRequest, path: Path) -> None:
    """Write the predictions to a file, in parts, so that a run that was stopped continues."""
    from clipadapter.cli.prediction_files import PredictionFile, check_prediction_file, file_facts

    check_prediction_file(path)
    check_model(request)
    with PredictionFile(path, _describe_run(request), keep_unreadable=not request.strict) as file:
        if request.adapt is not None:
            file.drop_rest()  # the answers depend on those before, which the parts do not have
        source = TableAnswers(request) if request.tables else PictureAnswers(request, file_facts)
        source.skip_answered(file)
        n_earlier = file.n_rows
        with _bar(source, request, n_earlier, prints_rows=False) as bar:
            for blocks in source.groups():
                for part in _gather(blocks, request, bar):
                    file.write(part, source.stamp(sum(map(len, part))))
        n_rows, n_unreadable = file.n_rows, file.n_unreadable
        if n_unreadable == n_rows:
            file.remove_parts()
            raise DataError(describe_unreadable(n_rows) if n_rows else _describe_empty(request.inputs))
        file.finish()
    result = {"file": str(path), "pictures": n_rows, "unreadable": n_unreadable, "from_earlier_run": n_earlier}
    request.out.facts(plain_facts(result))


def _gather(blocks: Iterator[Block], request: PredictRequest, bar: tqdm[Any]) -> Iterator[list[Block]]:
    """Blocks that together are a part of the file. Of pictures that can't be read is warned; strict commands end."""
    started, waiting, n = time.monotonic(), list[Block](), 0
    for rows in blocks:
        if isinstance(rows, list):
            _report(rows[0], request)
        elif request.strict and rows.n_unreadable:
            row = next(i for i, error in enumerate(rows.errors) if error is not None)
            raise ImageError(rows.sources[row], str(rows.errors[row]))
        waiting.append(rows)
        n += len(rows)
        bar.update(len(rows))
        is_full = n >= (ROWS_PER_PART if request.tables else PICTURES_PER_PART)
        if is_full or time.monotonic() - started > MAX_PART_SECONDS:
            yield _join(waiting)
            started, waiting, n = time.monotonic(), [], 0
    if waiting:
        yield _join(waiting)


def _join(blocks: list[Block]) -> list[Block]:
    """Pictures as one block; tables are blocks of many rows already."""
    return [list(chain.from_iterable(map(_predictions, blocks)))] if isinstance(blocks[0], list) else blocks


def _describe_run(request: PredictRequest) -> dict[str, Any]:
    """What must be equal so that a run continues an earlier one. Each part says which pictures it answers."""
    from clipadapter.backends.formats import companion_files
    from clipadapter.runtime.model_folder import CONFIG_FILE, model_path

    path = request.model
    files = [model_path(path, CONFIG_FILE)] if path.is_dir() else [path, *companion_files(path)]
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


def is_terminal() -> bool:
    """Whether the output is read by a person."""
    return sys.stdout.isatty()


def _bar(
    source: PictureAnswers | TableAnswers, request: PredictRequest, initial: int = 0, prints_rows: bool = True
) -> tqdm[Any]:
    """A progress bar, which is not shown between predictions on a terminal."""
    is_hidden = not request.out.progress or (prints_rows and is_terminal())
    return tqdm(total=source.total, initial=initial, desc=source.what, unit="img", disable=is_hidden)


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


NONE_OF_THESE = "none of these"
"""Name, and folder, of pictures without a class."""


def count_answers(answers: Counter[tuple[str | None, bool]]) -> str:
    """Format the number of pictures per answer as a table, the most frequent answer first.

    An answer is a label, or None, and whether it is marked as unlike every class. A further column counts the marked
    ones, if there are any.
    """
    totals: Counter[str | None] = Counter()
    for (label, _), n in answers.items():
        totals[label] += n
    rows = [(NONE_OF_THESE if label is None else label, n, answers[label, True]) for label, n in totals.most_common()]
    columns = ["class", "pictures", "unlike every class"][: 3 if any(row[2] for row in rows) else 2]
    return table(columns, [row[: len(columns)] for row in rows])


class PictureSorter:
    """Copies pictures into the folder of their class. Nothing is moved or overwritten, and no link is followed there.

    The root is made with the first picture. It must not be in a folder of the inputs: its copies would be read the next
    time.
    """

    def __init__(self, root: Path, inputs: Sequence[Path]) -> None:
        real = check_output_folder(root).resolve()
        if source := next((folder for folder in inputs if real.is_relative_to(folder.resolve())), None):
            raise InputError(f"--sort-into {root} is in {source}, whose pictures are read: give a folder elsewhere")
        self.root = root
        self.n_copied = self.n_present = 0
        self._folders: dict[str | None, str] = {}

    def add(self, picture: Path, label: str | None, class_names: Sequence[str]) -> None:
        """Copy a picture; a name that another picture has gets a number. A picture that is there is left."""
        if not self._folders:
            from clipadapter.studio.project import safe_folder_name

            for name in (*class_names, None):
                self._folders[name] = safe_folder_name(NONE_OF_THESE if name is None else name, self._folders.values())
        folder = self.root / self._folders[label]
        if folder.is_symlink():
            raise InputError(f"{folder} is a link: give a folder without links, or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            target = folder / (picture.name if number == 1 else f"{picture.stem}-{number}{picture.suffix}")
            try:
                with picture.open("rb") as source, target.open("xb") as copy:
                    try:
                        shutil.copyfileobj(source, copy)
                    except BaseException:  # Ctrl-C too: no part of a picture is left
                        target.unlink()
                        raise
            except FileExistsError:
                if target.is_file() and not target.is_symlink() and filecmp.cmp(picture, target, shallow=False):
                    self.n_present += 1
                    return
                continue
            shutil.copystat(picture, target)
            self.n_copied += 1
            return

    def describe(self) -> str:
        """Describe what was copied."""
        present = f"; {format_count(self.n_present, 'picture')} were there already" if self.n_present else ""
        return f"copied {format_count(self.n_copied, 'picture')} into {self.root}{present}"
