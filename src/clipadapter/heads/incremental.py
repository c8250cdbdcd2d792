"""Incremental heads: they learn further shots and classes without the earlier shots; exact ones also unlearn shots."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.heads.base import Head
from clipadapter.heads.estimator import check_is_fitted
from clipadapter.heads.support import (
    SupportSet,
    as_labels,
    check_feature_names,
    class_origins,
    names_to_dtype,
    remap_rows,
    text_classes,
)
from clipadapter.heads.text import TextFeatures
from clipadapter.utils.functional import unit
from clipadapter.utils.prediction import DEFAULT_LOGIT_SCALE

HAS_TEXT = "with_text_"  # attribute that only heads have which were fitted with text features
MAX_DISTANCE_OF_EQUAL = 2e-3
"""Largest distance between two unit features of one picture: the rounding differences of backends are below it."""


class IncrementalHead(Head):
    """Base class of heads that learn further shots without the earlier ones, by `partial_fit`.

    A subclass sets its sums over shots to zero in `_init_sums`, and adds shots in `_add_shots`. Before further shots
    are added, `_remap_sums` brings the tensors of ``class_sums`` into the order of the new classes. ``counts_`` (c,) is
    the number of shots of each class so far: classes without one are known by their text features alone.
    """

    exact: ClassVar[bool] = False
    """True if the result does not depend on the order of the shots; see `ExactIncrementalHead`."""
    update_needs: ClassVar[str] = ""
    """What to do if the head is not updatable."""

    class_sums: ClassVar[tuple[str, ...]] = ("sums_",)
    """Learned tensors with one row per class, for `_remap_sums`."""

    counts_: Tensor

    @property
    def is_updatable(self) -> bool:
        """Whether what `partial_fit` needs was stored: a parameter may prevent it."""
        return hasattr(self, "counts_")

    @property
    def has_text(self) -> bool:
        """Whether the head was fitted with text features."""
        return hasattr(self, HAS_TEXT)

    @abstractmethod
    def _init_sums(self, shots: SupportSet) -> None:
        """Set the sums to zero, for the classes and the width of these shots."""

    @abstractmethod
    def _add_shots(self, shots: SupportSet) -> None:
        """Learn from shots, labelled by positions among all classes, new ones too; ``counts_`` has them already."""

    def _remap_sums(self, origin: Tensor) -> None:
        """Bring the sums into another order of classes, from their earlier positions (c,), -1 for a new class.

        A class that is left out has no shots.
        """
        for name in self.class_sums:
            setattr(self, name, remap_rows(getattr(self, name), origin))

    def _fit(self, shots: SupportSet) -> None:
        self.counts_ = torch.bincount(shots.labels, minlength=shots.n_classes)
        self.__dict__.pop(HAS_TEXT, None)
        if shots.text is not None:
            setattr(self, HAS_TEXT, 1)
        self._init_sums(shots)
        self._add_shots(shots)

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        text: TextFeatures | None = None,
        classes: ArrayLike | None = None,
        blocks: Sequence[tuple[str, int]] | None = None,
    ) -> Self:
        """Learn from further shots, of known and of new classes; the first call is `fit`.

        Args:
            X: (n, d) or (n, v, d) raw features, as for `fit`.
            y: (n,) labels.
            text: of all classes, the known ones included. Required if `fit` got text features.
            classes: without text, all labels that y may have in this and later calls; by default labels are added
                when they first occur.
            blocks: as for `fit`; later calls take those of the first.

        Returns:
            The head itself.

        Raises:
            InputError: as `fit`; or if the text lacks a known class, or is missing.
        """
        if not hasattr(self, "classes_"):
            first = None if text is not None or classes is None else np.unique(np.asarray(classes))
            return self._fit_checked(X, y, text, None, blocks, first)
        previous_classes = self.classes_
        check_feature_names(self, X)
        if text is None:
            labels = as_labels(y, len(np.asarray(y))) if classes is None else np.asarray(classes)
            known = previous_classes.tolist()
            new = sorted({*labels.tolist()} - {*known})
            class_names = np.unique(np.asarray([*known, *new])) if new else previous_classes
        else:
            class_names = text_classes(text, previous_classes.dtype)
            text = text if text.has_text else None
        self._check_same_use_of_text(text)
        shots, all_classes = self._check_shots(X, y, text, classes=class_names)
        self._check_updatable()
        missing = sorted(set(map(str, previous_classes)) - set(map(str, all_classes)))
        if missing:
            raise InputError(f"the class text lacks classes that were learned: {', '.join(missing[:5])}")
        origin = class_origins(previous_classes, all_classes)
        self.classes_ = all_classes
        self.counts_ = torch.bincount(shots.labels, minlength=len(all_classes)) + remap_rows(self.counts_, origin)
        self._remap_sums(origin)
        self._add_shots(shots)
        return self

    def _check_updatable(self) -> None:
        if not self.is_updatable:
            raise InputError(f"this {type(self).__name__} does not keep what an update needs: {self.update_needs}")

    def _check_same_use_of_text(self, text: TextFeatures | None) -> None:
        if text is None and self.has_text:
            raise InputError(
                "this head was fitted with class text: pass the class text of all classes, text=TextFeatures(...)"
            )
        if text is not None and not self.has_text:
            raise InputError("this head was fitted without class text, so it can't be updated with it: leave text out")


class ExactIncrementalHead(IncrementalHead):
    """Base class of incremental heads that are a function of sums over the shots, which can also be subtracted.

    After any sequence of `partial_fit` and `unlearn` the head equals one that was fitted to the remaining shots. A
    subclass keeps its sums in `_init_sums`, `_update_sums` and `_remap_sums`, and computes its weights from them in
    `_solve_from_sums`.
    """

    exact = True

    @abstractmethod
    def _update_sums(self, shots: SupportSet, sign: int) -> None:
        """Add shots to the sums (sign 1), or subtract them (sign -1)."""

    @abstractmethod
    def _solve_from_sums(self, text: Tensor | None, scale: float) -> None:
        """Compute the weights from the sums, with unit text features (c, d) or None."""

    def _add_shots(self, shots: SupportSet) -> None:
        self._update_sums(shots, 1)
        self._solve_from_sums(shots.text, shots.scale)

    def unlearn(self, X: ArrayLike, y: ArrayLike, text: TextFeatures | None = None) -> Self:
        """Remove shots that the head was fitted to: it then equals a fit to the remaining ones.

        Args:
            X: (n, d) or (n, v, d) raw features, the same that were learned.
            y: (n,) the labels that they were learned with.
            text: of all classes, as for `partial_fit`.

        Returns:
            The head itself.

        Raises:
            InputError: if the head has learned fewer shots of a class, or no shot would remain.
        """
        check_is_fitted(self)
        check_feature_names(self, X)
        text = text if text is not None and text.has_text else None
        self._check_same_use_of_text(text)
        shots, _ = self._check_shots(X, y, text, classes=self.classes_)
        self._check_updatable()
        remaining = self.counts_ - torch.bincount(shots.labels, minlength=len(self.counts_))
        if (remaining < 0).any():
            k = int(remaining.argmin())
            raise InputError(f"the class '{self.classes_[k]}' has {self.counts_[k]} shots: it can't unlearn more")
        if not remaining.any():
            raise InputError("no shot would remain: a head needs at least one")
        self._update_sums(shots, -1)
        self.counts_ = remaining
        self._solve_from_sums(shots.text, shots.scale)
        return self

    def remap_classes(self, classes: Sequence[str], origin: Sequence[int], text: TextFeatures | None = None) -> Self:
        """Change the classes: reorder or rename them, add classes without a shot, or remove such classes.

        Args:
            classes: labels in their new order, which need not be sorted.
            origin: position of each in ``classes_``, -1 for a new class.
            text: of these classes, as for `partial_fit`.

        Returns:
            The head itself.

        Raises:
            InputError: if a class that has shots is removed, one occurs twice, or fewer than two remain.
        """
        check_is_fitted(self)
        self._check_updatable()
        self._check_same_use_of_text(text)
        origins = torch.as_tensor(list(origin), dtype=torch.int64)
        known = origins[origins >= 0]
        if len(classes) != len(origins) or len(known.unique()) != len(known) or len(classes) < 2:
            raise InputError("each class has one origin, no two the same, and there must be two classes or more")
        removed_counts = self.counts_.clone()
        removed_counts[known] = 0
        if removed_counts.any():
            raise InputError(f"the class '{self.classes_[int(removed_counts.argmax())]}' has shots: unlearn them first")
        if text is not None and tuple(text.labels) != tuple(map(str, classes)):
            raise InputError("the class text is of other classes, or in another order")
        self.counts_ = remap_rows(self.counts_, origins)
        self._remap_sums(origins)
        self.classes_ = names_to_dtype(tuple(map(str, classes)), self.classes_.dtype)
        vectors = None if text is None else unit(torch.from_numpy(text.embeddings.copy()))
        self._solve_from_sums(vectors, DEFAULT_LOGIT_SCALE if text is None else text.logit_scale)
        return self


def find_remaining_rows(rows: Tensor, labels: Tensor, removed: Tensor, removed_labels: Tensor) -> Tensor:
    """Row numbers (k,) of stored unit rows (n, d) that remain when others (m, d), equal up to rounding, are removed.

    Of equal rows of a class one per removed row goes.
    """
    cosines = removed.to(rows.dtype) @ rows.T
    cosines[removed_labels[:, None] != labels] = -torch.inf
    matched: list[int] = []
    for row, of_row in zip(removed, cosines, strict=True):
        of_row[matched] = -torch.inf
        nearest = int(of_row.argmax())
        if of_row[nearest] == -torch.inf or (rows[nearest] - row).norm() > MAX_DISTANCE_OF_EQUAL:
            raise InputError(
                "a shot to unlearn was not learned as one of its class: pass the features and the label that it was "
                "learned with"
            )
        matched.append(nearest)
    remains = torch.ones(len(rows), dtype=torch.bool)
    remains[matched] = False
    return torch.nonzero(remains).flatten()


def pack_lower_triangle(matrix: Tensor) -> Tensor:
    """The lower triangle (n (n + 1) / 2,) of a matrix (n, n), row by row: symmetric sums are saved so."""
    # numpy's boolean indexing takes a fifth of the time of torch's.
    return torch.from_numpy(matrix.numpy()[np.tri(len(matrix), dtype=bool)])


def unpack_lower_triangle(triangle: Tensor) -> Tensor:
    """A matrix (n, n) with this lower triangle and zeros above it, as a Cholesky factorisation reads it."""
    n = round((8 * len(triangle) + 1) ** 0.5) // 2
    matrix = torch.zeros(n, n, dtype=triangle.dtype)
    matrix.numpy()[np.tri(n, dtype=bool)] = triangle.numpy()
    return matrix
