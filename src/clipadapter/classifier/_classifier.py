"""Pictures in, class names out: an encoder, class text and a head behind one face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Self

from clipadapter.classifier._changing import Changing
from clipadapter.classifier._distractors import distractors
from clipadapter.classifier._heads import make_head
from clipadapter.classifier._hub import OnHub
from clipadapter.classifier._pictures import Label, all_names, check_task, extracted, feature_set
from clipadapter.classifier._quick import make_quick
from clipadapter.classifier._settings import KEY as SETTINGS
from clipadapter.classifier._settings import Settings
from clipadapter.classifier._towers import chosen, open_store
from clipadapter.classifier._tuned import check_alone, run_by, tune
from clipadapter.classifier._uncertainty import Others, checked_options, fit_trusted
from clipadapter.classifier._views import measure_rate, read_views, views_for
from clipadapter.data import class_prompts, get_templates
from clipadapter.data.images import ImageSource
from clipadapter.encoders import Encoder, create_encoder, unprojected
from clipadapter.errors import InputError
from clipadapter.features import Extraction, FeatureSet, PerEpochViews, ViewCost, ViewSpec, encode_classes
from clipadapter.heads import Head, Selection, TextFeatures, select
from clipadapter.persistence import History, load_model, save_model
from clipadapter.uncertainty import UncertaintyOptions


class FewShotClassifier(Changing, OnHub):
    """A classifier of pictures, fitted from a few of each class.

    Args:
        encoder: a URI, or an open encoder.
        head: a registered name, or a head.
        head_params: parameters of the head if it is given by name.
        grid: values to try, by parameter of the head; the best on held-out shots is taken (see `heads.select`).
        task: "single-label", "multilabel" for pictures that have several labels or none, or "auto": whichever the
            labels are.
        uncertainty: what is learned from held-out shots, and what is asked for by default. Without it, calibrated
            probabilities alone; `UncertaintyOptions(reject=0.05)` calls strange pictures None.
        templates: name of a set of templates, one template, or several.
        descriptions: sentences by class, used instead of the templates for the classes they name.
        views: views of each shot, the plain picture included; or a `ViewSpec`. "per-epoch" makes the plain picture and
            as many augmented views as the head makes epochs, so that each epoch trains on a view of its own and none
            is used twice; `PerEpochViews` does so with another crop scale. See `view_cost` for what this takes.
        seed: of the views; and of the head, if it is given by name and takes one.
        device: torch device of the towers.
        backend: what runs the image tower: "auto", "torch", "openvino" or "onnxruntime".
        precision: of the image tower: "auto", "fp32", "bf16" or "int8". Both autos take what is fastest here and near
            enough to fp32 on the pictures given (see `choose_backend`), and the plain tower where these are few.
        cache: file of the feature store; "auto" is the user's cache folder, None keeps no features.
        batch_size: pictures encoded at a time.
        progress: show bars on stderr.
        strict: raise for a picture that can't be read instead of leaving it out of the shots.

    >>> import numpy as np
    >>> red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    >>> model = FewShotClassifier(encoder="toy", cache=None).fit([red, blue], ["red", "blue"])
    >>> model.predict([blue])
    ['blue']
    """

    def __init__(
        self,
        encoder: str | Encoder = "auto",
        head: str | Head = "auto",
        *,
        head_params: Mapping[str, Any] | None = None,
        grid: Mapping[str, Sequence[Any]] | None = None,
        task: str = "auto",
        uncertainty: UncertaintyOptions | None = None,
        templates: str | Sequence[str] = "default",
        descriptions: Mapping[str, Sequence[str]] | None = None,
        views: int | str | ViewSpec | PerEpochViews = 1,
        seed: int = 0,
        device: str = "cpu",
        backend: str = "auto",
        precision: str = "auto",
        cache: str | Path | None = "auto",
        batch_size: int = 32,
        progress: bool = False,
        strict: bool = False,
    ) -> None:
        self.encoder = encoder
        self.head = head
        self.head_params = head_params
        self.grid = grid
        self.task = task
        self.uncertainty = uncertainty
        self.templates = templates
        self.descriptions = descriptions
        self.views = views
        self.seed = seed
        self.device = device
        self.backend = backend
        self.precision = precision
        self.cache = cache
        self.batch_size = batch_size
        self.progress = progress
        self.strict = strict
        self._chosen = False
        self._tuned: Encoder | None = None
        self._history: History | None = None
        self.skipped_: tuple[tuple[str, str], ...] = ()

    def fit(
        self,
        images: Sequence[ImageSource],
        labels: Sequence[Label],
        class_names: Sequence[str] | None = None,
        unlabelled: Sequence[ImageSource] | None = None,
        background: Sequence[ImageSource] | None = None,
    ) -> Self:
        """Learn from labelled pictures.

        Args:
            images: paths, PIL images or arrays.
            labels: class name of each; or a list, tuple or set of all its class names.
            class_names: all classes in the order of ``class_names_``; those of the labels, sorted, if not given.
            unlabelled: pictures that will be asked for, without labels; for transductive heads.
            background: pictures of none of the classes, such as will come by; to tell strange ones by.

        Raises:
            InputError: if counts differ, there is one class only, or a name is wrong.
            DataError: if no picture can be read.
            EncoderUnavailableError: if the encoder's weights can't be had.
        """
        if len(images) != len(labels):
            raise InputError(f"{len(images)} pictures but {len(labels)} labels")
        check_task(self.task, labels)
        names = list(class_names) if class_names is not None else all_names(labels)
        if len(names) < 2:
            raise InputError(f"a classifier needs two classes or more, but got {', '.join(names) or 'none'}")
        head = make_head(self.head, self.head_params, self.seed, self.progress)
        if head.tunes_encoder or self._tuned is not None:
            self.__dict__.pop("head_", None)  # should this fit fail: it goes with another encoder
        self._tuned = None
        self.prepare(head)
        if head.tunes_encoder:
            check_alone(self.grid, unlabelled)
            self._tune(head, images, [str(label) for label in labels], names)
        features = self.features(images, labels, names, views=1 if head.tunes_encoder else None)
        others, strange = (None if x is None else self._plain(x) for x in (unlabelled, background))
        return self.fit_features(features, self.class_text(names), head, others, strange)

    def prepare(self, *heads: Head) -> None:
        """Have features come with what they are projected from, if one of the heads reads that; `fit` does so itself.

        Raises:
            InputError: if the image tower ends in no projection.
        """
        if any(head.reads_unprojected for head in heads):
            self._encoder = unprojected(self.encoder_)

    def fit_features(
        self,
        support: FeatureSet,
        text: TextFeatures,
        head: Head | None = None,
        unlabelled: NDArray[Any] | None = None,
        background: NDArray[Any] | None = None,
    ) -> Self:
        """Learn from features that are there already.

        Args:
            support: the shots, made by this classifier's encoder (see `features`).
            text: class text of the same classes; ``class_names_`` and the columns of the logits keep its order.
            head: what to fit; the head of the constructor if not given.
            unlabelled: (u, d) features of pictures without labels, for transductive heads.
            background: (b, d) features of pictures of none of the classes.
        """
        options, text = checked_options(self.uncertainty), text.with_order("given")
        chosen = make_head(self.head, self.head_params, self.seed, self.progress) if head is None else head
        self.selection_: Selection | None = None
        if self.grid:
            self.selection_ = select(
                chosen, support.X, support.labels, text, grid=self.grid, seed=self.seed, progress=self.progress
            )
            chosen = self.selection_.best
        names, others = self._distractors(text) if options.negative_labels else ((), None)
        found = fit_trusted(chosen, support, text, unlabelled, options, Others(background, names, others), self.seed)
        self.head_, self.uncertainty_, self.fold_heads_ = found.head, found.uncertainty, found.folds
        views = read_views(self.views, self.seed)
        if isinstance(views, PerEpochViews):
            views = views.for_epochs(support.X.shape[1] - 1 if support.X.ndim == 3 else 0)
        settings = Settings(get_templates(self.templates), views, options, self.seed)
        kept = replace(support, provenance={**support.provenance, SETTINGS: settings.facts()})
        self.text_, self.support_, self.class_names_, self._history = text, kept, tuple(text.labels), None
        return self

    def features(
        self,
        images: Sequence[ImageSource],
        labels: Sequence[Label],
        class_names: Sequence[str],
        views: int | ViewSpec | None = None,
    ) -> FeatureSet:
        """Features of labelled pictures, from the store where it has them; unreadable pictures are left out.

        Args:
            images: paths, PIL images or arrays.
            labels: class name of each, or all its class names.
            class_names: all classes in order.
            views: how many, or which; 1 for the plain pictures alone; None for the views of the constructor, where
                those for each epoch are as many as the head of the constructor needs.

        Raises:
            DataError: if no picture can be read; `FeatureSet.provenance` has ``skipped`` otherwise.
            InputError: if views for each epoch are wanted, but the head has no epochs, or they take too much memory.
        """
        planned = views is None and isinstance(read_views(self.views, self.seed), PerEpochViews)
        if views is None:
            spec = self.planned_views(labels, class_names)
        else:
            spec = views if isinstance(views, ViewSpec) else ViewSpec(count=views)
        if planned:
            self._cost(len(images), spec).check()
        self._choose_backend(images, class_names)
        found = self._extract(images, spec, self.strict)
        if planned and found.rows and found.skipped:
            # Fewer shots can mean more epochs, where these make up a number of steps.
            needed = self.planned_views([labels[i] for i in found.rows], class_names)
            if needed.count > spec.count:
                spec = needed
                found = self._extract(images, spec, self.strict)
        return feature_set(found, images, labels, class_names, spec, self.encoder_.info)

    def planned_views(self, labels: Sequence[Label], class_names: Sequence[str] | None = None) -> ViewSpec:
        """The views that `fit` makes of each shot; no picture is opened.

        Args:
            labels: class name of each shot, or all its class names.
            class_names: all classes in order; those of the labels, sorted, if not given.

        Raises:
            InputError: if there is to be a view for each epoch, but the head has no epochs.

        >>> FewShotClassifier(head="clip-adapter", views="per-epoch").planned_views(["cat", "dog"]).count
        201
        """
        views = read_views(self.views, self.seed)
        if isinstance(views, ViewSpec):
            return views
        head = make_head(self.head, self.head_params, self.seed, self.progress)
        names = all_names(labels) if class_names is None else class_names
        return views_for(views, head, labels, names, self.grid)

    def view_cost(
        self,
        images: Sequence[ImageSource],
        labels: Sequence[Label],
        class_names: Sequence[str] | None = None,
        *,
        measure: bool = False,
    ) -> ViewCost:
        """What the views of the shots will cost, before `fit` computes them; ``str()`` says it in words.

        Args:
            images: paths, PIL images or arrays.
            labels: class name of each, or all its class names.
            class_names: all classes in order; those of the labels, sorted, if not given.
            measure: encode some views of two pictures, to estimate the time; they are kept in the store.

        Raises:
            InputError: if there is to be a view for each epoch, but the head has no epochs.
        """
        spec = self.planned_views(labels, class_names)
        if not measure:
            return self._cost(len(images), spec)
        self._choose_backend(images, all_names(labels) if class_names is None else class_names)
        rate = measure_rate(lambda pictures, views: self._extract(pictures, views, False), images, spec)
        return replace(self._cost(len(images), spec), rate=rate)

    def class_text(self, class_names: Sequence[str]) -> TextFeatures:
        """Class text from the templates and descriptions of the constructor; keeps the prompts as ``prompts_``."""
        self.prompts_: Mapping[str, Sequence[str]] = class_prompts(class_names, self.templates, self.descriptions)
        with open_store(self.cache) as store:
            return encode_classes(self.encoder_, self.prompts_, store)

    @property
    def encoder_(self) -> Encoder:
        """The open encoder; opened at first use, its backend and precision chosen when the first pictures come.

        After `fit` with a head that tunes the encoder, the tuned one.
        """
        if self._tuned is not None:
            return self._tuned
        if not hasattr(self, "_encoder"):
            given = self.encoder
            self._encoder = create_encoder(given, self.device) if isinstance(given, str) else given
        return self._encoder

    def save(self, folder: str | Path, *, support: bool = True) -> Path:
        """Write the fitted model to a folder, or replace the model in it.

        Args:
            folder: where to.
            support: keep the shots' features, so that the model can be changed, and evaluated beside its baselines.

        Raises:
            ArtifactError: if the folder can't be written; nothing is left half-written.
            InputError: before `fit`.
        """
        written = save_model(folder, self._model(), keep_support=support, history=self._history_for(folder))
        self._history = History.of(folder)
        return written

    @classmethod
    def load(cls, folder: str | Path, *, encoder: str | Encoder | None = None, **params: Any) -> Self:
        """The model in a folder.

        Args:
            folder: what `save` wrote.
            encoder: where the encoder is now, if its weights were moved; the one in the model if not given.
            params: parameters of the constructor, such as ``device``, ``cache``, or ``uncertainty`` for what is said.

        Raises:
            ArtifactError: if the model is missing, altered or of a later format.
            FingerprintError: if the encoder is not the one the model was fitted with.
        """
        history = History.of(folder)  # first: what somebody changes meanwhile is then seen when this is saved
        saved = load_model(folder)
        model = cls(encoder if encoder is not None else saved.encoder.name, saved.head, **params)
        model._become(saved, encoder)
        if model.uncertainty:
            model.uncertainty_ = saved.uncertainty.with_defaults(model.uncertainty)
        model._history = history
        return model

    def make_quick(self, folder: str | Path) -> bool:
        """Have the model that was saved in a folder answer without torch, where that is cheap; see `quick`."""
        # A tuned tower would be converted, and kept, for this one model.
        return self._tuned is None and make_quick(
            Path(folder), self.encoder_, self.head_, self.class_names_, self.uncertainty_
        )

    def _cost(self, n_pictures: int, spec: ViewSpec) -> ViewCost:
        return ViewCost(n_pictures, spec.count, self.encoder_.info.dim, cached=self.cache is not None)

    def _choose_backend(self, images: Sequence[ImageSource], class_names: Sequence[str]) -> None:
        """Once, for the pictures that come first; not for an encoder that a head has tuned."""
        if not self._chosen and self._tuned is None:
            self._chosen = True
            text = partial(self.class_text, class_names)
            self._encoder = chosen(self.encoder_, images, self.backend, self.precision, text, self.cache, self.progress)

    def _tune(self, head: Head, images: Sequence[ImageSource], labels: Sequence[str], names: Sequence[str]) -> None:
        """Have a head tune the encoder."""
        prompts = class_prompts(names, self.templates, self.descriptions)
        views = self.planned_views(labels, names)
        self._encoder, tuned = tune(head, self.encoder_, images, labels, prompts, views, self.strict)
        self._tuned = run_by(tuned, images, self.backend, self.precision)

    def _distractors(self, text: TextFeatures) -> tuple[tuple[str, ...], NDArray[Any] | None]:
        """Names that no class has, and their text (k, d)."""
        with open_store(self.cache) as store:
            return distractors(self.encoder_, text, self.templates, store)

    def _extract(self, images: Sequence[ImageSource], spec: ViewSpec, strict: bool) -> Extraction:
        return extracted(self.encoder_, images, spec, self.cache, self.batch_size, self.progress, strict)
