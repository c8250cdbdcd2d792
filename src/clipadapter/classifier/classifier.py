"""Pictures in, class names out: an encoder, class text and a head behind one face."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCard, ModelHubMixin
from numpy.typing import NDArray
from typing_extensions import Self

from clipadapter.classifier.deduplicate import How, arrived
from clipadapter.classifier.edit import Edit, edited
from clipadapter.classifier.encoder import check_alone, chosen, encoders_of, facts_of_base, run_by, tune
from clipadapter.classifier.fitting import KEY as SETTINGS
from clipadapter.classifier.fitting import (
    Others,
    Settings,
    checked_options,
    distractors,
    fit_trusted,
    make_head,
    settings_of,
)
from clipadapter.classifier.inputs import (
    Label,
    all_names,
    answered,
    check_any,
    check_task,
    extracted,
    feature_set,
    measure_rate,
    open_store,
    read_views,
    views_for,
)
from clipadapter.classifier.quick import make_quick
from clipadapter.data import class_prompts, get_templates
from clipadapter.data.images import ImageSource
from clipadapter.encoders import Encoder, create_encoder, open_text_tower, unprojected
from clipadapter.errors import ArtifactError, InputError, UnknownNameError
from clipadapter.features import Extraction, FeatureSet, PerEpochViews, ViewCost, ViewSpec, encode_classes
from clipadapter.heads import Head, Selection, TextFeatures, select
from clipadapter.persistence import History, Model, fetch, load_model, push, save_model
from clipadapter.prediction import Prediction
from clipadapter.registry import unknown
from clipadapter.uncertainty import Answers, UncertaintyOptions


class FewShotClassifier(ModelHubMixin):
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

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Without the mixin's record of the parameters, which the object has as attributes."""
        return object.__new__(cls)

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
        names, others = self._distractors(text) if options.distractors else ((), None)
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

    def logits(self, images: Sequence[ImageSource]) -> NDArray[Any]:
        """Scores (m, c) of pictures, columns in the order of ``class_names_``.

        Raises:
            ImageError: if a picture can't be read.
            ArtifactError: if what the model has learned gives a score that is not finite.
        """
        self._check_fitted()
        return _finite_logits(self.head_, self._plain(images))

    def predict(self, images: Sequence[ImageSource], **asked: Any) -> list[Any]:
        """The class of each picture; None if it is none of them, where that was asked for (see `classify`).

        Where pictures have several labels: all classes of each, a tuple that may be empty.
        """
        found = self._answers(self._plain(images), asked)
        if found.several and found.sets is not None:
            return [tuple(name for name, has in zip(self.class_names_, row, strict=True) if has) for row in found.sets]
        return [None if no else self.class_names_[i] for i, no in zip(found.best, found.rejected, strict=True)]

    def predict_proba(self, images: Sequence[ImageSource]) -> NDArray[Any]:
        """Calibrated probabilities (m, c) of pictures."""
        return self.uncertainty_.probabilities(self.logits(images))

    def classify(self, images: Sequence[ImageSource], top: int = 5, **asked: Any) -> list[Prediction]:
        """One answer a picture, in their order; a picture that can't be read costs only its own answer.

        Args:
            images: paths, PIL images or arrays.
            top: how many classes to name, at most all.
            asked: ``reject``, ``coverage`` or ``costs`` for these pictures, instead of those of
                `UncertaintyOptions`; None asks for nothing.

        Raises:
            InputError: if something is asked for that could not be learned from the shots.
        """
        self._check_fitted()
        found = self._extract(images, ViewSpec(), strict=False)
        told = self._answers(found.features[:, 0], asked) if found.rows else None
        return answered(found, images, told, self.class_names_, top)

    @property
    def history_(self) -> History:
        """Every version of the model: who changed what, and when."""
        self._check_fitted()
        if self._history is None:
            self._history = History.new(self._model())
        return self._history

    def add_class(
        self, name: str, images: Sequence[ImageSource], *, descriptions: Sequence[str] | None = None, by: str = ""
    ) -> Self:
        """Learn one more class, the last in the order from now on.

        Args:
            name: of the class; its text is made by the templates of the others.
            images: pictures of it. Shots among them leave the class that they had, so that a class can be divided.
                Where pictures may have several labels they keep it, and all other shots count as not of the new class.
            descriptions: sentences to take instead of the templates.
            by: who did it, for the history.

        Raises:
            InputError: if there is such a class, or the model can't learn on.
            DataError: if no picture can be read.
        """
        self._check_fitted()
        _check_name(name)
        if name in self.class_names_:
            raise InputError(f"there is a class '{name}' already: add pictures to it with add_examples (add-examples)")
        templates = settings_of(self._model()).templates
        given = list(descriptions) if isinstance(descriptions, tuple) else descriptions
        sentences = None if given is None else {name: given}
        fresh = class_prompts([name], templates, sentences)
        names = (*self.class_names_, name)
        prompts = {**self.prompts_, **fresh}
        text = self._text(names, (*range(len(self.class_names_)), -1), prompts)
        how: How = "relabel" if self.support_.targets is None else "besides"
        return self._with_shots(images, [name] * len(images), text, prompts, how, "add-class", {"class": name}, by)

    def add_examples(self, images: Sequence[ImageSource], labels: Sequence[Label], *, by: str = "") -> Self:
        """Learn from more pictures of the classes; those that are shots already are left out.

        Args:
            images: paths, PIL images or arrays.
            labels: class of each, or all its classes.
            by: who did it, for the history.

        Raises:
            InputError: if a label is no class, a picture is a shot of another class, or the model can't learn on.
            DataError: if no picture can be read.
        """
        self._check_fitted()
        return self._with_shots(images, labels, self.text_, self.prompts_, "add", "add-examples", {}, by)

    def correct(self, images: Sequence[ImageSource], labels: Sequence[Label], *, by: str = "") -> Self:
        """Say what pictures are: shots among them get these labels, others are learned from besides.

        A shot is known by its feature, so that it does not matter where the picture lies now.

        Args:
            images: paths, PIL images or arrays.
            labels: class of each, or all its classes.
            by: who did it, for the history.

        Raises:
            InputError: if a label is no class, or the model can't learn on.
            DataError: if no picture can be read.
        """
        self._check_fitted()
        return self._with_shots(images, labels, self.text_, self.prompts_, "relabel", "correct", {}, by)

    def remove_class(self, name: str, *, by: str = "") -> Self:
        """Forget a class and its shots. Where pictures may have several labels, they stay as shots of the others.

        Raises:
            InputError: if there is no such class, fewer than two would be left, or the model can't be changed.
        """
        place = self._place(name)
        origin = tuple(i for i in range(len(self.class_names_)) if i != place)
        prompts = {key: texts for key, texts in self.prompts_.items() if key != name}
        several = self.support_.targets is not None
        gone = frozenset() if several else frozenset(i for i, label in enumerate(self.support_.y) if label == name)
        text = self._text(tuple(self.class_names_[i] for i in origin), origin, prompts)
        facts = {"class": name, "pictures": len(gone)}
        return self._change(Edit(text, origin, prompts, gone), "remove-class", facts, by)

    def rename_class(self, name: str, new: str, *, by: str = "") -> Self:
        """Call a class otherwise. Its text changes with the name, if templates made it; sentences of its own stay.

        Raises:
            InputError: if there is no such class, or one of the new name already.
        """
        place = self._place(name)
        _check_name(new)
        if new in self.class_names_:
            raise InputError(f"there is a class '{new}' already: classes must have different names")
        templates = settings_of(self._model()).templates
        by_templates = list(self.prompts_[name]) == class_prompts([name], templates)[name]
        texts = class_prompts([new], templates)[new] if by_templates else list(self.prompts_[name])
        names = tuple(new if i == place else old for i, old in enumerate(self.class_names_))
        prompts = {new if old == name else old: texts if old == name else given for old, given in self.prompts_.items()}
        origin = tuple(range(len(names)))
        text = self._text(names, origin, prompts, anew=new if by_templates else None)
        return self._change(Edit(text, origin, prompts), "rename-class", {"class": name, "to": new}, by)

    def undo(self, to: int | None = None, *, by: str = "") -> Self:
        """Take back the last change that stands, or go to an earlier (or later) version; that is a new version too.

        Args:
            to: number of the version whose content is wanted; see ``history_``.
            by: who did it, for the history.

        Raises:
            InputError: if there is nothing to undo, or no such version is kept.
        """
        history, model = self.history_.undo(to, by)
        self._become(model)
        self._history = history
        return self

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
            model.uncertainty_ = saved.uncertainty.asking(model.uncertainty)
        model._history = history
        return model

    def make_quick(self, folder: str | Path) -> bool:
        """Have the model that was saved in a folder answer without torch, where that is cheap; see `quick`."""
        # A tuned tower would be converted, and kept, for this one model.
        return self._tuned is None and make_quick(
            Path(folder), self.encoder_, self.head_, self.class_names_, self.uncertainty_
        )

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Write the fitted model to a folder, as `save` does, and put it onto the hub if asked to.

        Args:
            save_directory: where to.
            repo_id: name on the hub; the folder's, if not given.
            push_to_hub: also put it onto the hub.
            options: as of `push_to_hub`.

        Returns:
            URL of the commit, if it was put onto the hub.

        Raises:
            ArtifactError: if the folder can't be written, or the hub can't be reached or refuses.
            InputError: before `fit`.
        """
        folder = self.save(save_directory)
        return push(folder, repo_id or folder.resolve().name, **options).url if push_to_hub else None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **params: Any,
    ) -> Self:
        """The model of a repository on the hub, or in a folder.

        Args:
            pretrained_model_name_or_path: such as ``org/name``; or a folder.
            force_download: fetch what is on this machine already, too.
            token: instead of the one that the hub's client has.
            cache_dir: instead of the client's cache folder.
            local_files_only: ask no network.
            revision: branch, tag or commit; "main" if not given.
            params: as of `load`, such as ``device``, ``uncertainty``, or ``encoder`` where its weights were moved.

        Raises:
            ArtifactError: if it can't be had, is altered or of a later format.
            FingerprintError: if the encoder is not the one the model was fitted with.
            InputError: if it is neither a folder nor a name on the hub.
        """
        if Path(pretrained_model_name_or_path).is_dir():
            return cls.load(pretrained_model_name_or_path, **params)
        if Path(pretrained_model_name_or_path).is_file():
            raise InputError(
                f"{pretrained_model_name_or_path} is a file: give the model's folder; what 'clipadapter export' wrote "
                "is opened by clipadapter.runtime.Predictor"
            )
        folder = fetch(
            str(pretrained_model_name_or_path),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return cls.load(folder, **params)

    def push_to_hub(
        self, repo_id: str, *, exported: Sequence[str | Path] = (), support: bool = True, **options: Any
    ) -> str:
        """Put the fitted model onto the hub, in one commit; the repository is made if there is none.

        Args:
            repo_id: such as ``org/name``.
            exported: files that `clipadapter export` wrote, to lie beside it.
            support: with the shots' features; see `save`.
            options: ``private``, ``token``, ``branch``, ``create_pr``, ``commit_message``; see `artifact.push`.

        Returns:
            URL of the commit.

        Raises:
            ArtifactError: if the hub can't be reached or refuses.
            InputError: before `fit`, or if an exported file is missing or is none.
        """
        with tempfile.TemporaryDirectory() as place:
            folder = save_model(Path(place) / "model", self._model(), keep_support=support)
            return push(folder, repo_id, exported=exported, **options).url

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that `save` writes; the mixin's arguments are not looked at."""
        with tempfile.TemporaryDirectory() as place:
            return ModelCard.load(save_model(Path(place) / "model", self._model()) / "README.md")

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

    def _plain(self, images: Sequence[ImageSource]) -> NDArray[Any]:
        """Features (m, d) of pictures, all of which can be read."""
        return self._extract(images, ViewSpec(), strict=True).features[:, 0]

    def _answers(self, features: NDArray[Any], asked: Mapping[str, Any]) -> Answers:
        self._check_fitted()
        folds = [_finite_logits(head, features) for head in self.fold_heads_]
        logits = _finite_logits(self.head_, features)
        return self.uncertainty_.answer(logits, features, self.uncertainty_.asked.changed(asked), folds)

    def _check_fitted(self) -> None:
        if not hasattr(self, "head_"):
            raise InputError("this FewShotClassifier is not fitted: call fit(images, labels), or load(folder)")

    def _with_shots(
        self,
        images: Sequence[ImageSource],
        labels: Sequence[Label],
        text: TextFeatures,
        prompts: Mapping[str, Sequence[str]],
        how: How,
        action: str,
        facts: Mapping[str, Any],
        by: str,
    ) -> Self:
        """Learn from pictures, some of which may be shots; nothing changes if all are, with these labels."""
        if len(images) != len(labels):
            raise InputError(f"{len(images)} pictures but {len(labels)} labels")
        if self.support_.targets is not None:
            labels = [(label,) if isinstance(label, str) else label for label in labels]
        check_any(range(len(images)), (), len(images))
        check_task("auto" if self.support_.targets is not None else "single-label", labels)
        for name in all_names(labels):
            if name not in text.labels:
                error = unknown("class", name, list(text.labels))
                raise UnknownNameError(f"{error}; a new one is added with add_class, 'clipadapter add-class'")
        views = self.support_.X.shape[1] if self.support_.X.ndim == 3 else 1
        spec = replace(settings_of(self._model()).views, count=views)
        found = self._extract(images, spec, self.strict)
        self.skipped_ = tuple((name, reason) for _, name, reason in found.skipped)
        shots = feature_set(found, images, labels, text.labels, spec, self.encoder_.info)
        came = arrived(self.support_, shots, how)
        if not (came.labels or len(came.more)) and text is self.text_:
            return self
        origin = tuple(self.class_names_.index(name) if name in self.class_names_ else -1 for name in text.labels)
        more = came.more if len(came.more) else None
        edit = Edit(text, origin, prompts, labels=came.labels, more=more)
        return self._change(edit, action, {**facts, **came.facts}, by)

    def _change(self, edit: Edit, action: str, facts: Mapping[str, Any], by: str) -> Self:
        before = self._model()
        after = edited(before, edit)
        history = self.history_.after(before, after, action, facts, by)
        self._become(after)
        self._history = history
        return self

    def _history_for(self, folder: str | Path) -> History | None:
        """What is saved with the model: a fit that never changed brings no history to another folder than its own."""
        history = self._history
        if history is None or (history.version == 1 and history.folder != Path(folder).resolve()):
            return None
        return history

    def _place(self, name: str) -> int:
        self._check_fitted()
        if name not in self.class_names_:
            raise unknown("class", name, list(self.class_names_))
        return self.class_names_.index(name)

    def _text(
        self, names: Sequence[str], origin: Sequence[int], prompts: Mapping[str, Sequence[str]], anew: str | None = None
    ) -> TextFeatures:
        """Class text of other classes: rows of before, and new ones for new classes and for one that is renamed."""
        before = self.text_
        rows = np.where(before.embeddings.any(axis=1, keepdims=True), before.embeddings, np.nan)
        vectors = [rows[place] if place >= 0 else None for place in origin]
        fresh = {name: prompts[name] for name, row in zip(names, vectors, strict=True) if row is None or name == anew}
        if fresh:
            with open_store(self.cache) as store:
                made = encode_classes(self.encoder_, fresh, store)
            found = dict(zip(made.labels, made.embeddings, strict=True))
            vectors = [found.get(name, row) for name, row in zip(names, vectors, strict=True)]
        tower = partial(open_text_tower, self.encoder_)
        embeddings = np.array(vectors, rows.dtype)
        return TextFeatures(names, embeddings, before.logit_scale, before.logit_bias, tower, before.order)

    def _model(self) -> Model:
        """What is saved."""
        self._check_fitted()
        info = self.encoder_.info if self._tuned is None else facts_of_base(self._encoder.info, self._tuned.info)
        return Model(self.head_, self.text_, self.support_, self.prompts_, info, self.uncertainty_, self.fold_heads_)

    def _become(self, model: Model, encoder: str | Encoder | None = None) -> None:
        """Be what was saved; the encoder is opened if it is another than now."""
        known = getattr(self, "_encoder", None)
        if known is None or self._model().encoder.fingerprint != model.encoder.fingerprint:
            found = encoders_of(model, encoder, self.device, self.backend, self.precision)
            self._encoder, self._tuned, self._chosen = *found, True
        self.text_ = model.text.with_tower(partial(open_text_tower, self.encoder_))
        self.head_, self.support_ = model.head.attach(self.text_), model.support
        self.prompts_, self.fold_heads_ = model.prompts, model.folds
        self.uncertainty_ = model.uncertainty
        self.class_names_ = model.text.labels


def _finite_logits(head: Head, features: NDArray[Any]) -> NDArray[Any]:
    """Logits (m, c) of features (m, d).

    Raises:
        ArtifactError: if one is not finite: finite weights of a damaged model may overflow.
    """
    logits = head.logits(features)
    if not np.isfinite(logits).all():
        raise ArtifactError(
            f"the model's arrays give scores that are not finite ({type(head).__name__}): copy it again, or fit again"
        )
    return logits


def _check_name(name: object) -> None:
    """Refuse what can't be the name of a class.

    Raises:
        InputError: if so.
    """
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"a class needs a name that is a text, and not blank; got {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name {name!r} has characters that can't be written: {error.reason}") from error
