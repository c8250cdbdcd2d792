"""`TextFeatures`: class names with their text embeddings and the encoder's logit scale and bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError, brief
from clipadapter.utils.formatting import check_names, format_list
from clipadapter.utils.prediction import DEFAULT_LOGIT_SCALE
from clipadapter.utils.towers import TextTower

Array = NDArray[Any]
Order = Literal["sorted", "given"]


class TextFeatures:
    """Class names in their order, and one unit text embedding per class; immutable.

    It is not array-like on purpose: scikit-learn slices every array-like argument of ``fit`` with as many rows as X.

    Args:
        labels: class names, each once.
        embeddings: (c, d) text embeddings, one row per class; stored as unit rows, in float64 if a float64 array was
            given, else in float32. A row of NaN is a class without text, known by its shots alone; it is stored as
            zeros.
        logit_scale: ``exp(logit_scale)`` of the encoder; 100 in CLIP's released checkpoints.
        logit_bias: logit bias of encoders trained with the sigmoid loss, else None.
        tower: opens the text tower that made the embeddings, for methods that train through it; it is neither saved
            nor copied to other processes.
        order: order of the classes of heads that are fitted with it, and so of the columns of their logits: "sorted",
            as scikit-learn's scorers expect, or "given", that of ``labels``. Multi-label heads always use that of
            ``labels``.
        prompts: (p_k, d) text embeddings of the single prompts of each class, for methods that weigh them
            (`Head.reads_prompts`); stored as unit rows in the dtype of ``embeddings``. None if they are not known. They
            are not saved with a model, which keeps the texts of the prompts.

    Raises:
        InputError: if a name occurs twice, the counts differ, a row is zero or not finite, a class with text has no
            prompt, or the order is unknown.

    >>> TextFeatures(["cat", "dog"], [[3.0, 0.0], [0.0, 2.0]]).embeddings
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """

    __slots__ = ("embeddings", "labels", "logit_bias", "logit_scale", "order", "prompts", "tower")

    labels: tuple[str, ...]
    embeddings: Array
    logit_scale: float
    logit_bias: float | None
    tower: Callable[[], TextTower] | None
    order: Order
    prompts: tuple[Array, ...] | None

    def __init__(
        self,
        labels: Sequence[str],
        embeddings: ArrayLike,
        logit_scale: float = DEFAULT_LOGIT_SCALE,
        logit_bias: float | None = None,
        tower: Callable[[], TextTower] | None = None,
        order: Order = "sorted",
        prompts: Sequence[ArrayLike] | None = None,
    ) -> None:
        names = tuple(str(label) for label in check_names(labels))
        rows = np.asarray(embeddings, dtype=np.float64)
        if rows.ndim != 2 or len(rows) != len(names):
            raise InputError(f"class text needs one row for each of {len(names)} names, but has shape {rows.shape}")
        if len(set(names)) != len(names):
            duplicates = sorted({name for name in names if names.count(name) > 1})
            raise InputError(f"class names must differ, but these occur more than once: {format_list(duplicates)}")
        absent: Array = np.asarray(np.isnan(rows).all(axis=1))
        rows = np.where(absent[:, None], 1.0, rows)
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(rows).all() or not (norm > 0).all():
            bad = [names[i] for i in np.flatnonzero(~(np.isfinite(norm[:, 0]) & (norm[:, 0] > 0)))]
            raise InputError(f"class text of {format_list(bad)} is zero or not finite")
        if not logit_scale > 0:
            raise InputError(f"logit_scale must be positive, but is {logit_scale}")
        if order not in ("sorted", "given"):
            raise InputError(f"the order of classes is 'sorted' or 'given', not {brief(order)}")
        is_float64 = isinstance(embeddings, np.ndarray) and embeddings.dtype == np.float64
        # A row that was normalised before has length one up to rounding; to divide again would round it once more.
        norm = np.where(np.abs(norm - 1) < (1e-15 if is_float64 else 1e-6), 1.0, norm)
        rows = np.where(absent[:, None], 0.0, rows)
        array = rows / norm if is_float64 else (rows / norm).astype(np.float32)
        array.flags.writeable = False
        unit_prompts = None if prompts is None else _unit_prompts(prompts, names, absent, array)
        values = (array, names, logit_bias, float(logit_scale), order, unit_prompts, tower)
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"TextFeatures is frozen: {name} can't be set")

    def __reduce__(self) -> tuple[Any, ...]:
        rows = _mark_absent(self.embeddings)
        return TextFeatures, (self.labels, rows, self.logit_scale, self.logit_bias, None, self.order, self.prompts)

    def _replace(self, **changes: Any) -> TextFeatures:
        """The same text features with other checked values; the arrays are shared, since prompts may be large."""
        other = object.__new__(TextFeatures)
        for name in self.__slots__:
            object.__setattr__(other, name, changes.get(name, getattr(self, name)))
        return other

    def _take(self, positions: Sequence[int], labels: Sequence[str]) -> TextFeatures:
        """The classes at these positions under these names."""
        embeddings = self.embeddings[list(positions)]
        embeddings.flags.writeable = False
        prompts = None if self.prompts is None else tuple(self.prompts[i] for i in positions)
        return self._replace(labels=tuple(labels), embeddings=embeddings, prompts=prompts)

    def with_tower(self, tower: Callable[[], TextTower] | None) -> TextFeatures:
        """The same text features with a function that opens the text tower that made them."""
        return self._replace(tower=tower)

    def with_order(self, order: Order) -> TextFeatures:
        """The same text features with another ``order``."""
        if order not in ("sorted", "given"):
            raise InputError(f"the order of classes is 'sorted' or 'given', not {brief(order)}")
        return self if order == self.order else self._replace(order=order)

    def with_prompts(self, prompts: Sequence[ArrayLike] | None) -> TextFeatures:
        """The same text features with the text embeddings (p_k, d) of the single prompts of each class.

        Raises:
            InputError: as the constructor.
        """
        if prompts is None:
            return self._replace(prompts=None)
        absent: Array = ~np.asarray(self.embeddings.any(axis=1))
        return self._replace(prompts=_unit_prompts(prompts, self.labels, absent, self.embeddings))

    def arranged(self, classes: Sequence[Any] | Array) -> TextFeatures:
        """The same text features with the classes in another order.

        Args:
            classes: all of them, by their names in ``labels``, or as numbers whose texts are ``labels``.

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
        positions = {name: i for i, name in enumerate(self.labels)}
        return self._take([positions[name] for name in names], names)

    def numbered(self) -> TextFeatures:
        """The same text features with classes called "0" to "c - 1", in the order of their sorted names.

        `numpy.unique` and scikit-learn's LabelEncoder number names like this, if there are shots of every class. Tools
        such as VotingClassifier pass such numbers to the head instead of names. The text tower is dropped, since it
        would encode the numbers.

        >>> TextFeatures(["dog", "cat"], [[0.0, 1.0], [1.0, 0.0]]).numbered().embeddings
        array([[1., 0.],
               [0., 1.]], dtype=float32)
        """
        numbers = [str(i) for i in range(len(self.labels))]
        return self.arranged(sorted(self.labels))._replace(labels=tuple(numbers), tower=None)

    @classmethod
    def of_stored_rows(
        cls,
        labels: Sequence[str],
        rows: Array,
        logit_scale: float = DEFAULT_LOGIT_SCALE,
        logit_bias: float | None = None,
        tower: Callable[[], TextTower] | None = None,
        order: Order = "sorted",
        prompts: Sequence[ArrayLike] | None = None,
    ) -> TextFeatures:
        """Text features from the ``embeddings`` of others, where a row of zeros is a class without text."""
        return cls(labels, _mark_absent(rows), logit_scale, logit_bias, tower, order, prompts)

    @classmethod
    def of_names(
        cls, labels: Sequence[str], width: int, logit_scale: float = DEFAULT_LOGIT_SCALE, order: Order = "sorted"
    ) -> TextFeatures:
        """Class names without text, for an encoder without a text tower.

        Args:
            labels: class names, each once.
            width: d, width of the features.
            logit_scale: factor of cosines.
            order: as for the constructor.

        >>> TextFeatures.of_names(["cat", "dog"], 4).has_text
        False
        """
        return cls(labels, np.full((len(labels), width), np.nan, np.float32), logit_scale, order=order)

    @property
    def has_text(self) -> bool:
        """Whether any class has text."""
        return bool(self.embeddings.any())

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes without text."""
        return tuple(name for name, row in zip(self.labels, self.embeddings, strict=True) if not row.any())

    @property
    def prompt_rows(self) -> tuple[Array, ...]:
        """``prompts``; if they are not known, the embedding of each class as its only prompt."""
        if self.prompts is not None:
            return self.prompts
        return tuple(row[None] if row.any() else row[None][:0] for row in self.embeddings)

    def __repr__(self) -> str:
        return f"TextFeatures({len(self.labels)} classes, width {self.embeddings.shape[1]})"


def _mark_absent(rows: Array) -> Array:
    """Embeddings (c, d) as the constructor takes them: rows of NaN for classes without text."""
    return np.where(rows.any(axis=1, keepdims=True), rows, np.nan).astype(rows.dtype)


def _unit_prompts(
    prompts: Sequence[ArrayLike], names: Sequence[str], absent: Array, embeddings: Array
) -> tuple[Array, ...]:
    """Checked unit rows (p_k, d) of each class in the dtype of the embeddings (c, d); unit rows of it are not copied.

    A class without text, marked in ``absent`` (c,), has no prompt.
    """
    if len(prompts) != len(names):
        raise InputError(f"prompts are one array for each of {len(names)} classes, but are {len(prompts)} arrays")
    dtype, d = embeddings.dtype, embeddings.shape[1]
    tolerance = 1e-15 if dtype == np.float64 else 1e-6
    checked = []
    for name, is_absent, given in zip(names, absent, prompts, strict=True):
        rows = np.asarray(given, dtype)
        if rows.ndim != 2 or rows.shape[1] != d or (len(rows) == 0) != bool(is_absent):
            count = "no row, as the class has no text," if is_absent else "one row or more"
            raise InputError(f"the prompts of '{name}' need {count} of width {d}, but have shape {rows.shape}")
        norm = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        if not (np.isfinite(norm).all() and (norm > 0).all()):
            raise InputError(f"a prompt of '{name}' is zero or not finite")
        if (np.abs(norm - 1) >= tolerance).any():
            rows = (rows / norm).astype(dtype)
        if rows is given and rows.flags.writeable:
            rows = rows.copy()
        rows.flags.writeable = False
        checked.append(rows)
    return tuple(checked)
