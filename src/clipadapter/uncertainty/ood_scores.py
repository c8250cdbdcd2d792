"""Scores of out-of-distribution detection, the Gaussians of the Mahalanobis score, and scores of held-out shots.

All scores are higher for pictures that are farther from the classes. Letters: m pictures, n shots, c classes, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError
from clipadapter.prediction import DEFAULT_LOGIT_SCALE

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


MIN_SHRINKAGE = 1e-3
"""Smallest share of equal variances in the covariance: with many shots and no noise the formula would say none."""


class Projected(NamedTuple):
    """Rows (m, d) and their products with the basis of the Gaussians (m, q), computed once for several products."""

    rows: Array
    projections: Array


@dataclass(frozen=True, eq=False)
class ClassGaussians:
    """Class means and a shrunk covariance that all classes share: what Mahalanobis distances are computed from.

    Lee et al. 2018, https://arxiv.org/abs/1807.03888 (eq. 2, on one layer), with the shrinkage of Ledoit and Wolf
    2004, https://doi.org/10.1016/S0047-259X(03)00096-4, in place of the sample covariance, which few shots leave
    singular.

    k shots of a class have k - 1 independent differences. As orthogonal contrasts they are independent draws with the
    within-class covariance S, which is what the shrinkage assumes. (Residuals about a mean are not: two shots have the
    same residual twice.) With S = V diag(e) V', shrunk to (1 - a) S + a t I, the inverse is

        (I - V diag(g) V') / (a t),    g = (1 - a) e / ((1 - a) e + a t)

    so that min(n - c, d) rows are stored instead of a (d, d) matrix.

    Args:
        means: (c, d).
        basis: (q, d) rows B with B'B = V diag(g) V'; q is 0 where no class has two shots.
        floor: a t, the variance that every direction has; 1 where no class has two shots.
    """

    means: Array
    basis: Array
    floor: float

    def distances(self, rows: Array) -> Array:
        """Squared distances (m, c) of rows (m, d) to the means.

        >>> ClassGaussians(np.array([[0.0, 1.0]]), np.zeros((0, 2)), 1.0).distances(np.array([[2.0, 1.0]]))
        array([[4.]])
        """
        return self._compare(self._project(rows))[0]

    def single(self) -> ClassGaussians:
        """The same in float32, to be kept."""
        return ClassGaussians(
            self.means.astype(np.float32, order="C"), self.basis.astype(np.float32, order="C"), self.floor
        )

    def _project(self, rows: Array) -> Projected:
        return Projected(rows, rows @ self.basis.T)

    @cached_property
    def _centres(self) -> Projected:
        return self._project(self.means.astype(np.float64))  # float64: differences of nearly equal numbers follow

    @cached_property
    def _squared_norms(self) -> Array:
        return self._product(self._centres, self._centres)

    def _compare(self, rows: Projected) -> tuple[Array, Array, Array]:
        """Squared distances (m, c) to the means, and what they are made of: x_i' P x_i (m,) and x_i' P mu_j (m, c)."""
        squares, cross = self._product(rows, rows), self._products(rows, self._centres)
        return np.maximum(squares[:, None] + self._squared_norms - 2 * cross, 0.0), squares, cross

    def _product(self, a: Projected, b: Projected) -> Array:
        """a_i' P b_i (m,), with P the inverse covariance."""
        inner = np.einsum("md,md->m", a.rows, b.rows) - np.einsum("mq,mq->m", a.projections, b.projections)
        return np.asarray(inner / self.floor)

    def _products(self, a: Projected, b: Projected) -> Array:
        """a_i' P b_j (m, c)."""
        return np.asarray((a.rows @ b.rows.T - a.projections @ b.projections.T) / self.floor)


def fit_class_gaussians(rows: Array, labels: Array, c: int) -> tuple[ClassGaussians, Array]:
    """Fit class means and the shared covariance, and compute leave-one-out distances of the shots.

    Args:
        rows: (n, d) unit features.
        labels: (n,) class positions; every class has a shot.
        c: number of classes.

    Returns:
        The Gaussians and squared distances (n, c). That of a shot to its own class is to the mean of the others, by a
        covariance without it (a rank-one step; the shrinkage stays). A mean of one shot less is less certain: with k
        shots the expected square is 1 + 1 / (k - 1) times the variance instead of 1 + 1 / k, so it is multiplied by
        (k^2 - 1) / k^2. NaN for the only shot of a class.
    """
    counts = np.bincount(labels, minlength=c)
    means = np.zeros((c, rows.shape[1]))
    np.add.at(means, labels, rows)
    means /= counts[:, None]
    contrasts = _contrasts(rows, labels)
    gaussians, sample_share = _shrink_covariance(means, contrasts)
    class_counts, row_numbers = counts[labels].astype(np.float64), np.arange(len(rows))
    n_others = np.maximum(class_counts - 1, 1)
    distances, squares, cross = gaussians._compare(gaussians._project(rows))
    # The mean of the other shots is k / (k - 1) times as far from a shot as the mean of all.
    ratio = class_counts / n_others
    own_distances = ratio**2 * distances[row_numbers, labels]
    step = sample_share * n_others / (class_counts * max(len(contrasts), 1))
    correction = 1 / (1 - step * own_distances)  # rank-one downdate of the inverse (Sherman and Morrison 1950)
    centres = gaussians._products(gaussians._centres, gaussians._centres)
    inner = ratio[:, None] * ((squares - cross[row_numbers, labels])[:, None] - cross + centres[labels])  # (n, c)
    distances += (step * correction)[:, None] * inner**2
    distances[row_numbers, labels] = np.where(
        class_counts > 1, own_distances * correction * (class_counts**2 - 1) / class_counts**2, np.nan
    )
    return gaussians, distances


def _contrasts(rows: Array, labels: Array) -> Array:
    """Helmert contrasts of the shots of each class, scaled to the variance of one shot (n - c, d)."""
    # The order of the shots does not matter statistically; sorted rows give the same model for any order of input.
    order = np.lexsort((rows[:, 0], labels))
    counts = np.bincount(labels)
    first = np.cumsum(counts) - counts
    contrasts = [np.zeros((0, rows.shape[1]))]
    for k in np.unique(counts[counts > 1]):
        class_rows = rows[order[first[counts == k][:, None] + np.arange(k)]]  # (classes of k shots, k, d)
        contrasts.append((_helmert(int(k)) @ class_rows).reshape(-1, rows.shape[1]))
    return np.concatenate(contrasts)


def _helmert(k: int) -> Array:
    """(k - 1, k) orthonormal rows: each element against the mean of those before it.

    >>> _helmert(2).round(4)
    array([[-0.7071,  0.7071]])
    """
    before = np.arange(1, k)[:, None]
    places = np.arange(k)
    return np.asarray(np.sqrt(before / (before + 1)) * ((places == before) - (places < before) / before))


def _shrink_covariance(means: Array, contrasts: Array) -> tuple[ClassGaussians, float]:
    """The Gaussians, and the weight 1 - a of the sample covariance in theirs (Ledoit and Wolf 2004)."""
    r, d = contrasts.shape
    gram = contrasts @ contrasts.T if r <= d else contrasts.T @ contrasts
    trace = float(np.trace(gram))
    empty_basis = np.zeros((0, d))
    if not r or not trace > 1e-12 * r:  # identical shots give no estimate of the variance
        return ClassGaussians(means, empty_basis, 1.0), 0.0
    mean, square = trace / (r * d), float((gram**2).sum()) / r**2
    between = square - d * mean**2
    noise = ((np.einsum("rd,rd->r", contrasts, contrasts) ** 2).mean() - square) / r
    a = float(np.clip(noise / between, MIN_SHRINKAGE, 1.0)) if between > 0 else 1.0
    basis = _basis(contrasts, gram, trace, r * a * mean / (1 - a)) if a < 1 else empty_basis
    return ClassGaussians(means, basis, a * mean), 1 - a


def _basis(contrasts: Array, gram: Array, trace: float, floor: float) -> Array:
    """Rows B with B'B = V diag(g) V' (q, d), by Cholesky factors: an eigendecomposition takes three times as long.

    With any F so that F'F is the sum of squares of the contrasts, V diag(g) V' = F' (F F' + floor I)^-1 F.
    """
    from scipy.linalg import solve_triangular

    r, d = contrasts.shape
    factor = contrasts
    if r > d:  # the factor of the gram matrix, which may be singular, has fewer rows than the contrasts
        factor = np.linalg.cholesky(gram + 1e-10 * trace / d * np.eye(d)).T
        gram = factor @ factor.T
    outer = np.linalg.cholesky(gram + floor * np.eye(len(gram)))
    return np.asarray(solve_triangular(outer, factor, lower=True, check_finite=False))


SCORE_NEEDS = {
    "max-logit": "logits",
    "energy": "logits",
    "msp": "probabilities",
    "mcm": "text",
    "text": "text",
    "distractors": "negative labels",
    "mahalanobis": "shots of every class",
    "knn": "shots",
    "background": "outliers",
}
"""Every score by its name in saved models, and what it needs: "distractors" is the score of negative labels (NegLabel),
"background" the score of outliers."""
NEEDS_OTHER_SHOTS = {"mahalanobis", "knn", "background"}
"""Scores that compare a picture with shots: the only shot of a class can be compared with other classes only."""


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
        by_text = {"text", "mcm", "distractors"} & set(names)
        needs_gaussians = self.gaussians is not None and {"mahalanobis", "background"} & set(names)
        return MemoryBank(
            gaussians=self.gaussians.single() if self.gaussians and needs_gaussians else None,
            text=_as_float32(self.text) if by_text else None,
            negative_labels=_as_float32(self.negative_labels) if "distractors" in names else None,
            outliers=_as_float32(self.outliers) if "background" in names else None,
            shots=_as_float32(self.shots) if "knn" in names else None,
            scale=self.scale,
        )

    def column(self, name: str, rows: Array, logits: Array, probabilities: Array | None) -> Array:
        """One score (m,) of pictures.

        Args:
            name: of the score.
            rows: (m, d) unit features.
            logits: (m, c).
            probabilities: (m, c).
        """
        if name in ("max-logit", "energy"):
            return max_logit(logits) if name == "max-logit" else energy(logits)
        if name == "msp":
            if probabilities is None:
                raise InputError("the score 'msp' needs calibrated probabilities: give probabilities")
            return msp(probabilities)
        if name == "mahalanobis":
            return np.asarray(_require(self.gaussians, name).distances(rows).min(axis=1))
        if name == "knn":
            return nearest(rows @ _require(self.shots, name).T)
        if name == "background":
            directions = unit_rows(_require(self.gaussians, name).means)
            return outlier_score(rows @ _require(self.outliers, name).T, rows @ directions.T)
        return self._by_text(name, rows, rows @ _require(self.text, name).T)

    def _by_text(self, name: str, rows: Array, cosines: Array) -> Array:
        if name == "distractors":
            return negative_label_score(cosines, rows @ _require(self.negative_labels, name).T, self.scale)
        return mcm(cosines) if name == "mcm" else text_distance(cosines)


@dataclass(frozen=True, eq=False)
class HeldOutShots:
    """The shots with out-of-fold predictions and leave-one-out distances.

    Args:
        rows: (n, d) unit features.
        labels: (n,) class positions.
        logits: (n, c) out-of-fold, NaN rows where a shot was not held out; or None.
        probabilities: (n, c) likewise.
        distances: (n, c) leave-one-out squared Mahalanobis distances; NaN for the only shot of a class.
    """

    rows: Array
    labels: Array
    logits: Array | None
    probabilities: Array | None
    distances: Array


def score_held_out_shots(name: str, memory: MemoryBank, held_out: HeldOutShots) -> tuple[Array, Array]:
    """One score of the shots, out of fold, and the same as if the shot's own class did not exist.

    The second simulates out-of-distribution pictures.

    Returns:
        Two arrays (n,). NaN where a shot is the only one of its class and the score compares with shots, or where there
        is no out-of-fold prediction.
    """
    rows, labels = held_out.rows, held_out.labels
    if name in ("max-logit", "energy"):
        score = max_logit if name == "max-logit" else energy
        logits = _require(held_out.logits, name)
        return score(logits), score(without_own(logits, labels))
    if name == "msp":
        p = _require(held_out.probabilities, name)
        others = np.where(np.arange(p.shape[1]) == labels[:, None], 0.0, p)
        return msp(p), msp(others / np.maximum(others.sum(axis=1, keepdims=True), 1e-300))
    if name == "mahalanobis":
        _require(memory.gaussians, name)
        return held_out.distances.min(axis=1), -without_own(-held_out.distances, labels).max(axis=1)
    if name == "knn":
        cosines = rows @ rows.T
        np.fill_diagonal(cosines, -np.inf)
        others = np.where(labels[:, None] == labels, -np.inf, cosines)
        alone = np.bincount(labels)[labels] < 2
        return np.where(alone, np.nan, nearest(cosines)), nearest(others)
    if name == "background":
        near = rows @ _require(memory.outliers, name).T
        cosines = _cosines_to_means(memory, held_out)
        return outlier_score(near, cosines), outlier_score(near, without_own(cosines, labels))
    cosines = rows @ _require(memory.text, name).T
    return memory._by_text(name, rows, cosines), memory._by_text(name, rows, without_own(cosines, labels))


def leave_one_out_outlier_scores(memory: MemoryBank) -> Array:
    """Leave-one-out outlier scores of the outliers themselves (b,).

    >>> memory = MemoryBank(ClassGaussians(np.eye(2)[:1], np.zeros((0, 2)), 1.0), outliers=np.eye(2)[[1, 1]])
    >>> leave_one_out_outlier_scores(memory)
    array([1., 1.])
    """
    pictures = _require(memory.outliers, "background")
    cosines = pictures @ pictures.T
    np.fill_diagonal(cosines, -np.inf if len(pictures) > 1 else 1.0)
    directions = unit_rows(_require(memory.gaussians, "background").means)
    return outlier_score(cosines, pictures @ directions.T)


def compare_with_shots(
    features: Array,
    labels: Array,
    c: int,
    logits: Array | None,
    probabilities: Array | None,
    needs_distances: bool,
    **arrays: Any,
) -> tuple[MemoryBank, HeldOutShots]:
    """Make the memory bank and the held-out shots. Gaussians are fitted only if ``needs_distances``.

    If a class has no shot it has no mean, and there are no distances.
    """
    rows = unit_rows(features)
    if not needs_distances or (np.bincount(labels, minlength=c) == 0).any():
        return MemoryBank(shots=rows, **arrays), HeldOutShots(
            rows, labels, logits, probabilities, np.full((len(rows), c), np.nan)
        )
    gaussians, distances = fit_class_gaussians(rows, labels, c)
    return MemoryBank(gaussians, shots=rows, **arrays), HeldOutShots(rows, labels, logits, probabilities, distances)


def _cosines_to_means(memory: MemoryBank, held_out: HeldOutShots) -> Array:
    """Cosines of the shots to class means (n, c); the mean of a shot's own class is computed without it."""
    means, labels = _require(memory.gaussians, "background").means, held_out.labels
    cosines = held_out.rows @ unit_rows(means).T
    k = np.bincount(labels, minlength=len(means))[labels]
    others = (k[:, None] * means[labels] - held_out.rows) / np.maximum(k - 1, 1)[:, None]
    own = np.einsum("nd,nd->n", held_out.rows, unit_rows(others))
    cosines[np.arange(len(labels)), labels] = np.where(k > 1, own, np.nan)
    return cosines


def _as_float32(value: Array | None) -> Array | None:
    return None if value is None else value.astype(np.float32, order="C")


def _require(value: Any, name: str) -> Any:
    if value is None:
        raise InputError(f"the score {name!r} needs {SCORE_NEEDS[name]}, which is missing")
    return value
