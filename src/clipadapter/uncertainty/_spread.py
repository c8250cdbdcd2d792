"""Mahalanobis distances to class means, from few shots: shrunk covariance, and each shot as if it had been left out.

Lee et al. 2018, https://arxiv.org/abs/1807.03888 (eq. 2, on one layer), with the shrinkage of Ledoit and Wolf 2004,
https://doi.org/10.1016/S0047-259X(03)00096-4, in place of the sample covariance, which has no inverse here.

k shots of a class have k - 1 free differences; written as orthogonal contrasts these are independent draws with the
within-class covariance S, which is what the shrinkage assumes (residuals about a mean are not: two shots have the same
residual twice). With S = V diag(e) V', shrunk to (1 - a) S + a t I, the inverse is

    (I - V diag(g) V') / (a t),    g = (1 - a) e / ((1 - a) e + a t)

so that it takes min(n - c, d) rows to keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LEAST = 1e-3
"""Smallest share of equal variances in the covariance: with many shots and no noise the formula would say none."""


class Lifted(NamedTuple):
    """Rows (m, d), and their products with the basis of a spread (m, q): both are needed again and again."""

    plain: Array
    along: Array


@dataclass(frozen=True, eq=False)
class Spread:
    """Class means and what lies about them.

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

        >>> Spread(np.array([[0.0, 1.0]]), np.zeros((0, 2)), 1.0).distances(np.array([[2.0, 1.0]]))
        array([[4.]])
        """
        return self._compared(self._lifted(rows))[0]

    def single(self) -> Spread:
        """The same in float32, to be kept."""
        return Spread(self.means.astype(np.float32, order="C"), self.basis.astype(np.float32, order="C"), self.floor)

    def _lifted(self, rows: Array) -> Lifted:
        return Lifted(rows, rows @ self.basis.T)

    @cached_property
    def _centres(self) -> Lifted:
        return self._lifted(self.means.astype(np.float64))  # what is near to each other is subtracted

    @cached_property
    def _lengths(self) -> Array:
        return self._product(self._centres, self._centres)

    def _compared(self, rows: Lifted) -> tuple[Array, Array, Array]:
        """Squared distances (m, c) to the means, and what they are made of: x_i' P x_i (m,) and x_i' P mu_j (m, c)."""
        squares, cross = self._product(rows, rows), self._products(rows, self._centres)
        return np.maximum(squares[:, None] + self._lengths - 2 * cross, 0.0), squares, cross

    def _product(self, a: Lifted, b: Lifted) -> Array:
        """a_i' P b_i (m,), with P the inverse covariance."""
        inner = np.einsum("md,md->m", a.plain, b.plain) - np.einsum("mq,mq->m", a.along, b.along)
        return np.asarray(inner / self.floor)

    def _products(self, a: Lifted, b: Lifted) -> Array:
        """a_i' P b_j (m, c)."""
        return np.asarray((a.plain @ b.plain.T - a.along @ b.along.T) / self.floor)


def learn_spread(rows: Array, labels: Array, c: int) -> tuple[Spread, Array]:
    """Means, spread, and each shot's distances as if it had been left out.

    Args:
        rows: (n, d) unit features.
        labels: (n,) class positions; every class has a shot.
        c: number of classes.

    Returns:
        The spread and squared distances (n, c). That of a shot to its own class is to the mean of the others, by a
        covariance without it (a rank-one step; the shrinkage stays). A mean of one shot less is less certain: with k
        shots the expected square is 1 + 1 / (k - 1) times the variance instead of 1 + 1 / k, so it is multiplied by
        (k^2 - 1) / k^2. NaN for the only shot of a class.
    """
    counts = np.bincount(labels, minlength=c)
    means = np.zeros((c, rows.shape[1]))
    np.add.at(means, labels, rows)
    means /= counts[:, None]
    contrasts = _contrasts(rows, labels)
    spread, share = _shrunk(means, contrasts)
    k, every = counts[labels].astype(np.float64), np.arange(len(rows))
    others = np.maximum(k - 1, 1)
    found, squares, cross = spread._compared(spread._lifted(rows))
    # From a shot to the mean of the others it is k / (k - 1) times as far as to that of all.
    far = k / others
    own = far**2 * found[every, labels]
    step = share * others / (k * max(len(contrasts), 1))
    left = 1 / (1 - step * own)  # Sherman and Morrison 1950
    centres = spread._products(spread._centres, spread._centres)
    along = far[:, None] * ((squares - cross[every, labels])[:, None] - cross + centres[labels])  # (n, c)
    found += (step * left)[:, None] * along**2
    found[every, labels] = np.where(k > 1, own * left * (k**2 - 1) / k**2, np.nan)
    return spread, found


def _contrasts(rows: Array, labels: Array) -> Array:
    """Each shot against the mean of those of its class before it, scaled to the variance of one shot (n - c, d)."""
    # Any order would do; one that comes from the rows gives the same model for the same shots.
    order = np.lexsort((rows[:, 0], labels))
    counts = np.bincount(labels)
    first = np.cumsum(counts) - counts
    found = [np.zeros((0, rows.shape[1]))]
    for k in np.unique(counts[counts > 1]):
        alike = rows[order[first[counts == k][:, None] + np.arange(k)]]  # (classes of k shots, k, d)
        found.append((_helmert(int(k)) @ alike).reshape(-1, rows.shape[1]))
    return np.concatenate(found)


def _helmert(k: int) -> Array:
    """(k - 1, k) orthonormal rows: each element against the mean of those before it.

    >>> _helmert(2).round(4)
    array([[-0.7071,  0.7071]])
    """
    before = np.arange(1, k)[:, None]
    places = np.arange(k)
    return np.asarray(np.sqrt(before / (before + 1)) * ((places == before) - (places < before) / before))


def _shrunk(means: Array, contrasts: Array) -> tuple[Spread, float]:
    """The spread, and the share 1 - a of the sample covariance in it."""
    r, d = contrasts.shape
    gram = contrasts @ contrasts.T if r <= d else contrasts.T @ contrasts
    trace = float(np.trace(gram))
    nothing = np.zeros((0, d))
    if not r or not trace > 1e-12 * r:  # alike shots say nothing of the spread
        return Spread(means, nothing, 1.0), 0.0
    mean, square = trace / (r * d), float((gram**2).sum()) / r**2
    between = square - d * mean**2
    noise = ((np.einsum("rd,rd->r", contrasts, contrasts) ** 2).mean() - square) / r
    a = float(np.clip(noise / between, LEAST, 1.0)) if between > 0 else 1.0
    basis = _basis(contrasts, gram, trace, r * a * mean / (1 - a)) if a < 1 else nothing
    return Spread(means, basis, a * mean), 1 - a


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
