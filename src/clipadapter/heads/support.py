"""What comes into a head, checked: features, labels, classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_array, column_or_1d, validate_data
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.heads.text import TextFeatures
from clipadapter.split_types import EvaluationFeatures

Array = NDArray[Any]
_NUMBERS: dict[str, Callable[[str], float]] = {"i": int, "u": int, "f": float}
"""What reads a class name, by the kind of the labels' dtype."""


def as_matrix(X: ArrayLike) -> Array:
    """Checked (m, d) float array: float64 stays, all else becomes float32."""
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    array = check_array(X, dtype=[np.float64, np.float32], ensure_min_samples=1)
    return np.array(array) if not array.flags.writeable else np.ascontiguousarray(array)


def check_names(head: Any, X: ArrayLike, *, reset: bool = False) -> None:
    """Keep the names of a table's columns as ``feature_names_in_``, or compare them with those that are kept.

    Raises:
        ValueError: if they are others, or in another order, in scikit-learn's own words.
    """
    validate_data(head, X, reset=reset, skip_check_array=True, ensure_2d=False)


def check_width(head: Any, width: int) -> None:
    """Refuse features of another width than those of the fit.

    Raises:
        InputError: if so, in scikit-learn's own words: its checks and its users look for them.
    """
    if width != head.n_features_in_:
        raise InputError(
            f"X has {width} features, but {type(head).__name__} is expecting {head.n_features_in_} features as input"
        )


def in_blocks(rows: Array, block: int, answer: Callable[[Array], Array]) -> Array:
    """What is answered to each block of rows (m, d), in one array of m rows; m is 1 or more."""
    found: Array | None = None
    for start in range(0, len(rows), block):
        part = answer(rows[start : start + block])
        if len(part) == len(rows):
            return part
        found = np.empty((len(rows), *part.shape[1:]), part.dtype) if found is None else found
        found[start : start + block] = part
    assert found is not None
    return found


def as_views(X: ArrayLike) -> Array:
    """Checked (n, v, d) float array from (n, d) or (n, v, d), to be learned from."""
    if isinstance(X, EvaluationFeatures):
        raise InputError("these features are marked for evaluation: fit and select on shots, measure with bench.score")
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


def has_several(y: ArrayLike) -> bool:
    """Whether labels are given as a row of zeros and ones a picture, and not as one name a picture."""
    shape = y.shape if isinstance(y, Tensor) else np.asarray(y).shape
    return len(shape) == 2 and shape[1] > 1


def as_targets(y: ArrayLike, n: int, text: TextFeatures | None) -> tuple[Array, NDArray[np.int8]]:
    """Classes in order, and checked (n, c) zeros and ones, a column a class.

    Raises:
        InputError: if there is something else in it, or the counts differ.
    """
    targets = np.asarray(y.detach().cpu().numpy() if isinstance(y, Tensor) else y)
    if targets.dtype.kind not in "biuf" or not ((targets == 0) | (targets == 1)).all():
        raise InputError("several labels a picture are given as (n, c) zeros and ones, but y has something else in it")
    if len(targets) != n:
        raise InputError(f"X has {n} rows but y has labels of {len(targets)}")
    c = targets.shape[1]
    if text is not None and len(text.labels) != c:
        raise InputError(f"y has {c} columns but the class text has {len(text.labels)} classes: one column a class")
    classes = np.arange(c) if text is None else np.asarray(text.labels)
    return classes, targets.astype(np.int8)


def class_positions(labels: Array, text: TextFeatures | None) -> tuple[Array, NDArray[np.int64]]:
    """Classes in order, and the position of each label among them."""
    if text is None:
        classes, positions = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise InputError(f"a classifier needs two classes or more, but y has one class: {classes[0]}")
        return classes, positions.astype(np.int64)
    classes = text_classes(text, labels.dtype)
    positions = positions_among(labels, classes, "have no class text")
    if len(classes) < 2:
        raise InputError("a classifier needs two classes or more, but the class text has one class")
    return classes, positions


def text_classes(text: TextFeatures, dtype: np.dtype[Any]) -> Array:
    """The classes of class text in the type of the labels, sorted as `numpy.unique` does, unless it keeps its order.

    >>> text = TextFeatures(["10", "9"], [[1.0, 0.0], [0.0, 1.0]])
    >>> text_classes(text, np.dtype(np.int64))
    array([ 9, 10])
    >>> text_classes(text, np.dtype("<U2"))
    array(['10', '9'], dtype='<U2')
    """
    classes = names_as(text.labels, dtype)
    return classes if text.order == "given" else np.sort(classes)


def names_as(names: Sequence[str], dtype: np.dtype[Any]) -> Array:
    """Class names as values of the labels' type, if each name is the text of such a value; else as strings."""
    texts = np.asarray(names)
    if dtype.kind not in "biuf":
        return texts
    try:
        values = (texts == "True") if dtype.kind == "b" else np.array([_NUMBERS[dtype.kind](name) for name in names])
        found = values.astype(dtype)
    except (ValueError, OverflowError):
        return texts
    return found if tuple(map(str, found)) == tuple(names) else texts


def positions_among(labels: Array, classes: Array, fault: str = "are no class") -> NDArray[np.int64]:
    """The position of each label among classes.

    Raises:
        InputError: if one is not there; ``fault`` says what it lacks.
    """
    order = {str(label): i for i, label in enumerate(classes)}
    missing = sorted({str(label) for label in labels if str(label) not in order})
    if missing:
        raise InputError(
            f"these labels {fault}: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}; "
            f"known: {', '.join(map(str, classes[:5]))}{' ...' if len(order) > 5 else ''}"
        )
    return np.array([order[str(label)] for label in labels], dtype=np.int64)
