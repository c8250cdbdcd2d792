"""Everyday changes of a fitted classifier, each a new version that can be undone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Self

from clipadapter.classifier._answering import Answering
from clipadapter.classifier._arrivals import How, arrived
from clipadapter.classifier._editing import Edit, edited
from clipadapter.classifier._pictures import Label, all_names, check_any, check_task, feature_set
from clipadapter.classifier._settings import settings_of
from clipadapter.classifier._towers import open_store
from clipadapter.classifier._tuned import encoders_of, facts_of_base
from clipadapter.data import class_prompts
from clipadapter.data.images import ImageSource
from clipadapter.encoders import Encoder, open_text_tower
from clipadapter.errors import InputError, UnknownNameError
from clipadapter.features import FeatureSet, encode_classes
from clipadapter.heads import TextFeatures
from clipadapter.persistence import History, Model
from clipadapter.registry import unknown


class Changing(Answering):
    """Part of `FewShotClassifier`: the fitted one learns on, without the pictures that it has learned from.

    Each change is as if the model had been fitted so from the start: exactly for heads with a closed form, and by
    training on from where it was for others (`Head.fit_from`). Calibration, thresholds and sets are learned anew.
    """

    text_: TextFeatures
    support_: FeatureSet
    skipped_: tuple[tuple[str, str], ...]
    """Pictures that the last change could not read, each with the reason."""
    prompts_: Mapping[str, Sequence[str]]
    cache: str | Path | None
    strict: bool
    device: str
    backend: str
    precision: str
    _encoder: Encoder
    _tuned: Encoder | None
    _chosen: bool
    _history: History | None

    @property
    @abstractmethod
    def encoder_(self) -> Encoder:
        """The open encoder."""

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
