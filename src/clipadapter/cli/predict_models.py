"""The request of `clipadapter predict`, and what answers it.

`PictureAnswers` are those of a saved model, of its exported file in the cache, or of an exported file; `TableAnswers`
those of a saved model without its encoder. Both give the same to each output of the command.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from clipadapter.cli.encoder_options import ModelEncoderOptions
from clipadapter.cli.inputs import is_missing, is_model_file, read_lines
from clipadapter.cli.output import Output
from clipadapter.cli.uncertainty_options import DecisionArguments
from clipadapter.errors import DataError, InputError, MissingExtraError, needs_training
from clipadapter.utils.files import IMAGE_SUFFIXES, quote_path

if TYPE_CHECKING:
    from clipadapter.cli.prediction_files import AnsweredRows, PredictionFile
    from clipadapter.uncertainty import Uncertainty
    from clipadapter.utils.prediction import Prediction

MAX_QUICK_PICTURES = 32
"""Up to this number, predicting without torch is faster than importing torch."""
T = TypeVar("T")
Block: TypeAlias = "list[Prediction] | AnsweredRows"
"""Predictions that are ready at once."""


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
    strict: bool = False
    tables: tuple[Path, ...] = field(default=(), kw_only=True)
    """The inputs, if they are tables of features."""

    def options(self, uncertainty: Uncertainty, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the keyword arguments of ``classify``, checked. All calls with them share one cache of ``adapt``."""
        cache = uncertainty.open_cache(self.adapt, len(class_names))
        return {"top": self.top, "adapt": cache, **self.decisions.check(uncertainty, class_names, self.out)}


def check_model(request: PredictRequest) -> None:
    """Refuse, before torch is imported, what is no model, or can't do what is asked."""
    is_file = is_model_file(request.model)
    if request.tables and is_file:
        raise InputError(
            f"{request.model.name} is an exported file, which takes pictures only: give the folder of the saved model"
        )
    if request.tables and (request.views > 1 or not request.encoder.is_default):
        raise InputError(
            f"{request.tables[0]} has features of plain pictures, which need no encoder: leave out --views, --encoder, "
            "--device, --backend and --precision"
        )
    if request.views > 1 and is_file:
        raise InputError(
            f"{request.model.name} is an exported file, which looks at the plain picture only: leave --views out, or "
            "give the folder of the saved model"
        )
    if request.views > 1:  # more than memory allows for one picture are refused
        from clipadapter.features import FEWER_PREDICTION_VIEWS, ViewCost
        from clipadapter.persistence import read_config

        ViewCost(1, request.views, read_config(request.model).encoder.dim).check(FEWER_PREDICTION_VIEWS)


@dataclass(frozen=True)
class OpenModel:
    """A model that is ready to predict pictures."""

    class_names: Sequence[str]
    predict: Callable[[list[Path] | Iterator[Path | None]], Iterable[Prediction]]
    """Predictions in order; None among the pictures says that the next one is not there yet."""
    finish: Callable[[], object] = lambda: None
    """Called after the last prediction."""


def open_model(request: PredictRequest, quick: bool) -> OpenModel:
    """Open a saved model or an exported file.

    If it may be `quick`, few picture files are answered without torch, by the cached file of the model; if none of them
    exists, no model is opened.
    """
    if is_model_file(request.model):
        from clipadapter.runtime import DEFAULT_BATCH_SIZE

        file = request.encoder.open_exported(request.model)
        own = request.options(file.uncertainty, file.class_names)
        batch_size = min(request.encoder.batch_size, DEFAULT_BATCH_SIZE)
        return OpenModel(
            file.class_names, lambda pictures: file.iter_predictions(iter(pictures), batch_size=batch_size, **own)
        )
    if quick and all(text != "-" and is_missing(Path(text)) for text in request.inputs):
        from clipadapter.utils.prediction import unreadable

        return OpenModel((), lambda pictures: (unreadable(str(path), "no such file") for path in pictures))
    if quick and (cached := _open_cached(request)):
        return cached
    try:
        classifier = request.encoder.load(request.model)
    except ModuleNotFoundError as error:
        missing = needs_training(error, "the folder of a saved model")
        if missing is None:
            raise
        advice = f"export it where it was fitted: clipadapter export {quote_path(request.model)}"
        raise MissingExtraError(f"{missing}; or {advice}") from error
    options = request.options(classifier.uncertainty_, classifier.class_names_)

    def finish() -> None:
        from clipadapter.export.exporter import export_to_cache

        if request.encoder.is_default:
            export_to_cache(classifier, request.model, load_tower=True)

    return OpenModel(
        classifier.class_names_,
        lambda pictures: classifier.iter_predictions(pictures, views=request.views, **options),
        finish,
    )


def _open_cached(request: PredictRequest) -> OpenModel | None:
    """The cached file of a model, if the inputs are a few picture files and all options have their defaults."""
    from clipadapter.runtime.cached import open_cached

    if not request.encoder.is_default or request.views > 1 or len(request.inputs) > MAX_QUICK_PICTURES:
        return None
    if any(Path(text).suffix.lower() not in IMAGE_SUFFIXES for text in request.inputs):
        return None
    if (file := open_cached(request.model)) is None:
        return None
    options = request.options(file.uncertainty, file.class_names)
    return OpenModel(file.class_names, lambda pictures: file.classify([path for path in pictures if path], **options))


class PictureAnswers:
    """The predictions for pictures; ``note`` makes what `taken` keeps of each, as it is before the picture is read."""

    what = "pictures"

    def __init__(self, request: PredictRequest, note: Callable[[Path], Any], quick: bool = False) -> None:
        self._request, self._note, self._quick = request, note, quick
        pictures = _list_pictures(request.inputs)
        # The number, known unless they come from standard input, decides whether to look for a faster backend.
        listed = None if "-" in request.inputs else [path for path in pictures if path is not None]
        self.total = None if listed is None else len(listed)
        self._pictures: Iterator[Path | None] = pictures if listed is None else iter(listed)
        self.class_names: Sequence[str] = ()
        self.taken: deque[Any] = deque()
        """Of the pictures that the model has, and whose predictions were not stamped."""

    def skip_answered(self, file: PredictionFile) -> None:
        """Leave out the pictures that the parts of an earlier run answer."""
        from clipadapter.cli.prediction_files import stamp_files

        while (length := file.next_length()) is not None:
            block = list(islice((path for path in self._pictures if path is not None), length))
            if len(block) < length or not file.keep_next(stamp_files(map(self._note, block))):
                file.drop_rest()
                self._pictures = chain(block, self._pictures)

    def groups(self) -> Iterator[Iterator[Block]]:
        """The predictions, as one group."""
        pictures: list[Path] | Iterator[Path | None] = self._noted()
        if self.total is not None:
            pictures = [path for path in pictures if path is not None]
            if not pictures:
                return
        model = open_model(self._request, self._quick)
        self.class_names = model.class_names
        yield ([prediction] for prediction in model.predict(pictures))
        model.finish()

    def _noted(self) -> Iterator[Path | None]:
        for path in self._pictures:
            if path is not None:
                self.taken.append(self._note(path))
            yield path

    def stamp(self, n: int) -> str:
        """The stamp of the next pictures that have a prediction."""
        from clipadapter.cli.prediction_files import stamp_files

        return stamp_files(self.taken.popleft() for _ in range(n))


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
        from clipadapter.data import list_images
        from clipadapter.data.load import read_listing
        from clipadapter.data.manifests import is_manifest

        if path.is_dir():
            return list_images(path)
        return read_listing(path).dataset.paths if is_manifest(path) else [path]
    except OSError:  # a name too long, or no permission: reported when the picture is read
        return [path]


class TableAnswers:
    """The predictions of a saved model without its encoder for tables of features, one group for each file."""

    what, total = "rows", None

    def __init__(self, request: PredictRequest) -> None:
        from clipadapter.classifier.answers import answer_features, predict_columns
        from clipadapter.classifier.encoder import find_blocks
        from clipadapter.cli.prediction_files import file_facts
        from clipadapter.features import open_feature_table
        from clipadapter.persistence import load_model

        model = load_model(request.model)
        # A head that predicts through the text tower gets it from the encoder.
        head = request.encoder.load(request.model).head_ if model.head.needs_tower else model.head
        self.class_names: Sequence[str] = model.text.labels
        self.taken: deque[Any] = deque()  # rows have no file
        tables = [(table, find_blocks(model, table)) for table in map(open_feature_table, request.tables)]
        self._files = [(table, blocks, file) for table, blocks in tables for file in table.files]
        self._facts = [file_facts(Path(file)) for _, _, file in self._files]
        self._n_rows = [table.count_rows(file) for table, _, file in self._files]
        self._firsts, self._current = [0] * len(self._files), 0
        options = request.options(model.uncertainty, self.class_names)
        top, adapt = options.pop("top"), options.pop("adapt")
        is_ordered, width = adapt is not None, model.encoder.text_dim

        def answer(features: Any) -> Any:
            return answer_features(head, model.fold_heads, model.uncertainty, features, width, options, adapt)

        self._answer = lambda features: predict_columns(answer, features, self.class_names, top, ordered=is_ordered)

    def skip_answered(self, file: PredictionFile) -> None:
        """Leave out the rows that the parts of an earlier run answer."""
        for i, n in enumerate(self._n_rows):
            self._current = i
            while (first := self._firsts[i]) < n and (length := file.next_length()):
                if not file.keep_next(self.stamp(length)):
                    self._firsts[i] = first

    def groups(self) -> Iterator[Iterator[Block]]:
        """The predictions for the rows of each file."""
        for i in range(len(self._files)):
            self._current = i
            yield self._answer_file()

    def _answer_file(self) -> Iterator[Block]:
        from clipadapter.cli.prediction_files import AnsweredRows

        table, blocks, path = self._files[self._current]
        given, n = self._firsts[self._current], self._n_rows[self._current]
        for batch in _read_ahead(table.batches(path, blocks, given)):
            given += len(batch.paths)
            yield AnsweredRows(batch.paths, batch.errors, self._answer(batch.features))
        if given != n:
            raise DataError(f"{path} had {n} rows and gave {given}: it was changed meanwhile; start again")

    def stamp(self, n: int) -> str:
        """The stamp of the next rows of the current file."""
        from clipadapter.cli.prediction_files import stamp_files

        first = self._firsts[self._current]
        self._firsts[self._current] += n
        return stamp_files([self._facts[self._current]], first, n)


def _read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items; a thread gets the next one while the caller has one."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item
