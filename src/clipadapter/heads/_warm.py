"""Fits that begin where an earlier one ended, of classes that may have changed in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.heads.text import TextFeatures

if TYPE_CHECKING:
    from clipadapter.heads.base import Head

Array = NDArray[Any]


class WarmStart:
    """Part of `Head`."""

    warm: ClassVar[bool] = False
    """True if `fit_from` begins where an earlier fit ended; a head that does not fits anew."""
    _before: Any = None
    """While `fit_from` runs: the earlier head."""
    _whole: Any = None
    """While `without` fits a part of the shots: the head fitted to all, if what that chose among them holds."""

    @property
    def went_on(self) -> bool:
        """Whether the last fit began where an earlier one ended."""
        return "changed_" in vars(self)

    def fit_from(self, before: Head, X: ArrayLike, y: ArrayLike, text: TextFeatures | None = None) -> Self:
        """`fit`, in less time: from what an earlier fit learned, if the head is `warm`.

        All shots are given, those of before too. Heads with one best answer end where `fit` does, others near it.

        Args:
            before: a fitted head of the same class, whose classes may be others, and in another order.
            X: as for `fit`.
            y: as for `fit`.
            text: as for `fit`.

        Returns:
            The head itself.

        Raises:
            InputError: as `fit`; or if the earlier head is of another class.
        """
        assert hasattr(self, "fit")
        if type(before) is not type(self) or not hasattr(before, "classes_"):
            raise InputError(f"{type(self).__name__} goes on from a fitted one, not from {type(before).__name__}")
        self._before = before if self.warm else None
        try:
            found: Self = self.fit(X, y, text=text)
            return found
        finally:
            self.__dict__.pop("_before", None)

    def without(
        self, X: ArrayLike, y: ArrayLike, held: Array, text: TextFeatures | None = None, *, chosen: bool = True
    ) -> Self:
        """The fitted head as it would be without some of its shots; it stays as it is.

        Args:
            X: all that it was fitted to.
            y: as for `fit`.
            held: (h,) rows that are left out.
            text: as for `fit`.
            chosen: True if one number that it chose among all its shots, a ratio or a penalty, holds for the others
                too; to search it again may take several times as long as the fit with it.

        Raises:
            InputError: as `fit`.
        """
        train = np.setdiff1d(np.arange(len(np.asarray(y))), held)
        found: Self = clone(self)
        found._whole = self if chosen else None
        try:
            fitted: Self = found.fit(np.asarray(X)[train], np.asarray(y)[train], text=text)  # type: ignore[attr-defined]
            return fitted
        finally:
            found.__dict__.pop("_whole", None)


def carried(rows: Tensor, origin: Tensor) -> Tensor:
    """Rows (c, ...) in another order of classes; zeros for new ones.

    Args:
        rows: one a class, of before.
        origin: (k,) where each class was, -1 for a new one.

    >>> carried(torch.tensor([[1.0], [2.0]]), torch.tensor([1, -1, 0])).flatten()
    tensor([2., 0., 1.])
    """
    found = rows.new_zeros(len(origin), *rows.shape[1:])
    known = origin >= 0
    found[known] = rows[origin[known]]
    return found


def origin_of(before: Array, every: Array) -> Tensor:
    """(k,) where each class was among those of before, -1 for a new one.

    >>> origin_of(np.array(["cat", "dog"]), np.array(["ant", "dog"]))
    tensor([-1,  1])
    """
    place = {str(name): i for i, name in enumerate(before)}
    return torch.tensor([place.get(str(name), -1) for name in every])
