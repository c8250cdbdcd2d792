"""Class means and a shared, shrunk covariance of the shots: the Gaussians of the Mahalanobis score.

Letters: m pictures, n shots, c classes, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MIN_SHRINKAGE = 1e-3
"""Smallest share of equal variances in the covariance: with many shots and no noise the formula would say none."""
MAX_COVARIANCE_NUMBERS = 2**25
"""Numbers of the shots that the covariance is made of, 268 MB in float64: 43,690 shots of 768 columns. With more, it is
that of some shots of each class."""
MIN_CLASS_SHOTS = 8
"""Shots of a class that are kept then. Fewer have few differences, so with many classes some are left out at random."""
MAX_DISTANCES = 2**22
"""Distances computed at a time where there are more of them: 34 MB, and a few times as much in between."""


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
    """

    means: Array  # (c, d)
    basis: Array  # (q, d) rows B with B'B = V diag(g) V'; q is 0 where no class has two shots
    floor: float  # a t, the variance that every direction has; 1 where no class has two shots

    def distances(self, rows: Array) -> Array:
        """Squared distances (m, c) of rows (m, d) to the means."""
        return self._compare(self._project(rows))[0]

    def nearest(self, rows: Array) -> Array:
        """Squared distance (m,) of each row to the nearest mean."""
        size = max(1, MAX_DISTANCES // len(self.means))
        if len(rows) <= 4 * size:
            return np.asarray(self.distances(rows).min(axis=1))
        parts = [self.distances(rows[i : i + size]).min(axis=1) for i in range(0, len(rows), size)]
        return np.concatenate(parts)

    def single(self) -> ClassGaussians:
        """The same in float32, to be stored."""
        means, basis = (each.astype(np.float32, order="C") for each in (self.means, self.basis))
        return ClassGaussians(means, basis, self.floor)

    def _project(self, rows: Array) -> Projected:
        return Projected(rows, rows @ self._basis.T)

    @cached_property
    def _basis(self) -> Array:
        return self.basis.astype(np.float64)  # once: it is larger than the rows of one picture

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


def fit_class_gaussians(
    rows: Array, labels: Array, c: int, judged: Array | None = None
) -> tuple[ClassGaussians, Array]:
    """The Gaussians of unit features (n, d), and leave-one-out squared distances (r, c) of the ``judged`` shots (r,).

    The distance of a shot to its own class is to the mean of the others, by a covariance without it (a rank-one step;
    the shrinkage stays). A mean of one shot less is less certain: with k shots the expected square is 1 + 1 / (k - 1)
    times the variance instead of 1 + 1 / k, so it is multiplied by (k^2 - 1) / k^2. NaN for the only shot of a class.
    """
    counts = np.bincount(labels, minlength=c)
    means = np.zeros((c, rows.shape[1]))
    np.add.at(means, labels, rows)
    means /= counts[:, None]
    contrasts = _contrasts(*_some_shots(rows, labels, c))
    gaussians, sample_share = _shrink_covariance(means, contrasts)
    share = sample_share / max(len(contrasts), 1)
    if judged is None:
        centres = gaussians._products(gaussians._centres, gaussians._centres)
        return gaussians, _leave_one_out(gaussians, rows, labels, counts, share, centres[labels])
    distances = np.empty((len(judged), c))
    size = max(1, MAX_DISTANCES // c)
    for start in range(0, len(judged), size):
        part = judged[start : start + size]
        own = Projected(*(each[labels[part]] for each in gaussians._centres))
        centres = gaussians._products(own, gaussians._centres)
        distances[start : start + size] = _leave_one_out(gaussians, rows[part], labels[part], counts, share, centres)
    return gaussians, distances


def _some_shots(rows: Array, labels: Array, c: int) -> tuple[Array, Array]:
    """As many shots of each class as make `MAX_COVARIANCE_NUMBERS`; all if they have no more."""
    if rows.size <= MAX_COVARIANCE_NUMBERS:
        return rows, labels
    max_rows = MAX_COVARIANCE_NUMBERS // rows.shape[1]
    counts = np.bincount(labels, minlength=c)
    sizes = np.minimum(counts, max(MIN_CLASS_SHOTS, max_rows // c))
    order = np.random.default_rng(0).permutation(c)
    sizes[order[np.cumsum(sizes[order]) > max_rows]] = 0
    # Evenly spaced shots of the sorted ones: they do not depend on the order of the shots, and have their variance.
    by_class = np.lexsort((rows[:, 0], labels))
    classes = labels[by_class]
    ranks = np.arange(len(rows)) - (np.cumsum(counts) - counts)[classes]
    kept = by_class[(ranks + 1) * sizes[classes] // counts[classes] > ranks * sizes[classes] // counts[classes]]
    return rows[kept], labels[kept]


def _leave_one_out(
    gaussians: ClassGaussians, rows: Array, labels: Array, counts: Array, share: float, centres: Array
) -> Array:
    """Distances (b, c) of some shots (b, d); ``centres`` (b, c): their classes' means times all means."""
    class_counts, row_numbers = counts[labels].astype(np.float64), np.arange(len(rows))
    n_others = np.maximum(class_counts - 1, 1)
    distances, squares, cross = gaussians._compare(gaussians._project(rows))
    # The mean of the other shots is k / (k - 1) times as far from a shot as the mean of all.
    ratio = class_counts / n_others
    own_distances = ratio**2 * distances[row_numbers, labels]
    step = share * n_others / class_counts  # the share is the weight of one contrast in the covariance
    correction = 1 / (1 - step * own_distances)  # rank-one downdate of the inverse (Sherman and Morrison 1950)
    inner = ratio[:, None] * ((squares - cross[row_numbers, labels])[:, None] - cross + centres)  # (b, c)
    distances += (step * correction)[:, None] * inner**2
    to_others = own_distances * correction * (class_counts**2 - 1) / class_counts**2
    distances[row_numbers, labels] = np.where(class_counts > 1, to_others, np.nan)
    return distances


def _contrasts(rows: Array, labels: Array) -> Array:
    """Helmert contrasts of the shots of each class, scaled to the variance of one shot (n - c, d)."""
    # The order of the shots does not matter statistically; sorted rows give the same model for any order of input.
    order = np.lexsort((rows[:, 0], labels))
    counts = np.bincount(labels)
    first = np.cumsum(counts) - counts
    contrasts = [np.zeros((0, rows.shape[1]))]
    for k in np.unique(counts[counts > 1]):
        class_rows = rows[order[first[counts == k][:, None] + np.arange(k)]]  # (classes of k shots, k, d)
        # Each shot against the mean of those before it: orthonormal combinations of the k.
        n_before = np.arange(1, k)[:, None]
        differences = class_rows[:, 1:] - class_rows.cumsum(axis=1)[:, :-1] / n_before
        contrasts.append((np.sqrt(n_before / (n_before + 1)) * differences).reshape(-1, rows.shape[1]))
    return np.concatenate(contrasts)


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
    """Rows B with B'B = V diag(g) V' (q, d), by Cholesky factors: an eigendecomposition takes three times as long."""
    from scipy.linalg import solve_triangular

    # With any F so that F'F is the sum of squares of the contrasts, V diag(g) V' = F' (F F' + floor I)^-1 F.
    r, d = contrasts.shape
    factor = contrasts
    if r > d:  # the factor of the gram matrix, which may be singular, has fewer rows than the contrasts
        factor = np.linalg.cholesky(gram + 1e-10 * trace / d * np.eye(d)).T
        gram = factor @ factor.T
    outer = np.linalg.cholesky(gram + floor * np.eye(len(gram)))
    return np.asarray(solve_triangular(outer, factor, lower=True, check_finite=False))
