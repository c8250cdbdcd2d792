"""``clipadapter predict``: a saved or exported model answers pictures or features, on the output or into a file."""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate, chain, count, repeat, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from tqdm import tqdm

from clipadapter import features, persistence, runtime
from clipadapter.cli import options
from clipadapter.cli.declarations import argument, cli_command, option, options_of
from clipadapter.cli.inputs import is_feature_table, is_missing, is_model_file, read_lines
from clipadapter.cli.options import ALL, CountOrAll
from clipadapter.cli.output import START_AGAIN, Output, note_kept, plain_facts
from clipadapter.cli.outputs import check_output_folder
from clipadapter.data import list_images
from clipadapter.data.folders import safe_folder_name
from clipadapter.data.load import read_listing
from clipadapter.data.manifests import is_manifest
from clipadapter.errors import DataError, ImageError, InputError, MissingExtraError, needs_training
from clipadapter.runtime.engines.formats import companion_files
from clipadapter.runtime.model_folder import CONFIG_FILE, model_path
from clipadapter.utils.files import IMAGE_SUFFIXES, explain_missing, printable, quote_path
from clipadapter.utils.formatting import describe_unreadable, format_count, format_list, table

if TYPE_CHECKING:
    from clipadapter.cli.prediction_files import Rows
    from clipadapter.uncertainty import Uncertainty
    from clipadapter.utils.prediction import Prediction

MAX_QUICK_PICTURES = 32  # up to this number, predicting without torch is faster than importing torch
PICTURES_PER_PART, ROWS_PER_PART = 1024, 1 << 16  # pictures, or rows of a table of features, of each part of --out
MAX_PART_SECONDS = 60.0  # a part is written after this time, if its pictures are slow
MAX_VIEWS = 1024  # of a picture; they take a minute on two cores. Papers use 64.
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """The arguments and options of the command."""

    model: Path = argument()
    inputs: tuple[str, ...] = argument(metavar="INPUT...", type=click.Path(allow_dash=True, path_type=str))
    top: CountOrAll | None = option(
        "--top K|all", "Number of classes to print for each picture, or all. Default: 1, with --json all."
    )
    adapt: Literal["tda"] | None = option(
        "--adapt",
        "Let earlier pictures change the answers to later ones, for many pictures of one kind. Their order matters.",
    )
    views: int = option(
        "--views N",
        "Look at N crops of each picture; the most confident ones vote. N times as slow; not for exported files.",
        type=click.IntRange(1, MAX_VIEWS),
        default=1,
    )
    file: Path | None = option(
        "--out",
        "File for the predictions, in place of the output: .parquet, .jsonl or .csv. A run that was stopped "
        "continues if it is started again.",
    )
    sorted_folder: Path | None = option(
        "--sort-into",
        'Copy each picture into the folder of its class in this folder, or into "none of these". Of several '
        "labels the most probable counts. Nothing is moved or overwritten.",
    )
    strict: bool = options.strict_option
    decisions: options.DecisionArguments = options_of(options.DecisionArguments)
    encoder: options.ModelEncoderOptions = options_of(options.ModelEncoderOptions)
    out: Output = field(default_factory=Output)

    @cached_property
    def tables(self) -> list[Path]:
        """The inputs, if they are tables of features."""
        paths = [Path(text) for text in self.inputs]
        tables = [path for path in paths if is_feature_table(path)]
        if tables and len(tables) < len(paths):
            other = next(path for path in paths if path not in tables)
            raise InputError(f"{tables[0]} has features and {other} has not: predict them one after the other")
        return tables

    def keywords(self, uncertainty: Uncertainty, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the keyword arguments of ``classify``, checked. All calls with them share one cache of ``adapt``."""
        options.warn_about_rates(uncertainty, self.decisions.reject, self.decisions.coverage, self.out)
        cache = uncertainty.open_cache(self.adapt, len(class_names))
        return {"top": self.top, "adapt": cache, **self.decisions.decisions(class_names)}

    def check_model(self) -> None:
        """Refuse, before torch is imported, what is no model, or can't do what is asked."""
        is_file, name = is_model_file(self.model), self.model.name
        if self.tables and is_file:
            raise InputError(f"{name} is an exported file, which takes pictures only: give the folder of its model")
        if self.tables and (self.views > 1 or not self.encoder.is_default):
            raise InputError(
                f"{self.tables[0]} has features of plain pictures, which need no encoder: leave out --views, "
                "--encoder, --device, --backend and --precision"
            )
        if self.views > 1 and is_file:
            raise InputError(
                f"{name} is an exported file, which looks at the plain picture only: leave --views out, or give the "
                "folder of the saved model"
            )

    def describe(self) -> dict[str, Any]:
        """What must be equal so that a run continues an earlier one. Each part says which pictures it answers."""
        path, cost, values = self.model, self.decisions.cost, vars(self) | vars(self.decisions) | vars(self.encoder)
        files = [model_path(path, CONFIG_FILE)] if path.is_dir() else [path, *companion_files(path)]
        names = ("top", "adapt", "views", "reject", "coverage", "minimise", "backend", "precision", "max_pixels")
        return {
            "model": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest(),
            "inputs": [text if text == "-" else str(Path(text).absolute()) for text in self.inputs],
            "cost": None if cost is None else hashlib.sha256(cost.read_bytes()).hexdigest(),
            **{name: values[name] for name in names},
        }

    def bar(self, total: int | None, initial: int = 0, prints_rows: bool = True) -> tqdm[Any]:
        """A progress bar, which is not shown between predictions on a terminal."""
        is_hidden = not self.out.progress or (prints_rows and is_terminal())
        what = "rows" if self.tables else "pictures"
        return tqdm(total=total, initial=initial, desc=what, unit="img", disable=is_hidden)

    def report(self, source: str, reason: str) -> None:
        """Warn of a picture that can't be read, or end a strict command."""
        path = Path(source)
        if is_missing(path) and any(path == Path(text) for text in self.inputs):
            reason += explain_missing(path)  # not for each of a list, since it reads the folder
        if self.strict:
            raise ImageError(source, reason)
        self.out.warn(f"{source}: {reason}")

    def explain_no_answer(self, n_pictures: int) -> DataError:
        """The error if no picture has a prediction."""
        names = ["standard input" if text == "-" else text for text in self.inputs]
        empty = f"there are no pictures in {format_list(names)}"
        return DataError(describe_unreadable(n_pictures) if n_pictures else empty)


@cli_command(
    "clipadapter predict model/ photo.jpg more/ --top 3 --json",
    first="--top --out --sort-into --reject --coverage --json",
)
def command(out: Output, request: PredictRequest = options_of(PredictRequest)) -> None:
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
    file, tables, sorted_folder = request.file, request.tables, request.sorted_folder
    request = replace(request, out=out, top=request.top or (ALL if out.as_json and file is None else 1))
    if sorted_folder is not None and (tables or file is not None):
        given = "--out" if file is not None else tables[0]
        raise InputError(f"--sort-into copies each picture when it is predicted, which {given} does not allow")
    sorter = None if sorted_folder is None else PictureSorter(sorted_folder, _list_folders(request.inputs))
    if request.adapt is not None or (tables and file is None):  # answers depend on all before, or are not stored
        note_kept(START_AGAIN)
    elif file is not None:
        note_kept(f"the finished parts of {file} are kept, and the same command continues from there")
    if file is not None:
        _predict_to_file(request, file)
    else:
        _predict_to_output(request, sorter)


def _list_folders(inputs: Sequence[str]) -> list[Path]:
    return [Path(text) for text in inputs if os.path.isdir(text)]  # noqa: PTH112 - False for a name that is too long


# ---- Where predictions go: the output, or a file ----


def _predict_to_output(request: PredictRequest, sorter: PictureSorter | None) -> None:
    """Print the predictions, and copy the pictures if there is a sorter."""
    out, n_pictures = request.out, 0
    answers, marked = Counter[str | None](), Counter[str | None]()
    request.check_model()
    rows = TableRows(request) if request.tables else PictureRows(request)
    class_names, blocks = rows.answer()
    width = max(map(len, class_names), default=0)
    with request.bar(rows.total) as bar:
        for prediction, path in zip(chain.from_iterable(blocks), rows.paths, strict=False):
            n_pictures += 1
            if prediction.error is not None:
                request.report(prediction.source, prediction.error)
            if prediction.error is None or out.as_json:
                out.row(prediction.record(), _format_prediction(prediction, width))
            if prediction.error is None:
                answers[prediction.label] += 1
                marked[prediction.label] += prediction.label is not None and prediction.unlike_every_class
                if sorter is not None and path is not None:
                    sorter.add(path, prediction.label, class_names)
            bar.update()
    if not answers:
        raise request.explain_no_answer(n_pictures)
    if answers.total() < n_pictures:
        out.warn(f"{n_pictures - answers.total()} of {n_pictures} pictures can't be read")
    if not out.as_json and (sorter is not None or (is_terminal() and _list_folders(request.inputs))):
        counts = [(label or NONE_OF_THESE, n, marked[label]) for label, n in answers.most_common()]
        columns = ["class", "pictures", "unlike every class"][: 3 if marked.total() else 2]
        out.note(f"\n{table(columns, [row[: len(columns)] for row in counts])}")
    if sorter is not None:
        out.note(sorter.describe())


def _predict_to_file(request: PredictRequest, path: Path) -> None:
    """Write the predictions to a file, in parts, so that a run that was stopped continues."""
    from clipadapter.cli.prediction_files import PredictionFile, check_prediction_file

    check_prediction_file(path, *map(Path, request.inputs))
    request.check_model()
    with PredictionFile(path, request.describe(), keep_unreadable=not request.strict) as file:
        rows = TableRows(request) if request.tables else PictureRows(request, to_file=True)
        # With --adapt the answers depend on those before, which the parts do not have.
        n_earlier = file.keep_parts(0 if request.adapt is not None else rows.total or 0, rows.stamp)
        _, blocks = rows.answer(n_earlier)
        with request.bar(rows.total, n_earlier, prints_rows=False) as bar:
            for part in _gather(blocks, request, bar):
                file.write(part, rows.stamp(file.n_rows, sum(map(len, part))))
        if file.n_unreadable == file.n_rows:
            file.remove_parts()
            raise request.explain_no_answer(file.n_rows)
        file.finish()
    counts = {"pictures": file.n_rows, "unreadable": file.n_unreadable, "from_earlier_run": n_earlier}
    request.out.facts(plain_facts({"file": str(path), **counts}))


def _gather(blocks: Iterable[Rows], request: PredictRequest, bar: tqdm[Any]) -> Iterator[list[Rows]]:
    """Blocks that together are a part of the file. Of pictures that can't be read is warned; strict commands end."""
    from clipadapter.cli.prediction_files import list_unreadable

    part: list[Rows] = []
    started, n = time.monotonic(), 0
    for rows in blocks:
        for source, reason in list_unreadable(rows):
            if request.strict or not request.tables:  # a table may have thousands of them
                request.report(source, reason)
        part.append(rows)
        n += len(rows)
        bar.update(len(rows))
        is_full = n >= (ROWS_PER_PART if request.tables else PICTURES_PER_PART)
        if is_full or time.monotonic() - started > MAX_PART_SECONDS:
            yield part
            started, part, n = time.monotonic(), [], 0
    if part:
        yield part


def is_terminal() -> bool:
    """Whether the output is read by a person."""
    return sys.stdout.isatty()


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


# ---- What is answered: pictures, by a saved model or an exported file; and rows of tables of features ----


def _list_pictures(inputs: Sequence[str]) -> Iterator[Path | None]:
    """The pictures of all inputs; None where the next line of standard input is not there yet."""
    for text in inputs:
        if text == "-":
            yield from (None if line is None else Path(line) for line in read_lines(sys.stdin) if line != "")
        else:
            yield from _expand(Path(text))


def _expand(path: Path) -> Iterable[Path]:
    """List the pictures of one input."""
    try:
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
            return [path]
        if path.is_dir():
            return list_images(path)
        return read_listing(path).dataset.paths if is_manifest(path) else [path]
    except OSError:  # a name too long, or no permission: reported when the picture is read
        return [path]


def file_facts(path: Path) -> bytes:
    """A digest of what changes when a file is written, replaced or renamed. Take it before the file is read."""
    # A person can set the time of a file (mtime), but not the time of that (ctime). Windows and some file systems over
    # a network lack it: there, a new file of the same size, time and number counts as the old one.
    facts: tuple[object, ...] = (str(path),)
    with suppress(OSError, ValueError):
        status = path.stat()
        facts += (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return blake2b(repr(facts).encode(), digest_size=16).digest()


def hash_facts(files: Iterable[bytes], *facts: object) -> str:
    """A stamp: a digest of the `file_facts` of files and of other facts."""
    digest = blake2b(repr(facts).encode(), digest_size=16)
    for file in files:
        digest.update(file)
    return digest.hexdigest()


class PictureRows:
    """The predictions for all pictures of the inputs. Lines of standard input are answered as they come, if printed."""

    def __init__(self, request: PredictRequest, to_file: bool = False) -> None:
        self.request = request
        self.total: int | None = None
        self.paths: Iterable[Path]
        self._pictures: list[Path] | Iterator[Path | None]
        if "-" in request.inputs and not to_file:
            self._pictures, again = tee(_list_pictures(request.inputs))
            self.paths = filter(None, again)
        else:  # a known number decides whether to look for a faster backend
            self.paths = self._pictures = list(filter(None, _list_pictures(request.inputs)))
            self.total = len(self._pictures)
        self._facts = list(map(file_facts, self.paths)) if to_file else []

    def stamp(self, first: int, n: int) -> str:
        """The stamp of `n` pictures: of their files as they were before they were read."""
        return hash_facts(self._facts[first : first + n])

    def answer(self, first: int = 0) -> tuple[Sequence[str], Iterable[Rows]]:
        """The names of the classes, and the predictions from the first picture on that is asked for."""
        pictures = self._pictures[first:] if isinstance(self._pictures, list) else self._pictures
        class_names, predictions = _open_model(self.request, pictures) if pictures else ((), ())
        return class_names, ([one] for one in predictions)


def _open_model(
    request: PredictRequest, pictures: list[Path] | Iterator[Path | None]
) -> tuple[Sequence[str], Iterable[Prediction]]:
    """Open a saved model or an exported file: the names of its classes, and its predictions in order."""
    encoder = request.encoder
    if is_model_file(request.model):
        file = encoder.open_exported(request.model)
        own = request.keywords(file.uncertainty, file.class_names)
        batch_size = min(encoder.batch_size, runtime.DEFAULT_BATCH_SIZE)
        return file.class_names, file.iter_predictions(iter(pictures), batch_size=batch_size, **own)
    if all(text != "-" and is_missing(Path(text)) for text in request.inputs):
        from clipadapter.utils.prediction import unreadable

        return (), (unreadable(str(path), "no such file") for path in pictures)
    is_quick = encoder.is_default and request.views == 1
    if is_quick and isinstance(pictures, list) and len(pictures) <= MAX_QUICK_PICTURES:
        from clipadapter.runtime.cached import open_cached

        if all(Path(text).suffix.lower() in IMAGE_SUFFIXES for text in request.inputs) and (
            cached := open_cached(request.model)
        ):
            own = request.keywords(cached.uncertainty, cached.class_names)
            return cached.class_names, cached.classify(pictures, **own)
    try:
        model = encoder.load(request.model)
    except ModuleNotFoundError as error:
        missing = needs_training(error, "the folder of a saved model")
        if missing is None:
            raise
        advice = f"export it where it was fitted: clipadapter export {quote_path(request.model)}"
        raise MissingExtraError(f"{missing}; or {advice}") from error
    own = request.keywords(model.uncertainty_, model.class_names_)

    def predict() -> Iterator[Prediction]:
        yield from model.iter_predictions(pictures, views=request.views, **own)
        if encoder.is_default:
            from clipadapter.runtime.export.exporter import export_to_cache

            export_to_cache(model, request.model)

    return model.class_names_, predict()


class TableRows:
    """The predictions of a saved model without its encoder for the rows of tables of features."""

    def __init__(self, request: PredictRequest) -> None:
        from clipadapter.classifier.answers import predict_columns
        from clipadapter.classifier.encoder_choice import find_blocks

        model = persistence.load_model(request.model)
        # A head that predicts through the text tower gets it from the encoder.
        if model.head.needs_tower:
            model = replace(model, head=request.encoder.load(request.model).head_)
        self.paths = repeat(None)
        self._class_names: Sequence[str] = model.text.labels
        tables = [(table, find_blocks(model, table)) for table in map(features.open_feature_table, request.tables)]
        self._files = [(table, blocks, file) for table, blocks in tables for file in table.files]
        self._facts = [file_facts(Path(file)) for _, _, file in self._files]
        self._starts = list(accumulate((table.count_rows(file) for table, _, file in self._files), initial=0))
        self.total = self._starts[-1]
        own = request.keywords(model.uncertainty, self._class_names)
        top, adapt = own.pop("top"), own.pop("adapt")
        self._predict = lambda X: predict_columns(model, X, top, own, adapt)

    def stamp(self, first: int, n: int) -> str:
        """The stamp of `n` rows: of their files as they were before they were read, and of their numbers."""
        spans = zip(self._facts, self._starts, self._starts[1:], strict=False)
        return hash_facts((facts for facts, start, end in spans if start < first + n and end > first), first, n)

    def answer(self, first: int = 0) -> tuple[Sequence[str], Iterable[Rows]]:
        """The names of the classes, and the predictions for batches of rows from the first on that is asked for."""
        from clipadapter.cli.prediction_files import AnsweredRows

        def predict() -> Iterator[Rows]:
            for (shards, blocks, path), start, end in zip(self._files, self._starts, self._starts[1:], strict=False):
                row = min(max(start, first), end)
                for batch in _read_ahead(shards.batches(path, blocks, row - start)):
                    row += len(batch.paths)
                    yield AnsweredRows(batch.paths, batch.errors, self._predict(batch.features))
                if row != end:
                    given = f"had {end - start} rows and gave {row - start}"
                    raise DataError(f"{path} {given}: it was changed meanwhile; start again")

        return self._class_names, predict()


def _read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items; a thread gets the next one while the caller has one."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item


# ---- Counts and copies of pictures ----

NONE_OF_THESE = "none of these"  # name, and folder, of pictures without a class


class PictureSorter:
    """Copies pictures into the folder of their class. Nothing is overwritten, and no link is followed there."""

    def __init__(self, root: Path, inputs: Sequence[Path]) -> None:
        real = check_output_folder(root).resolve()  # in an input, its copies would be read the next time
        if source := next((folder for folder in inputs if real.is_relative_to(folder.resolve())), None):
            raise InputError(f"--sort-into {root} is in {source}, whose pictures are read: give a folder elsewhere")
        self.root = root
        self.n_copied = self.n_present = 0
        self._folders: dict[str | None, str] = {}

    def add(self, picture: Path, label: str | None, class_names: Sequence[str]) -> None:
        """Copy a picture; a name that another picture has gets a number. A picture that is there is left."""
        if not self._folders:
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
