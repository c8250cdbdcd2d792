"""What a head is: an estimator on frozen features, with the scikit-learn face and logits for every class.

The base does what every head needs once: it checks X, y and the class text, finds the classes, turns arrays into
tensors and back, and moves learned state to files. A method writes `_fit` and `_logits`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._given import checked_shots
from clipadapter.heads._judged import Judged
from clipadapter.heads._shots import SupportSet as SupportSet
from clipadapter.heads._state import check_answers, learned_arrays, take_over
from clipadapter.heads._text_part import Scores, TextPart
from clipadapter.heads._warm import WarmStart
from clipadapter.heads.support import Array, as_matrix, check_names, check_width, in_blocks, names_as, text_classes
from clipadapter.heads.text import TextFeatures
from clipadapter.registry import unknown

Preset = Mapping[str, Any]

RECIPES = ("official", "paper")
"""Recipes that a head may have, each a class method of this name: that of the authors' code, and that of the paper."""
SEVERAL = "multilabel_"
"""Name of the number that a head has which was fitted to several labels a picture."""
AT_ONCE = 2**24
"""Numbers that a head may hold beside each other for the rows it answers at a time: 64 MB in float32."""


class Head(TextPart, Judged, WarmStart, ClassifierMixin, BaseEstimator, ABC):  # type: ignore[misc, unused-ignore]
    """Base of all heads.

    A subclass stores its parameters in ``__init__`` under their own names and does nothing else there, learns in
    `_fit` into attributes that end in ``_``, and computes (m, c) scores in `_logits`. That gets X in blocks of rows, so
    that what it holds by the way is bounded; see `_numbers_per_row`.
    """

    needs_text: ClassVar[bool] = False
    """True if `fit` can't do without class text."""
    transductive: ClassVar[bool] = False
    """True if `fit` also takes the pictures that are to be classified, without labels."""
    two_encoders: ClassVar[bool] = False
    """True if X may be wider than class text: the columns after the text's width are a second encoder's features."""
    needs_tower: ClassVar[bool] = False
    """True if `fit` trains through the text tower that made the class text."""
    answers_by_tower: ClassVar[bool] = False
    """True if answers go through the text tower too, so that a head that was loaded needs `attach`."""
    reads_unprojected: ClassVar[bool] = False
    """True if the columns of X after the text's width are features before the image tower's projection."""
    tunes_encoder: ClassVar[bool] = False
    """True if the encoder itself is changed before features are made; see `clipadapter.tuners`."""
    multilabel: ClassVar[bool] = False
    """True if pictures may have several labels, or none; see `fit`."""
    presets: ClassVar[Mapping[str, Preset]] = {}
    """Published parameters by the name of a data set; see `preset`."""
    preset_note: ClassVar[str] = "It is not stated how these values were found."
    """What the values of `presets` are: those that the authors used, or where their search starts, and on what data."""

    classes_: Array
    n_features_in_: int
    feature_names_in_: Array
    """(d,) names of the columns of X, if `fit` got a table such as a pandas DataFrame; it is not saved."""

    @abstractmethod
    def _fit(self, shots: SupportSet) -> None:
        """Learn from checked tensors."""

    @abstractmethod
    def _logits(self, X: Tensor) -> Tensor:
        """(m, d) raw features to (m, c) logits, each row's by itself."""

    def _numbers_per_row(self) -> int:
        """How many numbers `_logits` holds for each row: it gets as many rows at a time as make 2^24.

        Unless a head says otherwise: its feature, its logits, and one for each row of the longest array that was
        learned, since a head that keeps its shots compares them with each row.
        """
        learned = (len(v) for k, v in vars(self).items() if k.endswith("_") and isinstance(v, Tensor) and v.ndim)
        return self.n_features_in_ + len(self.classes_) + max(learned, default=0)

    def _leave_one_out(self, shots: SupportSet) -> Tensor | None:
        """(n, c) logits of each shot's plain view by this head fitted to all other shots, if a closed form gives them.

        It must equal refitting n times; None, the default, says that there is no closed form.
        """
        return None

    def planned_epochs(self, labels: Tensor) -> int | None:
        """How many passes over the shots `fit` will make, so that each can have an augmented view of its own.

        Heads that train by `minimise` answer with `Recipe.passes`. None, the default, is for heads that make no passes,
        and for those that choose the view of each step in another way: these take no ``views="per-epoch"``. A fit
        to fewer shots, such as that of a fold, may make more passes: it then draws views at random.

        Args:
            labels: (n,) class positions of the shots; -1 for each where pictures have several labels.
        """
        return None

    def _text_width(self) -> int:
        """Width of class text: that of X, unless a head reads columns that text has not."""
        return self.n_features_in_

    def _for_text(self, text: Tensor, scale: float) -> None:
        """Answer for the classes of this text (c, d) from now on, by what was learned; only heads that can."""
        raise InputError(f"{type(self).__name__} knows only the classes that it was fitted to")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The head with the values that its authors published for one data set.

        ``preset_note`` of the class says what these values are: those that the authors used, or those at which their
        search starts. They were chosen for this data set, often on validation or test pictures: use them to repeat a
        paper, not for a fair comparison. ``clipadapter heads NAME`` prints the note.

        Args:
            name: of the data set, such as "dtd".
            changes: parameters to set otherwise.

        Raises:
            UnknownNameError: if the head has no such preset.
        """
        if name not in cls.presets:
            raise unknown(f"preset of {cls.__name__}", name, sorted(cls.presets))
        return cls(**{**cls.presets[name], **changes})

    @classmethod
    def recipes(cls) -> tuple[str, ...]:
        """The recipes that this head has: "official" is that of the authors' code, "paper" that of the paper.

        >>> from clipadapter.heads.clip_adapter import ClipAdapter
        >>> ClipAdapter.recipes()
        ('official', 'paper')
        """
        return tuple(name for name in RECIPES if hasattr(cls, name))

    @classmethod
    def from_recipe(cls, name: str, **changes: Any) -> Self:
        """The head with one of its `recipes`.

        Args:
            name: "official" or "paper".
            changes: parameters to set otherwise.

        Raises:
            UnknownNameError: if the head has no such recipe.
        """
        if name not in cls.recipes():
            raise unknown(f"recipe of {cls.__name__}", name, list(cls.recipes()))
        head: Self = getattr(cls, name)(**changes)
        return head

    def fit(
        self, X: ArrayLike, y: ArrayLike, text: TextFeatures | None = None, unlabelled: ArrayLike | None = None
    ) -> Self:
        """Learn from labelled features.

        Args:
            X: (n, d) raw features, or (n, v, d) with v views a picture, the plain one first.
            y: (n,) labels; names that occur in ``text.labels`` if class text is given, or numbers whose texts do.
                ``classes_`` are the classes in the type of y, sorted (see `TextFeatures.order`). Or (n, c) zeros and
                ones, one column per class, where a picture has several labels or none: then each class is a binary
                problem, and ``classes_`` are the names of the class text in its order, or 0 to c - 1.
            text: class names and their text vectors.
            unlabelled: (u, d) raw features of the pictures to be classified; transductive heads need them, others
                refuse them.

        Returns:
            The head itself.

        Raises:
            InputError: if shapes, widths or labels don't go together, or a feature is not finite.
        """
        check_names(self, X, reset=True)
        shots, classes = checked_shots(self, X, y, text, unlabelled)
        self.classes_, self.n_features_in_ = classes, shots.views.shape[2]
        # A number that is there or not: it is saved among what was learned, and single-label models have no such array.
        self.__dict__.pop(SEVERAL, None)
        if shots.targets is not None:
            setattr(self, SEVERAL, 1)
        self._fit(shots)
        return self

    @property
    def task_(self) -> str:
        """What it was fitted to: "single-label", or "multilabel" for several labels a picture."""
        check_is_fitted(self)
        return "multilabel" if SEVERAL in vars(self) else "single-label"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = self.multilabel
        return tags

    def for_classes(self, text: TextFeatures) -> Self:
        """A copy of the fitted head that answers for other classes, from their class text alone.

        What a head has learned about features goes with it (base-to-new and cross-dataset protocols).

        Args:
            text: of the classes to answer for; they are ordered as by `fit`.

        Raises:
            InputError: if what the head learns is bound to the classes it was fitted to, or the widths differ.
            sklearn.exceptions.NotFittedError: before `fit`.
        """
        check_is_fitted(self)
        width, expected = text.embeddings.shape[1], self._text_width()
        if width != expected:
            raise InputError(f"class text has width {width}, but the head's features have {expected}")
        if text.absent:
            raise InputError(f"these classes have no text: {', '.join(text.absent)}")
        other = copy.copy(self)
        if self.task_ == "single-label":
            text = text.arranged(text_classes(text, self.classes_.dtype))
        other.classes_ = names_as(text.labels, self.classes_.dtype)
        other._for_text(unit(torch.from_numpy(text.embeddings.copy())), text.logit_scale)
        return other

    def leave_one_out(self, X: ArrayLike, y: ArrayLike, text: TextFeatures | None = None) -> Array | None:
        """Logits (n, c) of each shot by this head fitted to all others; None without a closed form, or several labels.

        Args:
            X: as for `fit`.
            y: as for `fit`.
            text: as for `fit`.

        Raises:
            InputError: as `fit`.
        """
        shots = checked_shots(self, X, y, text, None)[0]
        if shots.targets is not None:
            return None
        with torch.inference_mode():
            found = self._leave_one_out(shots)
        return None if found is None else np.asarray(found.numpy())

    def logits(self, X: ArrayLike) -> Array:
        """Scores of every class.

        Args:
            X: (m, d) raw features.

        Returns:
            (m, c), columns in the order of ``classes_``.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            InputError: if the width differs from that in `fit`, or a feature is not finite.
        """
        return self._by_block(X, lambda logits: logits)

    def predict(self, X: ArrayLike) -> Array:
        """The best class of each row of X (m, d), as labels (m,); several labels as (m, c) zeros and ones.

        Several labels are those with a probability above 0.5; see `clipadapter.uncertainty` for learned thresholds.
        """
        if self.task_ == "multilabel":
            return self._by_block(X, lambda logits: (logits > 0).astype(np.int64))
        best = self._by_block(X, lambda logits: logits.argmax(axis=1))
        return np.asarray(self.classes_[best])

    def predict_proba(self, X: ArrayLike) -> Array:
        """Softmax of the logits: (m, c) float64, rows sum to one; with several labels the sigmoid of each."""
        if self.task_ == "multilabel":
            return self._by_block(X, lambda logits: torch.from_numpy(logits).double().sigmoid().numpy())
        return self._by_block(X, lambda logits: torch.from_numpy(logits).double().softmax(dim=1).numpy())

    def predict_log_proba(self, X: ArrayLike) -> Array:
        """Natural logarithm of `predict_proba` (m, c), which stays finite where a probability rounds to zero."""
        if self.task_ == "multilabel":
            return self._by_block(X, lambda logits: logsigmoid(torch.from_numpy(logits).double()).numpy())
        return self._by_block(X, lambda logits: torch.from_numpy(logits).double().log_softmax(dim=1).numpy())

    def _by_block(self, X: ArrayLike, answer: Callable[[Array], Array], scores: Scores | None = None) -> Array:
        """What is made of the logits, or other scores, (b, c) of each block of rows of X (m, d), in one array."""
        check_is_fitted(self)
        check_names(self, X)
        rows = as_matrix(X)
        check_width(self, rows.shape[1])
        block = max(1, AT_ONCE // self._numbers_per_row())
        with torch.inference_mode():
            of = scores or self._logits
            return in_blocks(rows, block, lambda part: answer(of(torch.from_numpy(part)).numpy()))

    def state(self) -> dict[str, Array]:
        """What was learned, as arrays by name; ``classes_`` and ``n_features_in_`` are not among them.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
        """
        check_is_fitted(self)
        return learned_arrays(self)

    def attach(self, text: TextFeatures) -> Self:
        """Give a head that was loaded the text tower, if it answers through it; others do nothing.

        Args:
            text: of the head's classes, from `encode_classes`.

        Raises:
            InputError: if the class text does not open a text tower, or is that of other classes.
        """
        return self

    def load_state(self, state: Mapping[str, Array], classes: Sequence[Any], width: int) -> Self:
        """Become the fitted head that `state` came from.

        Args:
            state: arrays by name.
            classes: labels in order.
            width: feature width d.

        Raises:
            ArtifactError: if the arrays do not make a working head: it must answer finite logits (1, c).
        """
        self._set_state(state, classes, width)
        check_answers(self)
        return self

    def _set_state(self, state: Mapping[str, Array], classes: Sequence[Any], width: int) -> None:
        """Take over saved arrays, unlooked at.

        Raises:
            ArtifactError: if one has a name that no head learns.
        """
        take_over(self, state)
        self.classes_, self.n_features_in_ = np.asarray(classes), width
