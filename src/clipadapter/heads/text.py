"""Class text: what heads know of the classes before they see a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError
from clipadapter.towers import TextTower

Array = NDArray[Any]
Order = Literal["sorted", "given"]


class TextFeatures:
    """Class names in their order, and one unit vector a class; frozen.

    It is no array on purpose: scikit-learn slices every array-like argument of ``fit`` that has as many rows as X.

    Args:
        labels: class names, each once.
        embeddings: (c, d) text features, one row a class; stored as unit rows, float32 unless a float64 array came. A
            row of NaN is a class without text, known by its shots alone; it is stored as zeros.
        logit_scale: ``exp(logit_scale)`` of the encoder; 100 is what CLIP's released checkpoints have.
        logit_bias: added to the logits by sigmoid-loss models, else None.
        tower: opens the text tower that made them, for methods that train through it; it is neither saved nor copied
            to other processes.
        order: of the classes of heads that are fitted with it, and so of the columns of their logits: "sorted", as
            scikit-learn has them and its scorers expect, or "given", as ``labels`` are. With several labels a picture
            the order is that of ``labels`` always.

    Raises:
        InputError: if a name occurs twice, the counts differ, a row is zero or not finite, or there is no such order.

    >>> TextFeatures(["cat", "dog"], [[3.0, 0.0], [0.0, 2.0]]).embeddings
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """

    __slots__ = ("embeddings", "labels", "logit_bias", "logit_scale", "order", "tower")

    labels: tuple[str, ...]
    embeddings: Array
    logit_scale: float
    logit_bias: float | None
    tower: Callable[[], TextTower] | None
    order: Order

    def __init__(
        self,
        labels: Sequence[str],
        embeddings: ArrayLike,
        logit_scale: float = 100.0,
        logit_bias: float | None = None,
        tower: Callable[[], TextTower] | None = None,
        order: Order = "sorted",
    ) -> None:
        names = tuple(str(label) for label in labels)
        rows = np.asarray(embeddings, dtype=np.float64)
        if rows.ndim != 2 or len(rows) != len(names):
            raise InputError(f"class text needs one row for each of {len(names)} names, but has shape {rows.shape}")
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InputError(f"class names must differ, but these occur more than once: {', '.join(twice)}")
        absent: Array = np.asarray(np.isnan(rows).all(axis=1))
        rows = np.where(absent[:, None], 1.0, rows)
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(rows).all() or not (norm > 0).all():
            bad = [names[i] for i in np.flatnonzero(~(np.isfinite(norm[:, 0]) & (norm[:, 0] > 0)))]
            raise InputError(f"class text of {', '.join(bad)} is zero or not finite")
        if not logit_scale > 0:
            raise InputError(f"logit_scale must be positive, but is {logit_scale}")
        if order not in ("sorted", "given"):
            raise InputError(f"the order of classes is 'sorted' or 'given', not {order!r}")
        exact = isinstance(embeddings, np.ndarray) and embeddings.dtype == np.float64
        # A row that was scaled before is of length one but for rounding: to divide again would round it once more.
        norm = np.where(np.abs(norm - 1) < (1e-15 if exact else 1e-6), 1.0, norm)
        rows = np.where(absent[:, None], 0.0, rows)
        array = rows / norm if exact else (rows / norm).astype(np.float32)
        array.flags.writeable = False
        values = (array, names, logit_bias, float(logit_scale), order, tower)
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"TextFeatures is frozen: {name} can't be set")

    def __reduce__(self) -> tuple[Any, ...]:
        return TextFeatures, (self.labels, self._rows(), self.logit_scale, self.logit_bias, None, self.order)

    def _rows(self) -> Array:
        """Text features as they are given: rows of NaN for classes without text."""
        given: Array = np.asarray(self.embeddings.any(axis=1))
        return np.where(given[:, None], self.embeddings, np.nan).astype(self.embeddings.dtype)

    def with_tower(self, tower: Callable[[], TextTower] | None) -> TextFeatures:
        """The same class text, with what opens the text tower that made it."""
        return TextFeatures(self.labels, self._rows(), self.logit_scale, self.logit_bias, tower, self.order)

    def with_order(self, order: Order) -> TextFeatures:
        """The same class text, with this order of the classes of heads; see ``order``."""
        if order == self.order:
            return self
        return TextFeatures(self.labels, self._rows(), self.logit_scale, self.logit_bias, self.tower, order)

    def arranged(self, classes: Sequence[Any] | Array) -> TextFeatures:
        """The text of the same classes in another order.

        Args:
            classes: all of them, as they are called in ``labels``, or as numbers whose texts ``labels`` are.

        Raises:
            InputError: if these are other classes.

        >>> TextFeatures(["dog", "cat"], [[0.0, 1.0], [1.0, 0.0]]).arranged(["cat", "dog"]).embeddings
        array([[1., 0.],
               [0., 1.]], dtype=float32)
        """
        names = tuple(map(str, classes))
        if names == self.labels:
            return self
        if sorted(names) != sorted(self.labels):
            raise InputError(
                f"class text of {', '.join(self.labels[:5])} is not that of the classes {', '.join(names[:5])}"
            )
        place = {name: i for i, name in enumerate(self.labels)}
        rows = self._rows()[[place[name] for name in names]]
        return TextFeatures(names, rows, self.logit_scale, self.logit_bias, self.tower, self.order)

    def numbered(self) -> TextFeatures:
        """The same text with classes called "0" to "c - 1", in the order of their sorted names.

        `numpy.unique` and scikit-learn's LabelEncoder number names so, if there are shots of every class. Tools such as
        VotingClassifier hand such numbers to the head instead of names. The text tower is left out: it would read the
        numbers.

        >>> TextFeatures(["dog", "cat"], [[0.0, 1.0], [1.0, 0.0]]).numbered().embeddings
        array([[1., 0.],
               [0., 1.]], dtype=float32)
        """
        rows = self.arranged(sorted(self.labels))._rows()
        return TextFeatures(
            [str(i) for i in range(len(rows))], rows, self.logit_scale, self.logit_bias, None, self.order
        )

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes without text."""
        return tuple(name for name, row in zip(self.labels, self.embeddings, strict=True) if not row.any())

    def __repr__(self) -> str:
        return f"TextFeatures({len(self.labels)} classes, width {self.embeddings.shape[1]})"
