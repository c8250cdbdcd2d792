"""What a head is: an estimator on frozen features, with the scikit-learn face and logits for every class.

The base does what every head needs once: it checks X, y and the class text, finds the classes, turns arrays into
tensors and back, and moves learned state to files. A method writes `_fit` and `_logits`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_array, check_is_fitted, column_or_1d
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import ArtifactError, InputError
from clipadapter.functional import unit

Array = NDArray[Any]


class ClassText:
    """Class names in their order, and one unit vector a class; frozen.

    It is no array on purpose: scikit-learn slices every array-like argument of ``fit`` that has as many rows as X.

    Args:
        labels: class names, each once; their order is the order of the logits.
        embeddings: (c, d) text features, one row a class; stored as unit rows, float32 unless a float64 array came.
        logit_scale: ``exp(logit_scale)`` of the encoder; 100 is what CLIP's released checkpoints have.
        logit_bias: added to the logits by sigmoid-loss models, else None.

    Raises:
        InputError: if a name occurs twice, the counts differ, or a row is zero or not finite.

    >>> ClassText(["cat", "dog"], [[3.0, 0.0], [0.0, 2.0]]).embeddings
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """

    __slots__ = ("embeddings", "labels", "logit_bias", "logit_scale")

    labels: tuple[str, ...]
    embeddings: Array
    logit_scale: float
    logit_bias: float | None

    def __init__(
        self,
        labels: Sequence[str],
        embeddings: ArrayLike,
        logit_scale: float = 100.0,
        logit_bias: float | None = None,
    ) -> None:
        names = tuple(str(label) for label in labels)
        rows = np.asarray(embeddings, dtype=np.float64)
        if rows.ndim != 2 or len(rows) != len(names):
            raise InputError(f"class text needs one row for each of {len(names)} names, but has shape {rows.shape}")
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InputError(f"class names must differ, but these occur more than once: {', '.join(twice)}")
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(rows).all() or not (norm > 0).all():
            bad = [names[i] for i in np.flatnonzero(~(np.isfinite(norm[:, 0]) & (norm[:, 0] > 0)))]
            raise InputError(f"class text of {', '.join(bad)} is zero or not finite")
        if not logit_scale > 0:
            raise InputError(f"logit_scale must be positive, but is {logit_scale}")
        exact = isinstance(embeddings, np.ndarray) and embeddings.dtype == np.float64
        array = rows / norm if exact else (rows / norm).astype(np.float32)
        array.flags.writeable = False
        for name, value in zip(self.__slots__, (array, names, logit_bias, float(logit_scale)), strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"ClassText is frozen: {name} can't be set")

    def __reduce__(self) -> tuple[Any, ...]:
        return ClassText, (self.labels, self.embeddings, self.logit_scale, self.logit_bias)

    def __repr__(self) -> str:
        return f"ClassText({len(self.labels)} classes, width {self.embeddings.shape[1]})"


@dataclass(frozen=True)
class Shots:
    """The labelled features a head is fitted to, as tensors, checked.

    Args:
        views: (n, v, d) raw features; view 0 is the plain picture, the others are augmented.
        labels: (n,) class positions, int64.
        n_classes: c, classes without a shot included.
        text: (c, d) unit class text, or None.
        scale: the encoder's ``exp(logit_scale)``; 100 if no text tells.
    """

    views: Tensor
    labels: Tensor
    n_classes: int
    text: Tensor | None
    scale: float

    @property
    def X(self) -> Tensor:
        """(n, d) raw features of the plain pictures."""
        return self.views[:, 0]

    @property
    def onehot(self) -> Tensor:
        """(n, c) one-hot labels in the dtype of the features."""
        return torch.nn.functional.one_hot(self.labels, self.n_classes).to(self.views.dtype)


class Head(ClassifierMixin, BaseEstimator, ABC):  # type: ignore[misc, unused-ignore]
    """Base of all heads.

    A subclass stores its parameters in ``__init__`` under their own names and does nothing else there, learns in
    `_fit` into attributes that end in ``_``, and computes (m, c) scores in `_logits`.
    """

    needs_text: ClassVar[bool] = False
    """True if `fit` can't do without class text."""

    classes_: Array
    n_features_in_: int

    @abstractmethod
    def _fit(self, shots: Shots) -> None:
        """Learn from checked tensors."""

    @abstractmethod
    def _logits(self, X: Tensor) -> Tensor:
        """(m, d) raw features to (m, c) logits."""

    def fit(self, X: ArrayLike, y: ArrayLike, text: ClassText | None = None) -> Self:
        """Learn from labelled features.

        Args:
            X: (n, d) raw features, or (n, v, d) with v views a picture, the plain one first.
            y: (n,) labels; names that occur in ``text.labels`` if class text is given.
            text: class names and their text vectors; also sets the order of the classes.

        Returns:
            The head itself.

        Raises:
            InputError: if shapes, widths or labels don't go together, or a feature is not finite.
        """
        views = _as_views(X)
        labels = _as_labels(y, len(views))
        if self.needs_text and text is None:
            raise InputError(f"{type(self).__name__} needs class text: call fit(X, y, text=ClassText(names, vectors))")
        if text is not None and text.embeddings.shape[1] != views.shape[2]:
            raise InputError(
                f"features have width {views.shape[2]} but class text has width {text.embeddings.shape[1]}: "
                "were they made by the same encoder?"
            )
        self.classes_, positions = _positions(labels, text)
        self.n_features_in_ = views.shape[2]
        tensor = torch.from_numpy(views)
        self._fit(
            Shots(
                views=tensor,
                labels=torch.from_numpy(positions),
                n_classes=len(self.classes_),
                text=None if text is None else unit(torch.from_numpy(text.embeddings.copy()).to(tensor.dtype)),
                scale=100.0 if text is None else text.logit_scale,
            )
        )
        return self

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
        check_is_fitted(self)
        rows = _as_matrix(X)
        if rows.shape[1] != self.n_features_in_:
            # scikit-learn's own words: its checks and its users look for them.
            raise InputError(
                f"X has {rows.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        with torch.inference_mode():
            return np.asarray(self._logits(torch.from_numpy(rows)).numpy())

    def predict(self, X: ArrayLike) -> Array:
        """The best class of each row of X (m, d), as labels (m,)."""
        logits = self.logits(X)
        return np.asarray(self.classes_[logits.argmax(axis=1)])

    def predict_proba(self, X: ArrayLike) -> Array:
        """Softmax of the logits: (m, c), rows sum to one."""
        logits = torch.from_numpy(self.logits(X)).double()
        return np.asarray(logits.softmax(dim=1).numpy())

    def state(self) -> dict[str, Array]:
        """What was learned, as arrays by name; ``classes_`` and ``n_features_in_`` are not among them.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
        """
        check_is_fitted(self)
        learned = {k: v for k, v in vars(self).items() if k.endswith("_") and k not in ("classes_", "n_features_in_")}
        return {k: v.numpy() if isinstance(v, Tensor) else np.asarray(v) for k, v in learned.items() if v is not None}

    def load_state(self, state: Mapping[str, Array], classes: Sequence[Any], width: int) -> Self:
        """Become the fitted head that `state` came from.

        Args:
            state: arrays by name.
            classes: labels in order.
            width: feature width d.

        Raises:
            ArtifactError: if the arrays do not make a working head: it must answer finite logits (1, c).
        """
        for name, value in state.items():
            if not name.endswith("_") or name.startswith("_") or hasattr(type(self), name):
                raise ArtifactError(f"the saved head has an array called {name!r}, which no head learns")
            array = np.array(value)
            setattr(self, name, array.item() if array.ndim == 0 else torch.from_numpy(array))
        self.classes_, self.n_features_in_ = np.asarray(classes), width
        try:
            probe = self.logits(np.ones((1, width), dtype=np.float32))
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:
            raise ArtifactError(f"the saved arrays don't fit a {type(self).__name__}: {error}") from error
        if probe.shape != (1, len(classes)) or not np.isfinite(probe).all():
            raise ArtifactError(
                f"the saved arrays of {type(self).__name__} give no finite logits of {len(classes)} classes"
            )
        return self


def _as_matrix(X: ArrayLike) -> Array:
    """Checked (m, d) float array: float64 stays, all else becomes float32."""
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    array = check_array(X, dtype=[np.float64, np.float32], ensure_min_samples=1)
    return np.array(array) if not array.flags.writeable else np.ascontiguousarray(array)


def _as_views(X: ArrayLike) -> Array:
    """Checked (n, v, d) float array from (n, d) or (n, v, d)."""
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    if getattr(X, "ndim", 2) != 3:
        return _as_matrix(X)[:, None]
    n, v, d = np.shape(X)
    return _as_matrix(np.asarray(X).reshape(n * v, d)).reshape(n, v, d)


def _as_labels(y: ArrayLike, n: int) -> Array:
    labels = column_or_1d(y, warn=True)
    if labels.dtype.kind == "f":
        assert_all_finite(labels, input_name="y")
    with warnings.catch_warnings():
        # One shot a class looks like regression to scikit-learn, which warns; here it is the ordinary case.
        warnings.simplefilter("ignore", UserWarning)
        check_classification_targets(labels)
    if len(labels) != n:
        raise InputError(f"X has {n} rows but y has {len(labels)} labels")
    return np.asarray(labels)


def _positions(labels: Array, text: ClassText | None) -> tuple[Array, NDArray[np.int64]]:
    """Classes in order, and the position of each label among them."""
    if text is None:
        classes, positions = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise InputError(f"a classifier needs two classes or more, but y has one class: {classes[0]}")
        return classes, positions.astype(np.int64)
    order = {label: i for i, label in enumerate(text.labels)}
    missing = sorted({str(label) for label in labels if str(label) not in order})
    if missing:
        raise InputError(
            f"these labels have no class text: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}; "
            f"known: {', '.join(text.labels[:5])}{' ...' if len(order) > 5 else ''}"
        )
    if len(order) < 2:
        raise InputError("a classifier needs two classes or more, but the class text has one")
    return np.asarray(text.labels), np.array([order[str(label)] for label in labels], dtype=np.int64)
