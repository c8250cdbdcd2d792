"""Heads that learn from shots as they come: more of them, more classes and, where that is exact, fewer of both."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._given import checked_shots
from clipadapter.heads._shots import SupportSet
from clipadapter.heads._warm import carried, origin_of
from clipadapter.heads.base import Head
from clipadapter.heads.support import Array, as_labels, check_names, check_width, names_as, text_classes
from clipadapter.heads.text import TextFeatures

WITH_TEXT = "with_text_"


class Streaming(Head):
    """Base of heads that go on learning without the shots of before.

    A subclass learns in `_begin` what a first fit gives, and in `_more` what further shots add. ``counts_`` (c,) says
    how many shots of each class there were: classes without one are known by their text alone.
    """

    exact: ClassVar[bool] = False
    """True if the order in which shots come makes no difference: then see `Exact`."""

    counts_: Tensor

    @property
    def updatable(self) -> bool:
        """Whether it has what it goes on from: a parameter may say that it is not kept, an older model has none."""
        return hasattr(self, "counts_")

    @property
    def with_text(self) -> bool:
        """Whether it was fitted with class text."""
        return hasattr(self, WITH_TEXT)

    @abstractmethod
    def _begin(self, shots: SupportSet) -> None:
        """Learn from the first shots."""

    @abstractmethod
    def _more(self, shots: SupportSet, origin: Tensor) -> None:
        """Learn from further shots.

        Args:
            shots: their labels are positions among all classes that there are from now on.
            origin: (c,) where each of these classes was among those of before, -1 if it is new.
        """

    def _fit(self, shots: SupportSet) -> None:
        self.counts_ = torch.bincount(shots.labels, minlength=shots.n_classes)
        self.__dict__.pop(WITH_TEXT, None)
        if shots.text is not None:
            setattr(self, WITH_TEXT, 1)
        self._begin(shots)

    def partial_fit(
        self, X: ArrayLike, y: ArrayLike, text: TextFeatures | None = None, classes: ArrayLike | None = None
    ) -> Self:
        """Learn from more shots, of classes that are known and of new ones; the first call is `fit`.

        Args:
            X: (n, d) or (n, v, d) raw features, as for `fit`.
            y: (n,) labels.
            text: of all classes, those of before among them. Needed if `fit` got some.
            classes: all labels that there will be, where there is no text; else those that come are added.

        Returns:
            The head itself.

        Raises:
            InputError: as `fit`; or if the text lacks a class of before, or is missing.
        """
        if not hasattr(self, "classes_"):
            if text is not None or classes is None:
                return self.fit(X, y, text=text)
            check_names(self, X, reset=True)
            shots, every = checked_shots(self, X, y, None, classes=np.unique(np.asarray(classes)))
            self.classes_, self.n_features_in_ = every, shots.views.shape[2]
            self._fit(shots)
            return self
        before = self.classes_
        check_names(self, X)
        self._check_goes_on(text)
        known = _with_new(before, y, classes) if text is None else text_classes(text, before.dtype)
        shots, every = checked_shots(self, X, y, text, classes=known)
        self._check_width(shots)
        origin = origin_of(before, every)
        missing = sorted(set(map(str, before)) - set(map(str, every)))
        if missing:
            raise InputError(f"the class text lacks classes that were learned: {', '.join(missing[:5])}")
        counts = torch.bincount(shots.labels, minlength=len(every)) + carried(self.counts_, origin)
        self.classes_ = every
        self._more(shots, origin)
        self.counts_ = counts
        return self

    def _check_goes_on(self, text: TextFeatures | None) -> None:
        if text is None and self.with_text:
            raise InputError("this head was fitted with class text: give that of all classes, text=TextFeatures(...)")
        if text is not None and not self.with_text:
            raise InputError("this head was fitted without class text, so it can't go on with some: leave text out")

    def _check_width(self, shots: SupportSet) -> None:
        check_width(self, shots.views.shape[2])


class Exact(Streaming):
    """Base of streaming heads that are a function of sums over shots, or of the shots: what comes can also go.

    However shots came and went, the head equals one that is fitted to those that are left. A subclass keeps its sums up
    to date in `_clear`, `_gather` and `_arrange`, and makes of them in `_settle` what answers.
    """

    exact = True

    @abstractmethod
    def _clear(self, shots: SupportSet) -> None:
        """Sums over no shots, of as many classes and as wide as these."""

    @abstractmethod
    def _gather(self, shots: SupportSet, sign: int) -> None:
        """Add shots to the sums (sign 1), or take them out (sign -1)."""

    @abstractmethod
    def _arrange(self, origin: Tensor) -> None:
        """Bring the sums into another order of classes.

        Args:
            origin: (c,) where each class was, -1 for a new one. A class that is left out has no shots.
        """

    @abstractmethod
    def _settle(self, text: Tensor | None, scale: float) -> None:
        """What answers, from the sums.

        Args:
            text: (c, d) unit class text, or None.
            scale: the encoder's logit scale.
        """

    def _begin(self, shots: SupportSet) -> None:
        self._clear(shots)
        self._gather(shots, 1)
        self._settle(shots.text, shots.scale)

    def _more(self, shots: SupportSet, origin: Tensor) -> None:
        self._arrange(origin)
        self._gather(shots, 1)
        self.counts_ = torch.bincount(shots.labels, minlength=len(origin)) + carried(self.counts_, origin)
        self._settle(shots.text, shots.scale)

    def unlearn(self, X: ArrayLike, y: ArrayLike, text: TextFeatures | None = None) -> Self:
        """Become what it would be had it never seen some shots; they must be among those that it was fitted to.

        Args:
            X: (n, d) or (n, v, d) raw features, the same that were learned.
            y: (n,) the labels that they were learned with.
            text: of all classes, as for `partial_fit`.

        Returns:
            The head itself.

        Raises:
            InputError: if it has learned fewer shots of a class, or none would be left.
        """
        check_is_fitted(self)
        check_names(self, X)
        self._check_goes_on(text)
        shots, _ = checked_shots(self, X, y, text, classes=self.classes_)
        self._check_width(shots)
        left = self.counts_ - torch.bincount(shots.labels, minlength=len(self.counts_))
        if (left < 0).any():
            name = self.classes_[int(left.argmin())]
            raise InputError(f"the class '{name}' has {self.counts_[left.argmin()]} shots: so many can't be taken out")
        if not left.any():
            raise InputError("no shot would be left: a head needs some")
        self._gather(shots, -1)
        self.counts_ = left
        self._settle(shots.text, shots.scale)
        return self

    def without(
        self, X: ArrayLike, y: ArrayLike, held: Array, text: TextFeatures | None = None, *, chosen: bool = True
    ) -> Self:
        """As `Head.without`, by `unlearn` where few shots are left out."""
        if not self.updatable or 2 * len(held) > len(np.asarray(y)):
            return super().without(X, y, held, text, chosen=chosen)
        return copy.copy(self).unlearn(np.asarray(X)[held], np.asarray(y)[held], text)  # nothing is learned in place

    def rearrange(self, classes: Sequence[str], origin: Sequence[int], text: TextFeatures | None = None) -> Self:
        """Answer for other classes: in another order, renamed, new ones without a shot, or fewer.

        Args:
            classes: labels in their new order, which need not be sorted.
            origin: where each was among ``classes_``, -1 for a new one.
            text: of these classes, as for `partial_fit`.

        Returns:
            The head itself.

        Raises:
            InputError: if a class that has shots is left out, one is there twice, or fewer than two are left.
        """
        check_is_fitted(self)
        self._check_goes_on(text)
        places = torch.as_tensor(list(origin), dtype=torch.int64)
        kept = places[places >= 0]
        if len(classes) != len(places) or len(kept.unique()) != len(kept) or len(classes) < 2:
            raise InputError("each class has one origin, no two the same, and there must be two classes or more")
        gone = self.counts_.clone()
        gone[kept] = 0
        if gone.any():
            raise InputError(f"the class '{self.classes_[int(gone.argmax())]}' has shots: unlearn them first")
        if text is not None and tuple(text.labels) != tuple(map(str, classes)):
            raise InputError("the class text is of other classes, or in another order")
        self.counts_ = carried(self.counts_, places)
        self._arrange(places)
        self.classes_ = names_as(tuple(map(str, classes)), self.classes_.dtype)
        vectors = None if text is None else unit(torch.from_numpy(text.embeddings.copy()))
        self._settle(vectors, 100.0 if text is None else text.logit_scale)
        return self


def _with_new(before: Array, y: ArrayLike, classes: ArrayLike | None) -> Array:
    """Classes of before and new ones, sorted; those of before in their order if no new one comes."""
    labels = as_labels(y, len(np.asarray(y))) if classes is None else np.asarray(classes)
    known = set(before.tolist())
    fresh = [label for label in np.unique(labels) if label not in known]
    return np.unique(np.asarray([*before.tolist(), *fresh])) if fresh else before
