"""Scores of out-of-distribution detection, of pictures and of held-out shots.

All scores are higher for pictures that are farther from the classes. Letters: m pictures, n shots, c classes, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError, brief
from clipadapter.prediction import DEFAULT_LOGIT_SCALE
from clipadapter.uncertainty.class_gaussians import ClassGaussians, fit_class_gaussians

Array = NDArray[Any]
Scores = NDArray[np.float64]


def unit_rows(features: Array) -> NDArray[np.float64]:
    """Rows (m, d) scaled to length one, float64; a row of zeros stays zero.

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    rows = np.asarray(features, dtype=np.float64)
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(norm > 0, norm, 1.0))


def log_sum_exp(x: Array) -> Scores:
    """Logarithm of the sum of exp over each row; -inf adds nothing.

    >>> log_sum_exp(np.array([[0.0, -np.inf], [1000.0, 1000.0]]))
    array([   0.        , 1000.69314718])
    """
    top = x.max(axis=1)
    finite = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):  # of a row of -inf only
        return np.asarray(finite + np.log(np.exp(x - finite[:, None]).sum(axis=1)))


def msp(probabilities: Array) -> Scores:
    """One minus the highest calibrated probability (Hendrycks and Gimpel 2017, https://arxiv.org/abs/1610.02136).

    >>> msp(np.array([[0.75, 0.25]]))
    array([0.25])
    """
    return np.asarray(1 - probabilities.max(axis=1))


def max_logit(logits: Array) -> Scores:
    """The highest logit, negative (Hendrycks et al. 2022, https://arxiv.org/abs/1911.11132).

    >>> max_logit(np.array([[3.0, 1.0]]))
    array([-3.])
    """
    return np.asarray(-logits.max(axis=1))


def energy(logits: Array, temperature: float = 1.0) -> Scores:
    """-T ln sum exp(logits / T) (Liu et al. 2020, eq. 4, https://arxiv.org/abs/2010.03759).

    >>> energy(np.array([[0.0, 0.0]])).round(4)
    array([-0.6931])
    """
    return -temperature * log_sum_exp(logits / temperature)


def mcm(cosines: Array, temperature: float = 1.0) -> Scores:
    """Maximum concept matching: one minus the highest softmax of the cosines to the class text.

    Ming et al. 2022, eq. 1, https://arxiv.org/abs/2211.13445, which recommends a temperature of 1.

    >>> mcm(np.array([[0.2, 0.2]]))
    array([0.5])
    """
    scaled = cosines / temperature
    return np.asarray(1 - np.exp(scaled.max(axis=1) - log_sum_exp(scaled)))


def text_distance(cosines: Array) -> Scores:
    """One minus the cosine to the nearest class text.

    >>> text_distance(np.array([[0.25, 0.125]]))
    array([0.75])
    """
    return np.asarray(1 - cosines.max(axis=1))


def negative_label_score(cosines: Array, others: Array, scale: float) -> Scores:
    """Logarithm of the mass of the negative labels over the mass of the classes, by exp of scaled cosines.

    NegLabel's score (Jiang et al. 2024, eq. 5, https://arxiv.org/abs/2403.20078) is one over one plus exp of it: the
    order is the same, but it doesn't saturate.

    Args:
        cosines: (m, c) to the class text.
        others: (m, k) to the text of the negative labels.
        scale: one over the temperature.

    >>> negative_label_score(np.array([[0.5]]), np.array([[0.25]]), 4.0)
    array([-1.])
    """
    return log_sum_exp(scale * others) - log_sum_exp(scale * cosines)


def nearest(cosines: Array) -> Scores:
    """One minus the cosine to the nearest shot (deep nearest neighbours, Sun et al. 2022, with k = 1).

    https://arxiv.org/abs/2204.06507. There k grows with the training set; with few shots per class it is one.

    >>> nearest(np.array([[0.25, 0.5]]))
    array([0.5])
    """
    return np.asarray(1 - cosines.max(axis=1))


def outlier_score(others: Array, cosines: Array) -> Scores:
    """Cosine to the nearest outlier minus the cosine to the nearest class mean.

    Args:
        others: (m, b) cosines to the outliers.
        cosines: (m, c) cosines to the classes' means.

    >>> outlier_score(np.array([[0.75, 0.0]]), np.array([[0.5, 0.25]]))
    array([0.25])
    """
    return np.asarray(others.max(axis=1) - cosines.max(axis=1))


def without_own(values: Array, labels: Array) -> Array:
    """A copy of (n, c) with -inf for each row's own class: it simulates pictures of none of the classes.

    >>> without_own(np.array([[3.0, 1.0]]), np.array([0]))
    array([[-inf,   1.]])
    """
    other = np.array(values, dtype=np.float64)
    other[np.arange(len(labels)), labels] = -np.inf
    return other


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """The features that scores compare a picture with. A field is None if it is not available.

    Args:
        gaussians: class means and covariance.
        text: (c, d) unit text features of the classes.
        negative_labels: (k, d) unit text features of negative labels: names of things that are none of the classes.
        outliers: (b, d) unit features of pictures of none of the classes.
        shots: (n, d) unit features.
        scale: logit scale of the encoder.
    """

    gaussians: ClassGaussians | None = None
    text: Array | None = None
    negative_labels: Array | None = None
    outliers: Array | None = None
    shots: Array | None = None
    scale: float = DEFAULT_LOGIT_SCALE

    @property
    def width(self) -> int | None:
        """d, or None if the bank is empty."""
        means = None if self.gaussians is None else self.gaussians.means
        arrays = (means, self.text, self.negative_labels, self.outliers, self.shots)
        return next((int(each.shape[1]) for each in arrays if each is not None), None)

    @property
    def classes(self) -> int | None:
        """c, or None if the bank has neither class means nor class text."""
        means = None if self.gaussians is None else self.gaussians.means
        return next((len(each) for each in (means, self.text) if each is not None), None)

    def restrict(self, names: Sequence[str]) -> MemoryBank:
        """A copy with only what some scores need, as float32.

        Args:
            names: of the scores.
        """
        needed = {attribute for name in names for attribute in SCORES[name].arrays}
        arrays = {attribute: _as_float32(getattr(self, attribute)) for attribute in needed - {"gaussians"}}
        gaussians = self.gaussians.single() if self.gaussians and "gaussians" in needed else None
        return MemoryBank(gaussians, **arrays, scale=self.scale)

    def column(self, name: str, rows: Array, logits: Array, probabilities: Array | None) -> Array:
        """One score (m,) of pictures.

        Args:
            name: of the score.
            rows: (m, d) unit features.
            logits: (m, c).
            probabilities: (m, c).
        """
        score = SCORES[name]
        _require_arrays(name, self)
        if "probabilities" in score.predictions and probabilities is None:
            raise InputError(f"the score {brief(name)} needs calibrated probabilities: give probabilities")
        return score.score_pictures(self, rows, logits, probabilities)


@dataclass(frozen=True, eq=False)
class HeldOutShots:
    """The shots with out-of-fold predictions and leave-one-out distances; or some of the shots, if there are very many.

    Args:
        rows: (n, d) unit features.
        labels: (n,) class positions.
        logits: (n, c) out-of-fold, NaN rows where a shot was not held out; or None.
        probabilities: (n, c) likewise.
        distances: (n, c) leave-one-out squared Mahalanobis distances; NaN for the only shot of a class.
        counts: (c,) shots of each class among all shots.
    """

    rows: Array
    labels: Array
    logits: Array | None
    probabilities: Array | None
    distances: Array
    counts: Array


@dataclass(frozen=True, eq=False)
class Score:
    """One out-of-distribution score: how it is computed, what it needs, and how it is explained.

    The functions get a memory bank whose ``arrays`` are not None.

    Args:
        needs: what it needs, for errors.
        reason: what is said of a picture with a high score; "than 90 % of the shots are" follows.
        score_pictures: computes scores (m,) from a memory bank, unit features (m, d), logits and probabilities (m, c).
        score_held_out: computes what `score_held_out_shots` returns.
        arrays: attributes of `MemoryBank` that it needs.
        predictions: attributes of `HeldOutShots` that it needs.
        compares_with_shots: whether it compares a picture with shots: the only shot of a class can be compared with
            other classes only.
    """

    needs: str
    reason: str
    score_pictures: Callable[[Any, Array, Array, Any], Scores]
    score_held_out: Callable[[Any, Any], tuple[Array, Array]]
    arrays: tuple[str, ...] = ()
    predictions: tuple[str, ...] = ()
    compares_with_shots: bool = False


def _logit_score(function: Callable[[Array], Scores]) -> Score:
    """A score of the logits alone."""
    return Score(
        needs="logits",
        reason="less like any class",
        score_pictures=lambda memory, rows, logits, probabilities: function(logits),
        score_held_out=lambda memory, held_out: (
            function(held_out.logits),
            function(without_own(held_out.logits, held_out.labels)),
        ),
        predictions=("logits",),
    )


def _text_score(
    function: Callable[[Any, Array, Array], Scores], needs: str, reason: str, arrays: tuple[str, ...] = ("text",)
) -> Score:
    """A score of a memory bank, unit features (m, d) and their cosines to the class text (m, c)."""

    def score_pictures(memory: Any, rows: Array, logits: Array, probabilities: Any) -> Scores:
        rows = rows.astype(memory.text.dtype)  # numpy would convert the text of all classes instead
        return function(memory, rows, rows @ memory.text.T)

    def score_held_out(memory: Any, held_out: HeldOutShots) -> tuple[Array, Array]:
        rows = held_out.rows
        cosines = rows @ memory.text.T
        return function(memory, rows, cosines), function(memory, rows, without_own(cosines, held_out.labels))

    return Score(
        needs=needs,
        reason=reason,
        score_pictures=score_pictures,
        score_held_out=score_held_out,
        arrays=arrays,
    )


def _held_out_msp(memory: Any, held_out: Any) -> tuple[Array, Array]:
    p = held_out.probabilities
    others = np.where(np.arange(p.shape[1]) == held_out.labels[:, None], 0.0, p)
    return msp(p), msp(others / np.maximum(others.sum(axis=1, keepdims=True), 1e-300))


def _held_out_mahalanobis(memory: Any, held_out: HeldOutShots) -> tuple[Array, Array]:
    distances = held_out.distances
    return distances.min(axis=1), -without_own(-distances, held_out.labels).max(axis=1)


def _held_out_nearest(memory: Any, held_out: HeldOutShots) -> tuple[Array, Array]:
    rows, labels = held_out.rows, held_out.labels
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    others = np.where(labels[:, None] == labels, -np.inf, cosines)
    is_only_shot = np.bincount(labels)[labels] < 2
    return np.where(is_only_shot, np.nan, nearest(cosines)), nearest(others)


def _score_by_outliers(memory: Any, rows: Array, logits: Array, probabilities: Any) -> Scores:
    directions = unit_rows(memory.gaussians.means)
    return outlier_score(rows @ memory.outliers.T, rows @ directions.T)


def _held_out_by_outliers(memory: Any, held_out: HeldOutShots) -> tuple[Array, Array]:
    outlier_cosines = held_out.rows @ memory.outliers.T
    cosines = _cosines_to_means(memory, held_out)
    return outlier_score(outlier_cosines, cosines), outlier_score(
        outlier_cosines, without_own(cosines, held_out.labels)
    )


SCORES = {
    "max-logit": _logit_score(max_logit),
    "energy": _logit_score(energy),
    "msp": Score(
        needs="probabilities",
        reason="less like any class",
        score_pictures=lambda memory, rows, logits, probabilities: msp(probabilities),
        score_held_out=_held_out_msp,
        predictions=("probabilities",),
    ),
    "mcm": _text_score(lambda memory, rows, cosines: mcm(cosines), "text", "less like any class name"),
    "text": _text_score(lambda memory, rows, cosines: text_distance(cosines), "text", "less like any class name"),
    "negative-labels": _text_score(
        lambda memory, rows, cosines: negative_label_score(cosines, rows @ memory.negative_labels.T, memory.scale),
        "negative labels",
        "nearer to names of other things",
        ("text", "negative_labels"),
    ),
    "mahalanobis": Score(
        needs="shots of every class",
        reason="farther from every class",
        score_pictures=lambda memory, rows, logits, probabilities: memory.gaussians.nearest(rows),
        score_held_out=_held_out_mahalanobis,
        arrays=("gaussians",),
        compares_with_shots=True,
    ),
    "knn": Score(
        needs="shots",
        reason="farther from every class",
        score_pictures=lambda memory, rows, logits, probabilities: nearest(rows @ memory.shots.T),
        score_held_out=_held_out_nearest,
        arrays=("shots",),
        compares_with_shots=True,
    ),
    "outliers": Score(
        needs="outliers",
        reason="closer to an outlier picture, relative to the class means,",
        score_pictures=_score_by_outliers,
        score_held_out=_held_out_by_outliers,
        arrays=("gaussians", "outliers"),
        compares_with_shots=True,
    ),
}
"""Every score by its name in saved models: "negative-labels" is NegLabel. A new score is an entry here, and its
graph in `clipadapter.export.ood_graph`."""


def score_held_out_shots(name: str, memory: MemoryBank, held_out: HeldOutShots) -> tuple[Array, Array]:
    """One score of the shots, out of fold, and the same as if the shot's own class did not exist.

    The second simulates out-of-distribution pictures.

    Returns:
        Two arrays (n,). NaN where a shot is the only one of its class and the score compares with shots, or where there
        is no out-of-fold prediction.
    """
    score = SCORES[name]
    _require_arrays(name, memory)
    for prediction in score.predictions:
        _require(getattr(held_out, prediction), name)
    return score.score_held_out(memory, held_out)


def leave_one_out_outlier_scores(memory: MemoryBank) -> Array:
    """Leave-one-out outlier scores of the outliers themselves (b,).

    >>> memory = MemoryBank(ClassGaussians(np.eye(2)[:1], np.zeros((0, 2)), 1.0), outliers=np.eye(2)[[1, 1]])
    >>> leave_one_out_outlier_scores(memory)
    array([1., 1.])
    """
    pictures = _require(memory.outliers, "outliers")
    cosines = pictures @ pictures.T
    np.fill_diagonal(cosines, -np.inf if len(pictures) > 1 else 1.0)
    directions = unit_rows(_require(memory.gaussians, "outliers").means)
    return outlier_score(cosines, pictures @ directions.T)


def compare_with_shots(
    features: Array,
    labels: Array,
    c: int,
    logits: Array | None,
    probabilities: Array | None,
    needs_distances: bool,
    judged: Array | None = None,
    **arrays: Any,
) -> tuple[MemoryBank, HeldOutShots]:
    """Make the memory bank and the held-out shots. Gaussians are fitted only if ``needs_distances``.

    If a class has no shot it has no mean, and there are no distances.

    Args:
        features: (n, d) of the shots.
        labels: (n,).
        c: number of classes.
        logits: (r, c) out-of-fold, NaN rows where a shot was not held out; or None.
        probabilities: (r, c) likewise.
        needs_distances: whether a score needs the Gaussians.
        judged: (r,) the shots that are compared with the others; None for all.
        arrays: further attributes of the memory bank.
    """
    rows, counts = unit_rows(features), np.bincount(labels, minlength=c)
    held_out_rows, held_out_labels = (rows, labels) if judged is None else (rows[judged], labels[judged])
    if not needs_distances or (counts == 0).any():
        distances = np.full((len(held_out_rows), c), np.nan)
        held_out = HeldOutShots(held_out_rows, held_out_labels, logits, probabilities, distances, counts)
        return MemoryBank(shots=rows, **arrays), held_out
    gaussians, distances = fit_class_gaussians(rows, labels, c, judged)
    held_out = HeldOutShots(held_out_rows, held_out_labels, logits, probabilities, distances, counts)
    return MemoryBank(gaussians, shots=rows, **arrays), held_out


def _cosines_to_means(memory: MemoryBank, held_out: HeldOutShots) -> Array:
    """Cosines of the shots to class means (n, c); the mean of a shot's own class is computed without it."""
    means, labels = _require(memory.gaussians, "outliers").means, held_out.labels
    cosines = held_out.rows @ unit_rows(means).T
    k = held_out.counts[labels]
    others = (k[:, None] * means[labels] - held_out.rows) / np.maximum(k - 1, 1)[:, None]
    own = np.einsum("nd,nd->n", held_out.rows, unit_rows(others))
    cosines[np.arange(len(labels)), labels] = np.where(k > 1, own, np.nan)
    return cosines


def _as_float32(value: Array | None) -> Array | None:
    return None if value is None else value.astype(np.float32, order="C")


def _require_arrays(name: str, memory: MemoryBank) -> None:
    for attribute in SCORES[name].arrays:
        _require(getattr(memory, attribute), name)


def _require(value: Any, name: str) -> Any:
    if value is None:
        raise InputError(f"the score {brief(name)} needs {SCORES[name].needs}, which is missing")
    return value
