"""`FewShotClassifier`: an encoder, the text features of the classes and a head as one image classifier."""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from clipadapter.adaptation import Adapt
from clipadapter.classifier import answers, edit, encoder_choice, evaluation, fitting, inputs
from clipadapter.classifier.edit import ConflictRule
from clipadapter.classifier.encoder_choice import DEFAULT_QUALITY, NamedEncoders
from clipadapter.classifier.evaluation import MAX_LISTED_CLASSES, EvaluationResult
from clipadapter.classifier.inputs import Label
from clipadapter.classifier.reader import Reader, Running
from clipadapter.classifier.second_look import QUALITY_KEY, try_second_look
from clipadapter.data import class_prompts, get_templates
from clipadapter.data.images import ImageSource
from clipadapter.data.pictures import Pictures, list_pictures
from clipadapter.encoders import Encoder, open_text_tower
from clipadapter.errors import ImageError, InputError, brief
from clipadapter.features import (
    FeatureSet,
    PerEpochViews,
    ViewCost,
    ViewSpec,
)
from clipadapter.heads import Head, Selection, TextFeatures, create_head, select
from clipadapter.heads.estimator import Estimator
from clipadapter.persistence import History, Model, fetch, load_model, push, save_model
from clipadapter.tuners import TowerTuner
from clipadapter.uncertainty import UncertaintyOptions
from clipadapter.utils.formatting import check_names, format_list, html_block, html_table
from clipadapter.utils.prediction import Prediction, PredictionColumns, labels_of
from clipadapter.utils.progress import progress_bar, shows_progress

TIMED_PICTURES = 2
TIMED_VIEWS_PER_PICTURE = 16  # augmented views: with two pictures they make one batch of the default size
MIN_TIMED_VIEWS = 8
"""With fewer computed views the rest came from the store, and the time says nothing about the encoder."""


@dataclass(eq=False, repr=False)
class FewShotClassifier:
    """An image classifier that is fitted to a few labelled pictures per class.

    Pictures are given as paths, folders, PIL images or arrays::

        model = FewShotClassifier(encoder="lite").fit("shots/")  # one folder of pictures per class
        model.predict("photo.jpg")  # ['cat']
        print(model.evaluate("test/"))
        model.save("model/")

    >>> import numpy as np
    >>> red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    >>> model = FewShotClassifier(encoder="toy", cache=None).fit([red, blue], ["red", "blue"])
    >>> model.predict([blue])
    ['blue']

    Args:
        encoder: URI of an encoder, or an open encoder; or several. Class text comes from the first that has a text
            tower, whose features are the block ``final``; without any, heads that need class text can't be fitted.
            Heads that read several blocks of features use all encoders.
        head: registered name of a head, or a head.
        head_params: parameters of a head that is given by name.
        grid: values to try, by parameter of the head. Held-out shots select the best ones (see `heads.select`).
            The fits of this search get no pictures without labels; only the last one does.
        uncertainty: what is learned from held-out shots and which decisions are the default. None: calibrated
            probabilities, and marks on pictures that are unlike every class. `UncertaintyOptions(reject=0.05)` answers
            None for such pictures.
        quality: how much of a picture ``auto`` looks at. "fast": the final feature of each encoder. "standard": inner
            layers of the same pass too. "best": a second look too, larger and mirrored, at several times the cost; what
            held-out shots do not need is dropped. "auto": "best" in `fit` if held-out shots gain much, else "standard".
            Heads that read the final feature only are the same at each quality.
        templates: name of a set of prompt templates, one template, or a list of templates.
        descriptions: sentences by class that replace the templates for these classes.
        views: number of views per shot, the plain picture included; or a `ViewSpec`. "per-epoch" gives every training
            epoch its own augmented view; `PerEpochViews` does so with another crop scale. `view_cost` says the cost.
        seed: seed of the views, and of a head that is given by name.
        device: where the encoder computes: "cpu", "cuda", "cuda:1", "mps", "xpu", or "auto" for a GPU if there is one.
            Opened encoders keep theirs. Heads compute on the CPU. See the guide on GPUs.
        backend: runtime of the image tower: "auto", "torch", "openvino" or "onnxruntime".
        precision: of the image tower: "auto", "fp32", "bf16" or "int8". "auto" measures which backend and precision is
            fastest on the pictures and close enough to fp32 (see `choose_backend`). Few pictures: torch in fp32.
        cache: path of the feature store; "auto" is a file in the user's cache folder; None stores nothing.
        batch_size: number of pictures that are encoded at once.
        progress: whether to show progress bars, on stderr or as widgets of a notebook. None shows them in notebooks
            only.
        strict: raise for an unreadable picture instead of leaving it out.

    Attributes:
        head_: fitted head.
        class_names_: class names in the order of the logits.
        text_: text features of the classes.
        prompts_: prompts by class that the text features were made from.
        support_: features and labels of the shots.
        uncertainty_: calibration, thresholds and prediction sets, learned from held-out shots.
        fold_heads_: heads that were each fitted without one fold, for CV+ prediction sets.
        selection_: result of the search over ``grid``, or None.
        evaluation_: result of the last `evaluate` since the model was fitted, loaded or edited; None without one.
        skipped_: pictures that the last edit could not read, each with the reason.
        dropped_blocks_: blocks of features that the last `fit` tried, and that the answers do not depend on.
    """

    # ---- Construct ----

    encoder: NamedEncoders = "auto"
    head: str | Head = "auto"
    _: KW_ONLY
    head_params: Mapping[str, Any] | None = None
    grid: Mapping[str, Sequence[Any]] | None = None
    uncertainty: UncertaintyOptions | None = None
    quality: str = DEFAULT_QUALITY
    templates: str | Sequence[str] = "default"
    descriptions: Mapping[str, Sequence[str]] | None = None
    views: int | str | ViewSpec | PerEpochViews = 1
    seed: int = 0
    device: str = "cpu"
    backend: str = "auto"
    precision: str = "auto"
    cache: str | Path | None = "auto"
    batch_size: int = 32
    progress: bool | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        encoder_choice.check_quality(self.quality)
        self._opened: Reader | None = None
        self._history: History | None = None
        self.prompts_: Mapping[str, Sequence[str]] = {}  # text features that are given to `fit_features` have none
        self.skipped_: tuple[tuple[str, str], ...] = ()
        self.dropped_blocks_: tuple[str, ...] = ()
        self.evaluation_: EvaluationResult | None = None

    @property
    def encoder_(self) -> Encoder:
        """The open encoder. It is opened at first use; the first pictures decide its backend and precision.

        After `fit` with a head that tunes the encoder, this is the tuned encoder.
        """
        return self._reader.active

    @property
    def _reader(self) -> Reader:
        """The reader of pictures and texts, which is opened at first use, with the settings of now."""
        if self._opened is None:
            self._opened = Reader.open(self.encoder, self.device)
        return replace(self._opened, running=self._running)

    @property
    def _running(self) -> Running:
        progress = shows_progress(self.progress)
        return Running(self.backend, self.precision, self.cache, self.batch_size, progress)

    def _describe(self) -> dict[str, str]:
        encoder = self.encoder if self._opened is None else self._opened.encoder
        return evaluation.describe_classifier(encoder, self.head, getattr(self, "support_", None), self.evaluation_)

    get_params, set_params = Estimator.get_params, Estimator.set_params  # for GridSearchCV and other tools
    __sklearn_clone__, __sklearn_tags__ = Estimator.__sklearn_clone__, Estimator.__sklearn_tags__

    def __repr__(self) -> str:
        facts = [f"{name} {value}" if value else "not fitted" for name, value in self._describe().items()]
        return f"<FewShotClassifier: {', '.join(facts)}>"

    def _repr_html_(self) -> str:
        """For notebooks: the same as a table, and the number of shots of each class."""
        facts = [(name, value or "nothing yet") for name, value in self._describe().items()]
        parts = [html_table(["", ""], facts)]
        if hasattr(self, "head_"):
            counts = list(self.support_.shot_counts.items())
            more = f"and {len(counts) - MAX_LISTED_CLASSES} more" if len(counts) > MAX_LISTED_CLASSES else ""
            parts += [html_table(["class", "shots"], counts[:MAX_LISTED_CLASSES]), more]
        return html_block("FewShotClassifier", *parts)

    # ---- Fit ----

    def fit(
        self,
        images: Pictures,
        labels: Sequence[Label] | None = None,
        class_names: Sequence[str] | None = None,
        unlabelled: Pictures | None = None,
        outliers: Pictures | None = None,
    ) -> Self:
        """Fit the head to labelled pictures.

        Args:
            images: a list of paths, PIL images or arrays. Without labels: a `Dataset`, or a folder, table or name as
                `load_dataset` takes it; of one with splits, the split "train".
            labels: class name of each picture; or a list, tuple or set of all its class names, of which there may be
                none: if one picture has such labels, any may have several. None: those of the data set.
            class_names: all classes in the order of ``class_names_``; if None, those of the labels, sorted.
            unlabelled: pictures without labels, in all forms that `predict` takes; for heads that learn from them.
                ``auto`` uses them if held-out shots show a gain, and says so in ``head_.describe_unlabelled()``.
            outliers: pictures of none of the classes, as expected in use. They help to detect others.

        Raises:
            InputError: if the numbers of pictures and labels differ, or there are fewer than two classes.
            DataError: if no picture can be read.
            EncoderUnavailableError: if the weights of the encoder are not available.
        """
        images, labels, dataset = inputs.read_labelled(images, labels, default_split="train")
        unlabelled = None if unlabelled is None else list_pictures(unlabelled)
        if class_names is None:
            class_names = inputs.collect_class_names(labels) if dataset is None else dataset.class_names
        names = list(check_names(class_names))
        if len(names) < 2:
            raise InputError(f"a classifier needs two classes or more, but got {format_list(names) or 'none'}")
        prompts = class_prompts(names, self.templates, self.descriptions)  # wrong ones are refused before the work
        head = self._build_head()
        encoder_choice.check_head(head, self.encoder_, self.grid, unlabelled)
        if head.tunes_encoder or self._reader.tuned is not None:
            self.__dict__.pop("head_", None)  # a head of before belongs to another encoder, should this fit fail
        self._opened = replace(self._reader, tuned=None)
        self.prepare_encoder(head)
        if head.tunes_encoder:
            views = self._plan_views(labels, list(prompts))
            self._opened = self._reader.tuned_by(head, images, labels, prompts, views, strict=self.strict)

        def fit_to_pictures() -> None:
            views = 1 if isinstance(head, TowerTuner) and not head.learns_from_views else None
            support, pool = self.extract_features(images, labels, names, views=views), None
            if unlabelled is not None:
                extraction = self._reader.extract(unlabelled, strict=self.strict)
                inputs.check_any_readable(extraction.rows, extraction.skipped, len(unlabelled))
                skipped = [*support.provenance["skipped"], *((name, reason) for _, name, reason in extraction.skipped)]
                support = replace(support, provenance={**support.provenance, "skipped": skipped})
                pool = extraction.features[:, 0]
            outlier_features = None if outliers is None else self._reader.features(list_pictures(outliers))
            self.fit_features(support, self.encode_classes(names), head, pool, outlier_features)

        fit_to_pictures()
        if self.head_.reads == "all":
            self._choose_quality(images, fit_to_pictures)
        return self.drop_unused_blocks()

    def prepare_encoder(self, *heads: Head) -> None:
        """Make the encoder give the blocks of features that the heads read at this quality. `fit` does this itself."""
        reader = self._reader
        names = encoder_choice.blocks_to_read(reader.active, reader.others, heads, self.quality, reader.named)
        self._opened = reader.with_blocks(names)

    def fit_features(
        self,
        support: FeatureSet,
        text: TextFeatures,
        head: Head | None = None,
        unlabelled: NDArray[Any] | None = None,
        outliers: NDArray[Any] | None = None,
    ) -> Self:
        """Fit the head to features.

        Args:
            support: features of the shots from the encoder of this classifier (see `extract_features`), whose blocks it
                names.
            text: text features of the classes (see `encode_classes`). Their order becomes that of ``class_names_``.
            head: head to fit; if None, the head of the constructor.
            unlabelled: (u, d) features of pictures without labels, for heads that learn from them.
            outliers: (b, d) features of pictures of none of the classes.
        """
        options = UncertaintyOptions() if self.uncertainty is None else self.uncertainty
        if not isinstance(options, UncertaintyOptions):
            raise InputError(
                "uncertainty must be UncertaintyOptions(reject=0.05, ...) of clipadapter.uncertainty, but is "
                f"{type(options).__name__}"
            )
        head, text = self._build_head() if head is None else head, text.with_order("given")
        self.selection_: Selection | None = None
        if self.grid:
            self.selection_ = select(
                head,
                support.X,
                support.labels,
                text,
                grid=self.grid,
                seed=self.seed,
                progress=shows_progress(self.progress),
                blocks=support.blocks,
            )
            head = self.selection_.best
        outliers = None if outliers is None else outliers[:, : support.blocks[0].width]
        negatives = fitting.Negatives(outliers)
        if options.negative_labels:
            negatives = fitting.embed_negative_labels(self._reader, self.templates, text, outliers)
        fitted = fitting.ShotFit(support, text, options, negatives, self.seed).fit(head, unlabelled)
        self.head_, self.uncertainty_, self.fold_heads_ = fitted
        views = inputs.parse_views(self.views, self.seed)
        if isinstance(views, PerEpochViews):
            views = views.for_epochs(support.X.shape[1] - 1 if support.X.ndim == 3 else 0)
        settings = fitting.FitSettings(get_templates(self.templates), views, options, self.seed)
        self.support_ = replace(support, provenance={**support.provenance, fitting.FIT_KEY: settings.to_json()})
        self.text_: TextFeatures = text
        self.class_names_, self._history = tuple(text.labels), None
        self.evaluation_ = None
        return self

    def _choose_quality(self, images: Sequence[ImageSource], fit_again: Callable[[], None]) -> None:
        """Fit again with a second look if quality is "auto" and it is worth its price; the shots say why."""
        quality, why = self.quality, ""
        if quality == DEFAULT_QUALITY:
            longer, why = try_second_look(self._reader, self.head_, self.support_, self.text_, images, self.seed)
            quality = "standard" if longer is None else "best"
            if longer is not None:
                self._opened = longer
                fit_again()
        chosen = {QUALITY_KEY: {"name": quality, "why": why}}
        self.support_ = replace(self.support_, provenance={**self.support_.provenance, **chosen})

    def drop_unused_blocks(self) -> Self:
        """Keep only the blocks of features that the answers depend on, so that a prediction needs no others.

        `fit` does this itself. After `fit_features` it makes a saved model smaller and faster; it changes no answer.
        """
        self._check_fitted()
        self.dropped_blocks_ = ()
        if len(self.support_.blocks) == 1 or self._reader.tuned is not None:
            return self
        used = {name for head in (self.head_, *self.fold_heads_) for name in head.used_blocks()}
        self._opened = self._reader.with_used_blocks(used)
        encoder = self._opened.encoder
        names = [block.name for block in encoder.info.blocks]
        self.dropped_blocks_ = tuple(block.name for block in self.support_.blocks if block.name not in names)
        info = {"encoder": encoder.info.name, "fingerprint": encoder.info.fingerprint}
        provenance = {**self.support_.provenance, **info}
        self.support_ = replace(self.support_.select_blocks(names), provenance=provenance)
        self.head_ = self.head_.restrict_blocks(names)
        self.fold_heads_ = tuple(head.restrict_blocks(names) for head in self.fold_heads_)
        return self

    def extract_features(
        self,
        images: Sequence[ImageSource],
        labels: Sequence[Label],
        class_names: Sequence[str],
        views: int | ViewSpec | None = None,
    ) -> FeatureSet:
        """Extract the features of labelled pictures, using the feature store. Unreadable pictures are left out.

        Args:
            images: paths, PIL images or arrays.
            labels: class name of each picture, or all its class names.
            class_names: all classes in order.
            views: number of views, or a `ViewSpec`; 1 for the plain pictures only; None for the views of the
                constructor, where "per-epoch" makes as many views as the head of the constructor has epochs.

        Returns:
            The features. ``provenance["skipped"]`` names the unreadable pictures.
        """
        is_per_epoch = views is None and isinstance(inputs.parse_views(self.views, self.seed), PerEpochViews)
        if views is None:
            spec = self._plan_views(labels, class_names)
        else:
            spec = views if isinstance(views, ViewSpec) else ViewSpec(count=views)
        if is_per_epoch:
            self._reader.view_cost(len(images), spec).check()
        self._choose_backend(images, class_names)
        extraction = self._reader.extract(images, spec, strict=self.strict)
        if is_per_epoch and extraction.rows and extraction.skipped:
            # A head may plan a number of steps instead of epochs: fewer readable shots then mean more epochs.
            needed = self._plan_views([labels[i] for i in extraction.rows], class_names)
            if needed.count > spec.count:
                spec = needed
                extraction = self._reader.extract(images, spec, strict=self.strict)
        return inputs.build_feature_set(extraction, images, labels, class_names, spec, self.encoder_.info)

    def view_cost(
        self,
        images: Sequence[ImageSource],
        labels: Sequence[Label],
        class_names: Sequence[str] | None = None,
        *,
        measure: bool = False,
    ) -> ViewCost:
        """Estimate the cost of the views of the shots before `fit` computes them; ``str()`` describes it.

        Args:
            images: paths, PIL images or arrays.
            labels: class name of each picture, or all its class names.
            class_names: all classes in order; if None, those of the labels, sorted.
            measure: encode a few views of two pictures to estimate the time. They stay in the feature store.
        """
        names = inputs.collect_class_names(labels) if class_names is None else class_names
        spec = self._plan_views(labels, names)
        cost = self._reader.view_cost(len(images), spec)
        if not measure:
            return cost
        self._choose_backend(images, names)
        timed, start = replace(spec, count=min(spec.count, 1 + TIMED_VIEWS_PER_PICTURE)), time.perf_counter()
        # After an interrupted run the last pictures are those that the store lacks.
        computed = self._reader.extract(images[-TIMED_PICTURES:], timed).computed
        return replace(cost, rate=computed / (time.perf_counter() - start) if computed >= MIN_TIMED_VIEWS else None)

    def encode_classes(self, class_names: Sequence[str]) -> TextFeatures:
        """Encode prompts from the templates and descriptions of the constructor; stores the prompts as ``prompts_``."""
        self.prompts_ = class_prompts(class_names, self.templates, self.descriptions)
        return self._reader.encode(self.prompts_)

    def refit_text(self) -> TextFeatures:
        """Return ``text_`` with the single prompts for a head that reads them: those of a loaded model are encoded."""
        self._check_fitted()
        return edit.text_to_fit(self._reader, self.head_, self.text_, self.prompts_)

    # ---- Predict ----
    # One picture gives an answer for one picture, a list of length 1 or an array (1, c), as in scikit-learn: the type
    # of an answer does not depend on whether a path is a file or a folder, or on how many pictures a folder has.

    def logits(self, images: Pictures) -> NDArray[Any]:
        """Compute the logits (m, c) of m pictures, given as for `predict`, in the order of ``class_names_``."""
        self._check_fitted()
        pictures = list_pictures(images)
        if not pictures:
            return np.zeros((0, len(self.class_names_)), np.float32)
        return answers.finite_logits(self.head_, self._reader.features(pictures))

    def predict_proba(self, images: Pictures) -> NDArray[Any]:
        """Compute the calibrated probabilities (m, c) of m pictures, in the form of `logits`."""
        return self.uncertainty_.probabilities(self.logits(images))

    def predict(self, images: Pictures, *, adapt: Adapt = None, views: int = 1, **decision: Any) -> list[Any]:
        """Predict the class name of each picture.

        Args:
            images: a path, a PIL image or an array (h, w, 3); a list of these, or an array (m, h, w, 3); a folder with
                pictures at any depth, in sorted order; a table with the column ``path``; or a `Dataset`.
            adapt: see `classify`.
            views: see `classify`.
            decision: see `classify`.

        Returns:
            A list with one class name per picture, also for a single picture; None for a rejected one. A multi-label
            classifier gives a tuple of class names per picture, which may be empty.

        Raises:
            ImageError: if a picture can't be read; `classify` gives an answer with an error for it instead.
        """
        self._check_fitted()
        # Closed, since an error of a picture keeps what it comes from, and so the feature store.
        with closing(self._iter_with_bar(images, 1, adapt=adapt, views=views, **decision)) as predictions:
            return labels_of(predictions, self.uncertainty_.multilabel is not None)

    def classify(
        self, images: Pictures, top: int = 5, *, adapt: Adapt = None, views: int = 1, **decision: Any
    ) -> list[Prediction]:
        """Predict one `Prediction` per picture, in order. An unreadable picture gives a prediction with an error.

        Args:
            images: as for `predict`; one picture gives a list of one prediction.
            top: number of classes to list.
            adapt: "tda": earlier pictures of the call change later answers. A `TdaCache` goes on from call to call.
            views: of each picture, the plain one included. Confident ones vote, or are averaged with ``adapt``.
            decision: ``reject``, ``coverage`` or ``costs`` for these pictures, instead of those of
                `UncertaintyOptions`; None turns one off.
        """
        return list(self._iter_with_bar(images, top, adapt=adapt, views=views, **decision))

    def iter_predictions(
        self,
        images: Pictures | Iterator[ImageSource | None],
        top: int = 5,
        *,
        adapt: Adapt = None,
        views: int = 1,
        **decision: Any,
    ) -> Generator[Prediction, None, None]:
        """As `classify`, for any number of pictures, of which a few batches are in memory.

        Args:
            images: as for `predict`; or an iterator of pictures. None in it means that the next picture is not there
                yet: the predictions for all before it come first.
            top: see `classify`.
            adapt: see `classify`.
            views: see `classify`.
            decision: see `classify`.
        """
        self._check_fitted()
        if type(views) is not int or views < 1:
            raise InputError(f"views of a prediction must be 1 (the plain picture) or more, but got {brief(views)}")
        # Papers crop from 8 % of the area. By votes of such small crops heads that were fitted to shots lose on
        # development sets, and by these they gain.
        spec = ViewSpec.from_crop("tip", views, self.seed)
        self._reader.view_cost(1, spec).check()
        cache = self.uncertainty_.open_cache(adapt, len(self.class_names_))
        pictures = images if isinstance(images, Iterator) else list_pictures(images)
        if isinstance(pictures, list):
            self._opened = self._reader.faster(pictures)
        with closing(self._reader.stream(pictures, spec)) as batches:
            yield from answers.predict_batches(self._to_model(), batches, top, decision, cache)

    def _iter_with_bar(self, images: Pictures, top: int, **options: Any) -> Generator[Prediction, None, None]:
        pictures, shown = list_pictures(images), shows_progress(self.progress)
        with closing(self.iter_predictions(pictures, top, **options)) as predictions:
            yield from progress_bar(predictions, total=len(pictures), desc="pictures", unit="img", shown=shown)

    def classify_features(
        self, features: NDArray[Any], top: int = 5, *, adapt: Adapt = None, **decision: Any
    ) -> PredictionColumns:
        """As `classify`, from features of pictures, which are computed once and may be answered by many models.

        Args:
            features: (m, d) of the plain pictures, from the encoder of this classifier with all its blocks.
            top: see `classify`.
            adapt: see `classify`.
            decision: see `classify`.
        """
        return answers.predict_columns(self._to_model(), features, top, decision, adapt)

    # ---- Evaluate ----

    def score(self, images: Pictures, labels: Sequence[Label] | None = None) -> float:
        """Accuracy on labelled pictures, given as for `evaluate`; as ``score`` of scikit-learn's classifiers.

        Every picture counts with its most probable class, also one that `predict` rejects. With several labels per
        picture it is the share of pictures whose labels are all right.
        """
        result = self.evaluate(images, labels)
        if result.skipped:
            raise ImageError(*result.skipped[0])
        return result.accuracy

    def evaluate(self, images: Pictures, labels: Sequence[Label] | None = None) -> EvaluationResult:
        """Measure the classifier on labelled pictures: all metrics, a table of the classes, and the confusion matrix.

        `clipadapter eval` gives the same metrics, beside those of baselines.

        Args:
            images: a list of paths, PIL images or arrays. Without labels: a `Dataset`, or a folder, table or name as
                `load_dataset` takes it; of one with splits, the split "test".
            labels: class name of each picture, or all its class names; None: those of the data set.

        Returns:
            The result, which is stored as ``evaluation_`` too. Unreadable pictures are left out and named in it.

        Raises:
            InputError: if a label is no class of the model, labels are missing, or the classifier is not fitted.
            DataError: if the data set or all pictures can't be read.
        """
        self._check_fitted()
        pictures, labels, dataset = inputs.read_labelled(images, labels, default_split="test")
        evaluation.check_label_kind(self.uncertainty_, inputs.is_multilabel(labels))
        names = inputs.collect_class_names(labels)
        if names or not inputs.is_multilabel(labels):  # no picture needs to have a label if there may be several
            evaluation.check_labels(names, self.class_names_)
        test = self.extract_features(pictures, labels, self.class_names_, views=1)
        data = {} if dataset is None else {"data": dataset.name}
        return self.evaluate_features(replace(test, provenance={**test.provenance, **data}))

    def evaluate_features(self, test: FeatureSet) -> EvaluationResult:
        """Measure the classifier on features of labelled pictures.

        Args:
            test: features from the encoder of this classifier (see `extract_features`), with its classes.
        """
        self._check_fitted()
        learned = self.head_, self.uncertainty_, self.fold_heads_, self.support_
        self.evaluation_ = evaluation.evaluate_features(*learned, test.mark_for_evaluation())
        return self.evaluation_

    # ---- Edit ----
    # Each edit makes a new version, and needs no picture of the fit. See edit.py.

    @property
    def history_(self) -> History:
        """All versions of the model: who changed what, and when."""
        self._check_fitted()
        if self._history is None:
            self._history = History.new(self._to_model())
        return self._history

    def add_class(
        self, name: str, images: Pictures, *, descriptions: Sequence[str] | None = None, by: str = ""
    ) -> Self:
        """Add a class, which becomes the last one. Shots among the pictures move to it; multi-label shots get it too.

        Args:
            name: name of the class.
            images: pictures of it, in all forms that `predict` takes; other shots of the model are no examples against
                it.
            descriptions: sentences about the class, used instead of the templates.
            by: author of the change, for the history.
        """
        change = edit.add_class(self._to_model(), name, descriptions, self._reader.encode)
        rule: ConflictRule = "replace" if self.support_.targets is None else "merge"
        images = list_pictures(images)
        return self._add_shots(change, images, [name] * len(images), rule, "add-class", {"class": name}, by)

    def add_examples(self, images: Pictures, labels: Sequence[Label] | None = None, *, by: str = "") -> Self:
        """Add shots, given as for `fit`, to existing classes. Those that are shots with these labels are left out."""
        images, labels, _ = inputs.read_labelled(images, labels, default_split="train")
        change = edit.keep_classes(self._to_model())
        return self._add_shots(change, images, labels, "refuse", "add-examples", {}, by)

    def correct(self, images: Pictures, labels: Sequence[Label] | None = None, *, by: str = "") -> Self:
        """Correct the labels of shots. Pictures that are no shots are added.

        Shots are recognised by their features, so the path of a picture does not matter. Pictures and their correct
        labels are given as for `fit`.
        """
        images, labels, _ = inputs.read_labelled(images, labels, default_split="train")
        return self._add_shots(edit.keep_classes(self._to_model()), images, labels, "replace", "correct", {}, by)

    def remove_class(self, name: str, *, by: str = "") -> Self:
        """Remove a class and its shots. Multi-label shots stay, without this label."""
        change = edit.remove_class(self._to_model(), name)
        pictures = self.support_.y.count(name)  # none if multi-label
        return self._apply(change, "remove-class", {"class": name, "pictures": pictures}, by)

    def rename_class(self, name: str, new: str, *, by: str = "") -> Self:
        """Rename a class. Its text features change if its prompts come from templates; descriptions are kept."""
        change = edit.rename_class(self._to_model(), name, new, self._reader.encode)
        return self._apply(change, "rename-class", {"class": name, "to": new}, by)

    def undo(self, to: int | None = None, *, by: str = "") -> Self:
        """Undo the last change, or restore version ``to``. This is a new version too.

        Args:
            to: number of the version to restore; see ``history_``.
            by: author of the change, for the history.

        Raises:
            InputError: if there is nothing to undo, or the version is not stored.
        """
        history, model = self.history_.undo(to, by)
        return self._set_model(model, history)

    # ---- Save and load ----

    def save(self, folder: str | Path, *, support: bool = True) -> Path:
        """Save the fitted model to a folder, or as a new version of the model in it.

        Args:
            folder: target folder.
            support: whether to save the features of the shots, which editing and evaluation with baselines need.

        Raises:
            ArtifactError: if the folder can't be written. Nothing is left half-written.
        """
        history = self._history
        if history is not None and history.version == 1 and history.folder != Path(folder).resolve():
            history = None  # a copy of a model that was never edited begins its own history
        written = save_model(folder, self._to_model(), keep_support=support, history=history)
        self._history = History.load(folder)
        return written

    @classmethod
    def load(cls, folder: str | Path, *, encoder: NamedEncoders | None = None, **params: Any) -> Self:
        """Load a saved model.

        Args:
            folder: a folder that `save` wrote.
            encoder: the encoder, if its weights were moved; all encoders in the order of the fit, if there are several.
                If None, the name in the model.
            params: parameters of the constructor, such as ``device``, ``cache`` or ``uncertainty``.

        Raises:
            ArtifactError: if the model is missing, altered or of a later format.
            FingerprintError: if the encoder is not the one that the model was fitted with.
            InputError: if more encoders are given than the model has.
        """
        history = History.load(folder)  # before the model: `save` then notices a change that came between the two reads
        saved = load_model(folder)
        model = cls(encoder if encoder is not None else saved.encoder.name, saved.head, **params)
        model._set_model(saved, history, encoder)
        if "progress" in model.head_.get_params(deep=False):  # that of the fit says nothing of where the model is used
            model.head_.set_params(progress=shows_progress(model.progress))
        if model.uncertainty:
            model.uncertainty_ = saved.uncertainty.with_defaults(model.uncertainty)
        return model

    # ---- Hugging Face hub ----
    # Two methods of `huggingface_hub.ModelHubMixin`, which is no base: it would write the parameters of the constructor
    # into config.json, which describes the fitted model, and its import would make every command slower.

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a model from the hub or from a folder.

        Args:
            pretrained_model_name_or_path: repository such as ``org/name``, or a folder.
            options: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` or ``force_download``, see
                `persistence.fetch`; all others as of `load`.
        """
        of_hub = {name: options.pop(name) for name in inspect.signature(fetch).parameters if name in options}
        folder = Path(pretrained_model_name_or_path)
        return cls.load(folder if folder.exists() else fetch(str(pretrained_model_name_or_path), **of_hub), **options)

    def push_to_hub(
        self, repo_id: str, *, exported: Sequence[str | Path] = (), support: bool = True, **options: Any
    ) -> str:
        """Upload the fitted model to the hub in one commit. The repository is created if it does not exist.

        Args:
            repo_id: repository such as ``org/name``.
            exported: files that `clipadapter export` wrote, to upload too.
            support: whether to upload the features of the shots.
            options: ``private``, ``token``, ``branch``, ``create_pr``, ``commit_message``; see `persistence.push`.

        Returns:
            URL of the commit.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = save_model(Path(parent) / "model", self._to_model(), keep_support=support)
            return push(folder, repo_id, exported=exported, **options).url

    # ---- Internal ----

    def _build_head(self) -> Head:
        """The head itself, or one by name, with this seed and progress unless ``head_params`` sets them."""
        params = self.head_params or {}
        if isinstance(self.head, Head):
            if params:
                raise InputError(
                    "head_params need the name of a head, but head is an object: set the parameters on it instead"
                )
            return self.head
        created = create_head(self.head, **params)
        own = {"seed": self.seed, "progress": shows_progress(self.progress)}
        unset = created.get_params(deep=False).keys() - params.keys()
        return created.set_params(**{name: value for name, value in own.items() if name in unset})

    def _choose_backend(self, images: Sequence[ImageSource], class_names: Sequence[str]) -> None:
        """Choose backend and precision once, on the first pictures."""
        self._opened = self._reader.at(images, partial(self.encode_classes, class_names))

    def _plan_views(self, labels: Sequence[Label], class_names: Sequence[str]) -> ViewSpec:
        """The views of each shot."""
        views = inputs.parse_views(self.views, self.seed)
        if isinstance(views, ViewSpec):
            return views
        text_dim = self.encoder_.info.text_dim
        return inputs.plan_views(views, self._build_head(), self.grid, labels, class_names, text_dim)

    def _add_shots(
        self,
        change: edit.Edit,
        images: Sequence[ImageSource],
        labels: Sequence[Label],
        rule: ConflictRule,
        action: str,
        facts: Mapping[str, Any],
        by: str,
    ) -> Self:
        """Apply an edit with labelled pictures. Nothing changes if all are shots with these labels already."""
        model = self._to_model()
        examples = edit.read_examples(self._reader, model, change, images, labels, strict=self.strict)
        self.skipped_ = tuple(examples.provenance["skipped"])
        change, counts = edit.with_examples(model, change, examples, rule)
        if not change.new_labels and change.added is None and change.text is model.text:
            return self
        return self._apply(change, action, {**facts, **counts}, by)

    def _apply(self, change: edit.Edit, action: str, facts: Mapping[str, Any], by: str) -> Self:
        """Make an edit the next version."""
        before = self._to_model()
        text = edit.text_to_fit(self._reader, self.head_, change.text, change.prompts)
        after = edit.apply_edit(before, replace(change, text=text))
        return self._set_model(after, self.history_.with_change(before, after, action, facts, by))

    def _check_fitted(self) -> None:
        if not hasattr(self, "head_"):
            raise InputError("this FewShotClassifier is not fitted: call fit(images, labels), or load(folder)")

    def _to_model(self) -> Model:
        """The fitted state as `persistence.Model`, which is what `save` writes and edits work on."""
        self._check_fitted()
        info = self._reader.saved_info
        return Model(self.head_, self.text_, self.support_, self.prompts_, info, self.uncertainty_, self.fold_heads_)

    def _set_model(self, model: Model, history: History, encoder: NamedEncoders | None = None) -> Self:
        """Take over the fitted state; the encoder is opened if the model needs another one than the open one."""
        if self._opened is None or self._opened.saved_info.fingerprint != model.encoder.fingerprint:
            self._opened = Reader.of_model(model, encoder, self.device, self._running)
        tower = partial(open_text_tower, self.encoder_) if self.encoder_.has_text else None
        self.text_ = model.text.with_tower(tower)
        self.head_, self.support_ = model.head.attach(self.text_), model.support
        self.prompts_, self.fold_heads_ = model.prompts, model.fold_heads
        self.uncertainty_ = model.uncertainty
        self.class_names_, self._history = model.text.labels, history
        self.evaluation_ = None
        return self
