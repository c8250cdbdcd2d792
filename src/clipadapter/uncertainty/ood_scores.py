"""Scores of out-of-distribution detection, of pictures and of held-out shots.

All scores are higher for pictures that are farther from the classes. Letters: m pictures, n shots, c classes, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.uncertainty.class_gaussians import ClassGaussians, fit_class_gaussians
from clipadapter.utils.prediction import DEFAULT_LOGIT_SCALE, unit_rows

Array = NDArray[Any]
Scores = NDArray[np.float64]


def log_sum_exp(x: Array) -> Scores:
    """Logarithm of the sum of exp over each row; -inf adds nothing.

    >>> log_sum_exp(np.array([[0.0, -np.inf], [1000.0, 1000.0]]))
    array([   0.        , 1000.69314718])
    """
    top = x.max(axis=1)
    finite = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):  # of a row of -inf only
        return np.asarray(finite + np.log(np.exp(x - finite[:, None]).sum(axis=1)))


def without_own(values: Array, labels: Array) -> Array:
    """A copy of (n, c) with -inf for each row's own class: it simulates pictures of none of the classes."""
    other = np.array(values, dtype=np.float64)
    other[np.arange(len(labels)), labels] = -np.inf
    return other


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """The features that scores compare a picture with. A field is None if it is not available."""

    gaussians: ClassGaussians | None = None  # class means and covariance
    text: Array | None = None  # (c, d) unit text features of the classes
    negative_labels: Array | None = None  # (k, d) unit text features of names of things that are none of the classes
    outliers: Array | None = None  # (b, d) unit features of pictures of none of the classes
    scale: float = DEFAULT_LOGIT_SCALE  # logit scale of the encoder

    @property
    def width(self) -> int | None:
        """d, or None if the bank is empty."""
        means = None if self.gaussians is None else self.gaussians.means
        arrays = (means, self.text, self.negative_labels, self.outliers)
        return next((int(each.shape[1]) for each in arrays if each is not None), None)

    @property
    def classes(self) -> int | None:
        """c, or None if the bank has neither class means nor class text."""
        means = None if self.gaussians is None else self.gaussians.means
        return next((len(each) for each in (means, self.text) if each is not None), None)

    def restrict(self, names: Sequence[str]) -> MemoryBank:
        """A copy with only what the scores of these names need, as float32."""
        needed = {attribute for name in names for attribute in SCORES[name].arrays}
        arrays = {name: getattr(self, name).astype(np.float32, order="C") for name in needed - {"gaussians"}}
        gaussians = self.gaussians.single() if self.gaussians and "gaussians" in needed else None
        return MemoryBank(gaussians, **arrays, scale=self.scale)


@dataclass(frozen=True, eq=False)
class HeldOutShots:
    """The shots with out-of-fold logits and leave-one-out distances; some of them, if there are very many."""

    rows: Array  # (n, d) unit features
    labels: Array  # (n,) class positions
    logits: Array | None  # (n, c) out-of-fold, NaN rows where a shot was not held out
    distances: Array  # (n, c) leave-one-out squared Mahalanobis distances; NaN for the only shot of a class
    counts: Array  # (c,) shots of each class among all shots


@dataclass(frozen=True, eq=False)
class Score:
    """One out-of-distribution score. Its functions get a memory bank whose ``arrays`` are not None."""

    reason: str
    """What is said of a picture with a high score; "than 90 % of the shots are" follows."""
    of_pictures: Callable[[Any, Array, Array], Scores]
    """Scores (m,) from a memory bank, unit features (m, d) and logits (m, c)."""
    of_shots: Callable[[Any, Any], tuple[Array, Array]]
    """Scores (n,) of held-out shots, and the same as if the shot's own class did not exist, which simulates pictures of
    none of the classes. NaN where a shot is the only one of its class, or has no out-of-fold logits."""
    arrays: tuple[str, ...] = ()
    """Attributes of `MemoryBank` that it needs."""
    compares_with_shots: bool = False
    """Whether it compares a picture with shots: the only shot of a class can be compared with other classes only."""


def _minus_largest(values: Array) -> Scores:
    return np.asarray(-values.max(axis=1))


def _shots_by_logits(memory: Any, shots: HeldOutShots) -> tuple[Array, Array]:
    assert shots.logits is not None
    return _minus_largest(shots.logits), _minus_largest(without_own(shots.logits, shots.labels))


def _negative_labels(memory: Any, rows: Array, cosines: Array) -> Scores:
    """Logarithm of the mass of the negative labels over the mass of the classes, by exp of scaled cosines.

    NegLabel's score (Jiang et al. 2024, eq. 5, https://arxiv.org/abs/2403.20078) is one over one plus exp of it: the
    order is the same, but it doesn't saturate.
    """
    return log_sum_exp(memory.scale * (rows @ memory.negative_labels.T)) - log_sum_exp(memory.scale * cosines)


def _text_score(function: Callable[[Any, Array, Array], Scores], reason: str, arrays: tuple[str, ...]) -> Score:
    """A score of a memory bank, unit features (m, d) and their cosines to the class text (m, c)."""

    def of_pictures(memory: Any, rows: Array, logits: Array) -> Scores:
        rows = rows.astype(memory.text.dtype)  # numpy would convert the text of all classes instead
        return function(memory, rows, rows @ memory.text.T)

    def of_shots(memory: Any, shots: HeldOutShots) -> tuple[Array, Array]:
        cosines = shots.rows @ memory.text.T
        return function(memory, shots.rows, cosines), function(memory, shots.rows, without_own(cosines, shots.labels))

    return Score(reason, of_pictures, of_shots, arrays)


def _shots_by_distances(memory: Any, shots: HeldOutShots) -> tuple[Array, Array]:
    return shots.distances.min(axis=1), _minus_largest(without_own(-shots.distances, shots.labels))


def _by_outliers(memory: Any, rows: Array, logits: Array) -> Scores:
    """Cosine to the nearest outlier minus the cosine to the nearest class mean."""
    cosines = rows @ unit_rows(memory.gaussians.means).T
    return np.asarray((rows @ memory.outliers.T).max(axis=1) - cosines.max(axis=1))


def _shots_by_outliers(memory: Any, shots: HeldOutShots) -> tuple[Array, Array]:
    """The mean of a shot's own class is computed without it."""
    means, labels = memory.gaussians.means, shots.labels
    cosines = shots.rows @ unit_rows(means).T
    k = shots.counts[labels]
    others = (k[:, None] * means[labels] - shots.rows) / np.maximum(k - 1, 1)[:, None]
    own = np.einsum("nd,nd->n", shots.rows, unit_rows(others))
    cosines[np.arange(len(labels)), labels] = np.where(k > 1, own, np.nan)
    nearest = (shots.rows @ memory.outliers.T).max(axis=1)
    return nearest - cosines.max(axis=1), nearest - without_own(cosines, labels).max(axis=1)


SCORES = {
    # Hendrycks et al. 2022, https://arxiv.org/abs/1911.11132
    "max-logit": Score("less like any class", lambda memory, rows, logits: _minus_largest(logits), _shots_by_logits),
    "text": _text_score(lambda memory, rows, cosines: 1 - cosines.max(axis=1), "less like any class name", ("text",)),
    "negative-labels": _text_score(_negative_labels, "nearer to names of other things", ("text", "negative_labels")),
    "mahalanobis": Score(
        "farther from every class",
        lambda memory, rows, logits: memory.gaussians.nearest(rows),
        _shots_by_distances,
        ("gaussians",),
        compares_with_shots=True,
    ),
    "outliers": Score(
        "closer to an outlier picture, relative to the class means,",
        _by_outliers,
        _shots_by_outliers,
        ("gaussians", "outliers"),
        compares_with_shots=True,
    ),
}
"""Every score by its name in saved models: "negative-labels" is NegLabel. A new score is an entry here, and its
graph in `clipadapter.export.ood_graph`."""


def leave_one_out_outlier_scores(memory: MemoryBank) -> Array:
    """Leave-one-out outlier scores of the outliers themselves (b,).

    >>> memory = MemoryBank(ClassGaussians(np.eye(2)[:1], np.zeros((0, 2)), 1.0), outliers=np.eye(2)[[1, 1]])
    >>> leave_one_out_outlier_scores(memory)
    array([1., 1.])
    """
    assert memory.outliers is not None and memory.gaussians is not None
    cosines = memory.outliers @ memory.outliers.T
    np.fill_diagonal(cosines, -np.inf if len(cosines) > 1 else 1.0)
    to_means = memory.outliers @ unit_rows(memory.gaussians.means).T
    return np.asarray(cosines.max(axis=1) - to_means.max(axis=1))


def compare_with_shots(
    features: Array, labels: Array, c: int, logits: Array | None, judged: Array | None = None, **arrays: Any
) -> tuple[MemoryBank, HeldOutShots]:
    """Make the memory bank, with further ``arrays``, and the held-out shots: the ``judged`` ones (r,), by default all.

    Out-of-fold logits (r, c) have NaN rows where a shot was not held out. If a class has no shot it has no mean, and
    there are no distances.
    """
    rows, counts = unit_rows(features), np.bincount(labels, minlength=c)
    held_out_rows, held_out_labels = (rows, labels) if judged is None else (rows[judged], labels[judged])
    gaussians, distances = None, np.full((len(held_out_rows), c), np.nan)
    if (counts > 0).all():
        gaussians, distances = fit_class_gaussians(rows, labels, c, judged)
    shots = HeldOutShots(held_out_rows, held_out_labels, logits, distances, counts)
    return MemoryBank(gaussians, **arrays), shots
