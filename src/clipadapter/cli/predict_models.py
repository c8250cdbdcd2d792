"""The request of `clipadapter predict`, and the models that answer it.

They are a saved model, its exported file in the cache, an exported file, and a saved model without its encoder, which
answers tables of features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clipadapter.backends.formats import is_exported
from clipadapter.cli.encoder_options import ModelEncoderOptions
from clipadapter.cli.output import Output
from clipadapter.cli.uncertainty_options import DecisionArguments
from clipadapter.errors import ArtifactError, InputError, MissingExtraError, needs_training
from clipadapter.runtime.model_folder import why_no_model
from clipadapter.utils.files import IMAGE_SUFFIXES, quote_path

if TYPE_CHECKING:
    from clipadapter.cli.prediction_files import AnsweredRows
    from clipadapter.features import FeatureTable
    from clipadapter.runtime import Predictor
    from clipadapter.uncertainty import Uncertainty
    from clipadapter.utils.prediction import Prediction

MAX_QUICK_PICTURES = 32
"""Up to this number, predicting without torch is faster than importing torch."""
T = TypeVar("T")


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

    @property
    def has_exported_file(self) -> bool:
        """Whether the model is an exported file, not the folder of a saved model."""
        return is_exported(self.model) and not self.model.is_dir()

    def options(self, uncertainty: Uncertainty, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the keyword arguments of ``classify``, checked. All calls with them share one cache of ``adapt``."""
        cache = uncertainty.open_cache(self.adapt, len(class_names))
        return {"top": self.top, "adapt": cache, **self.decisions.check(uncertainty, class_names, self.out)}


def check_model(request: PredictRequest) -> None:
    """Refuse, before torch is imported, what is no model, or can't do what is asked.

    Raises:
        ArtifactError: if it is no model.
        InputError: if an option does not fit the model or the inputs.
    """
    if not request.has_exported_file and (why := why_no_model(request.model)):
        raise ArtifactError(f"{why}, or a file that 'clipadapter export' wrote")
    if request.tables and request.has_exported_file:
        raise InputError(
            f"{request.model.name} is an exported file, which takes pictures only: give the folder of the saved model"
        )
    if request.tables and (request.views > 1 or not request.encoder.is_default):
        raise InputError(
            f"{request.tables[0]} has features of plain pictures, which need no encoder: leave out --views, --encoder, "
            "--device, --backend and --precision"
        )
    if request.views > 1 and request.has_exported_file:
        raise InputError(
            f"{request.model.name} is an exported file, which looks at the plain picture only: leave --views out, or "
            "give the folder of the saved model"
        )
    if request.views > 1:
        _check_views(request)


def _check_views(request: PredictRequest) -> None:
    """Refuse more views than memory allows for one picture, before the model is loaded."""
    from clipadapter.features import FEWER_PREDICTION_VIEWS, ViewCost
    from clipadapter.persistence import read_config

    ViewCost(1, request.views, read_config(request.model).encoder.dim).check(FEWER_PREDICTION_VIEWS)


def open_cached_model(request: PredictRequest) -> Predictor | None:
    """Open the model without torch, if the inputs are a few picture files and all options have their defaults."""
    from clipadapter.runtime.cached import open_cached

    if not request.encoder.is_default or request.views > 1 or len(request.inputs) > MAX_QUICK_PICTURES:
        return None
    if any(Path(text).suffix.lower() not in IMAGE_SUFFIXES for text in request.inputs):
        return None
    return open_cached(request.model)


@dataclass(frozen=True)
class OpenModel:
    """A model that is ready to predict.

    Args:
        class_names: in the order of the logits.
        predict: predictions of pictures, in order; None among the pictures says that the next one is not there yet.
        finish: called after the last prediction.
    """

    class_names: Sequence[str]
    predict: Callable[[list[Path] | Iterator[Path | None]], Iterator[Prediction]]
    finish: Callable[[], object] = lambda: None


def open_model(request: PredictRequest) -> OpenModel:
    """Open a saved model or an exported file."""
    if request.has_exported_file:
        return _open_exported(request)
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
        from clipadapter.export.cached import export_to_cache

        if request.encoder.is_default:
            export_to_cache(classifier, request.model, load_tower=True)

    return OpenModel(
        classifier.class_names_,
        lambda pictures: classifier.iter_predictions(pictures, views=request.views, **options),
        finish,
    )


def _open_exported(request: PredictRequest) -> OpenModel:
    from clipadapter.runtime import DEFAULT_BATCH_SIZE

    predictor = request.encoder.open_exported(request.model)
    options = request.options(predictor.uncertainty, predictor.class_names)
    batch_size = min(request.encoder.batch_size, DEFAULT_BATCH_SIZE)
    return OpenModel(
        predictor.class_names,
        lambda pictures: predictor.iter_predictions(iter(pictures), batch_size=batch_size, **options),
    )


@dataclass(frozen=True)
class TableModel:
    """A model and the tables of features that it answers.

    Args:
        class_names: in the order of the logits.
        files: in order, each with its table and the names of the blocks that the model needs. A file that is named
            twice is there twice.
        answer: the predictions for features (m, d).
    """

    class_names: Sequence[str]
    files: Sequence[tuple[FeatureTable, Sequence[str], Path]]
    answer: Callable[[Any], Any]

    def answer_file(self, position: int, first: int = 0) -> Iterator[AnsweredRows]:
        """Yield the predictions for some rows of one of the files at a time; a thread reads ahead.

        Args:
            position: of the file in `files`.
            first: row to begin with.
        """
        from clipadapter.cli.prediction_files import AnsweredRows

        table, blocks, path = self.files[position]
        for batch in _read_ahead(table.batches(str(path), blocks, first)):
            yield AnsweredRows(batch.paths, batch.errors, self.answer(batch.features))


def _read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items; a thread gets the next one while the caller has one."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item


def open_table_model(request: PredictRequest) -> TableModel:
    """Open a saved model without its encoder, and the tables of features."""
    from clipadapter.classifier.answers import answer_features, predict_columns
    from clipadapter.classifier.encoder import find_blocks
    from clipadapter.features import open_feature_table
    from clipadapter.persistence import load_model

    model = load_model(request.model)
    opened = [open_feature_table(path) for path in request.tables]
    files = [
        (table, blocks, Path(file))
        for table in opened
        for blocks in [find_blocks(model, table)]
        for file in table.files
    ]
    # A head that predicts through the text tower gets it from the encoder.
    head = request.encoder.load(request.model).head_ if model.head.needs_tower else model.head
    names = model.text.labels
    options = request.options(model.uncertainty, names)
    top, adapt = options.pop("top"), options.pop("adapt")
    width = model.encoder.text_dim

    def answer(features: Any) -> Any:
        return answer_features(head, model.fold_heads, model.uncertainty, features, width, options, adapt)

    return TableModel(
        names, files, lambda features: predict_columns(answer, features, names, top, ordered=adapt is not None)
    )
