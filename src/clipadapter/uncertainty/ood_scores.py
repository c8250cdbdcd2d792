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
    """Ln of the sum of exp over each row; -inf counts nothing.

    >>> log_sum_exp(np.array([[0.0, -np.inf], [1000.0, 1000.0]]))
    array([   0.        , 1000.69314718])
    """
    top = x.max(axis=1)
    finite = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):  # of a row of nothing but -inf
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

    Ming et al. 2022, eq. 1, https://arxiv.org/abs/2211.13445, where a temperature of 1 is advised.

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


def distractors(cosines: Array, others: Array, scale: float) -> Scores:
    """Ln of what distractors attract over what classes attract, by exp of scaled cosines.

    NegLabel's score (Jiang et al. 2024, eq. 5, https://arxiv.org/abs/2403.20078) is one over one plus exp of it: the
    order is the same, but it doesn't saturate.

    Args:
        cosines: (m, c) to the class text.
        others: (m, k) to the distractors' text.
        scale: one over the temperature.

    >>> distractors(np.array([[0.5]]), np.array([[0.25]]), 4.0)
    array([-1.])
    """
    return log_sum_exp(scale * others) - log_sum_exp(scale * cosines)


def nearest(cosines: Array) -> Scores:
    """One minus the cosine to the nearest shot (deep nearest neighbours, Sun et al. 2022, with k = 1).

    https://arxiv.org/abs/2204.06507. There k grows with the training set; with few shots a class it is one.

    >>> nearest(np.array([[0.25, 0.5]]))
    array([0.5])
    """
    return np.asarray(1 - cosines.max(axis=1))


def background(others: Array, cosines: Array) -> Scores:
    """How much nearer the nearest background picture is than the direction of the nearest class, as cosines.

    Args:
        others: (m, b) cosines to the background pictures.
        cosines: (m, c) cosines to the classes' means.

    >>> background(np.array([[0.75, 0.0]]), np.array([[0.5, 0.25]]))
    array([0.25])
    """
    return np.asarray(others.max(axis=1) - cosines.max(axis=1))


def without_own(values: Array, labels: Array) -> Array:
    """A copy of (n, c) in which each row's own class can't be the highest: what is then seen is a picture of no class.

    >>> without_own(np.array([[3.0, 1.0]]), np.array([0]))
    array([[-inf,   1.]])
    """
    other = np.array(values, dtype=np.float64)
    other[np.arange(len(labels)), labels] = -np.inf
    return other


LEAST = 1e-3
"""Smallest share of equal variances in the covariance: with many shots and no noise the formula would say none."""


class Lifted(NamedTuple):
    """Rows (m, d), and their products with the basis of a spread (m, q): both are needed again and again."""

    plain: Array
    along: Array


@dataclass(frozen=True, eq=False)
class Spread:
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


NEEDS = {
    "max-logit": "logits",
    "energy": "logits",
    "msp": "probabilities",
    "mcm": "text",
    "text": "text",
    "distractors": "distractors",
    "mahalanobis": "shots of every class",
    "knn": "shots",
    "background": "background",
}
"""Every score, and what it can't do without."""
TO_SHOTS = {"mahalanobis", "knn", "background"}
"""Scores that compare a picture with shots: of a class's only shot they say how far the other classes are."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What the scores compare a picture with; None is what was not given.

    Args:
        spread: class means and covariance.
        text: (c, d) unit class text.
        distractors: (k, d) unit text of other things.
        background: (b, d) unit features of background pictures.
        shots: (n, d) unit features.
        scale: logit scale of the encoder.
    """

    spread: Spread | None = None
    text: Array | None = None
    distractors: Array | None = None
    background: Array | None = None
    shots: Array | None = None
    scale: float = 100.0

    @property
    def width(self) -> int | None:
        """d, or None if pictures are compared with nothing."""
        means = None if self.spread is None else self.spread.means
        arrays = (means, self.text, self.distractors, self.background, self.shots)
        return next((int(each.shape[1]) for each in arrays if each is not None), None)

    @property
    def classes(self) -> int | None:
        """c, or None if pictures are compared with nothing that has a row a class."""
        means = None if self.spread is None else self.spread.means
        return next((len(each) for each in (means, self.text) if each is not None), None)

    def kept(self, wanted: Sequence[str]) -> Memory:
        """Only what these scores need, as float32."""
        by_text = {"text", "mcm", "distractors"} & set(wanted)
        return Memory(
            spread=self.spread.single() if self.spread and {"mahalanobis", "background"} & set(wanted) else None,
            text=_single(self.text) if by_text else None,
            distractors=_single(self.distractors) if "distractors" in wanted else None,
            background=_single(self.background) if "background" in wanted else None,
            shots=_single(self.shots) if "knn" in wanted else None,
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
            return np.asarray(_given(self.spread, name).distances(rows).min(axis=1))
        if name == "knn":
            return nearest(rows @ _given(self.shots, name).T)
        if name == "background":
            directions = unit_rows(_given(self.spread, name).means)
            return background(rows @ _given(self.background, name).T, rows @ directions.T)
        return self._by_text(name, rows, rows @ _given(self.text, name).T)

    def _by_text(self, name: str, rows: Array, cosines: Array) -> Array:
        if name == "distractors":
            return distractors(cosines, rows @ _given(self.distractors, name).T, self.scale)
        return mcm(cosines) if name == "mcm" else text_distance(cosines)


@dataclass(frozen=True, eq=False)
class Seen:
    """The shots, and what heads that had not seen them answered.

    Args:
        rows: (n, d) unit features.
        labels: (n,) class positions.
        logits: (n, c), NaN rows where nothing was held out; or None.
        probabilities: the same.
        apart: (n, c) squared distances of each shot as if it had been left out; NaN for the only shot of a class.
    """

    rows: Array
    labels: Array
    logits: Array | None
    probabilities: Array | None
    apart: Array


def held_out_column(name: str, memory: Memory, seen: Seen) -> tuple[Array, Array]:
    """One score of the shots as if they had not been seen, and as if their class did not exist.

    Returns:
        Two times (n,). NaN where a shot is the only one of its class and the score compares with shots, or where no
        head's answer is known.
    """
    rows, labels = seen.rows, seen.labels
    if name in ("max-logit", "energy"):
        score = max_logit if name == "max-logit" else energy
        logits = _given(seen.logits, name)
        return score(logits), score(without_own(logits, labels))
    if name == "msp":
        p = _given(seen.probabilities, name)
        others = np.where(np.arange(p.shape[1]) == labels[:, None], 0.0, p)
        return msp(p), msp(others / np.maximum(others.sum(axis=1, keepdims=True), 1e-300))
    if name == "mahalanobis":
        _given(memory.spread, name)
        return seen.apart.min(axis=1), -without_own(-seen.apart, labels).max(axis=1)
    if name == "knn":
        cosines = rows @ rows.T
        np.fill_diagonal(cosines, -np.inf)
        others = np.where(labels[:, None] == labels, -np.inf, cosines)
        alone = np.bincount(labels)[labels] < 2
        return np.where(alone, np.nan, nearest(cosines)), nearest(others)
    if name == "background":
        near = rows @ _given(memory.background, name).T
        cosines = _to_means(memory, seen)
        return background(near, cosines), background(near, without_own(cosines, labels))
    cosines = rows @ _given(memory.text, name).T
    return memory._by_text(name, rows, cosines), memory._by_text(name, rows, without_own(cosines, labels))


def background_of_itself(memory: Memory) -> Array:
    """The score "background" of the background pictures, each as if it had been left out (b,).

    >>> memory = Memory(Spread(np.eye(2)[:1], np.zeros((0, 2)), 1.0), background=np.eye(2)[[1, 1]])
    >>> background_of_itself(memory)
    array([1., 1.])
    """
    pictures = _given(memory.background, "background")
    cosines = pictures @ pictures.T
    np.fill_diagonal(cosines, -np.inf if len(pictures) > 1 else 1.0)
    directions = unit_rows(_given(memory.spread, "background").means)
    return background(cosines, pictures @ directions.T)


def memory_and_seen(
    features: Array, labels: Array, c: int, logits: Array | None, probabilities: Array | None, apart: bool, **given: Any
) -> tuple[Memory, Seen]:
    """Class means and covariance of the shots, if ``apart`` asks for distances, beside what else was given.

    A class without a shot has no mean: then there are no distances.
    """
    rows = unit_rows(features)
    if not apart or (np.bincount(labels, minlength=c) == 0).any():
        return Memory(shots=rows, **given), Seen(rows, labels, logits, probabilities, np.full((len(rows), c), np.nan))
    spread, distances = learn_spread(rows, labels, c)
    return Memory(spread, shots=rows, **given), Seen(rows, labels, logits, probabilities, distances)


def _to_means(memory: Memory, seen: Seen) -> Array:
    """Cosines of the shots to class means (n, c), to a shot's own class without it."""
    means, labels = _given(memory.spread, "background").means, seen.labels
    cosines = seen.rows @ unit_rows(means).T
    k = np.bincount(labels, minlength=len(means))[labels]
    others = (k[:, None] * means[labels] - seen.rows) / np.maximum(k - 1, 1)[:, None]
    own = np.einsum("nd,nd->n", seen.rows, unit_rows(others))
    cosines[np.arange(len(labels)), labels] = np.where(k > 1, own, np.nan)
    return cosines


def _single(value: Array | None) -> Array | None:
    return None if value is None else value.astype(np.float32, order="C")


def _given(value: Any, name: str) -> Any:
    if value is None:
        raise InputError(f"the score {name!r} needs {NEEDS[name]}, which were not given")
    return value
