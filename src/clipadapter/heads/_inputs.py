"""What comes into a head, checked: features, labels, classes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_array, column_or_1d
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.heads._text import ClassText
from clipadapter.sealed import SealedArray

Array = NDArray[Any]


def as_matrix(X: ArrayLike) -> Array:
    """Checked (m, d) float array: float64 stays, all else becomes float32."""
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    array = check_array(X, dtype=[np.float64, np.float32], ensure_min_samples=1)
    return np.array(array) if not array.flags.writeable else np.ascontiguousarray(array)


def as_views(X: ArrayLike) -> Array:
    """Checked (n, v, d) float array from (n, d) or (n, v, d), to be learned from."""
    if isinstance(X, SealedArray):
        raise InputError(
            "these features are a test part (they are sealed): fit and select on shots, measure with bench.score"
        )
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    if getattr(X, "ndim", 2) != 3:
        return as_matrix(X)[:, None]
    n, v, d = np.shape(X)
    return as_matrix(np.asarray(X).reshape(n * v, d)).reshape(n, v, d)


def as_labels(y: ArrayLike, n: int) -> Array:
    """Checked (n,) labels."""
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


def class_positions(labels: Array, text: ClassText | None) -> tuple[Array, NDArray[np.int64]]:
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
