"""The three tests of a stream: how its pictures look, its class priors, and the rate of none of the classes.

Covariate shift: whether the pictures look different, whatever the priors of their classes.

A two-sample test by the maximum mean discrepancy (Gretton et al., "A kernel two-sample test", JMLR 13:723-773, 2012),
with a Gaussian kernel whose width is the median distance, on unit features. Two parts are ours. Both prevent that a
change of the class priors is taken for a change of the features:

- The part of the features that the model's probabilities explain is subtracted first: the least-squares fit of the
  features of both samples to the probabilities. The residuals differ little between classes, so that smaller changes
  are found too.
- The permutations allow for other priors of the classes; see `draw_permutations`. The discrepancy is computed twice,
  plain and with reference pictures that are weighted by their odds. Each is divided by its standard deviation, and the
  larger one counts. The weighted one finds more if some classes vary more than others. Otherwise the plain one does,
  since no small number of shots gets a large weight.

Label shift: whether the class priors changed, with a p-value that allows for a small reference.

The statistic compares the mean probability of each class in both samples. Its distribution where nothing changed is
drawn:

- If the reference is a sample of pictures, both samples are divided at random again (a permutation test, exact).
- Shots are not such a sample: their number per class was chosen. The stream is drawn from the shots by the reference
  priors, and the reference is drawn again within each class (a stratified bootstrap), with the probabilities of fits
  without the shot. Confusions of the model are thereby part of what is expected.

Letters: n reference pictures, m of the stream, N = n + m, d width, c classes, b draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.utils.prediction import unit_rows

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
RIDGE = 0.1  # weight of the ridge penalty: as if each class had so many more pictures, without any feature
MIN_RELATIVE_ODDS = 1e-3  # smallest odds of a picture; the mean of the odds is 1


class CovariateShift(NamedTuple):
    """How far the features of two samples are apart."""

    # The squared discrepancy, in standard deviations of its draws from their mean: about 0 where nothing changed
    distance: float
    distance_limit: float  # the distance that 95 % of the draws stay below
    p_value: float  # share of the draws that are as far apart


def measure_covariate_shift(
    features: tuple[ArrayLike, ArrayLike],
    probabilities: tuple[Array, Array],
    odds: tuple[Array, Array],
    *,
    draws: int = 999,
    seed: int = 0,
) -> CovariateShift:
    """Test whether the features of two samples of pictures, (n, d) and (m, d) of any length, have one distribution.

    The probabilities of the classes, (n, c) and (m, c), are by one model that was fitted without both samples. The odds
    (n,) and (m,) say how much likelier each picture is in the stream, given the classes that it may have.
    """
    X, Z = (unit_rows(each) for each in features)
    rows = class_residuals(np.concatenate([X, Z]), np.concatenate(probabilities))
    row_odds = np.concatenate(odds)
    row_odds = np.maximum(row_odds / row_odds.mean(), MIN_RELATIVE_ODDS)
    kernel = gaussian_kernel(rows)
    observed = np.arange(len(rows))[None] >= len(X)
    permuted = draw_permutations(row_odds, len(Z), draws, np.random.default_rng(seed))
    divisions = np.concatenate([observed, permuted])
    values = [discrepancy(kernel, divisions, weights) for weights in (None, row_odds)]
    # In standard deviations from the mean, of the observed value and the draws alike.
    distances = np.max([(each - each.mean()) / max(float(each.std()), 1e-12) for each in values], axis=0)
    p_value = (1 + int((distances[1:] >= distances[0] - 1e-9).sum())) / (draws + 1)
    return CovariateShift(float(distances[0]), float(np.quantile(distances[1:], 0.95)), p_value)


def class_residuals(features: Array, probabilities: Array) -> Array:
    """Features (N, d) less their linear fit to the probabilities (N, c), by ridge regression."""
    centred = features - features.mean(axis=0)
    gram = probabilities.T @ probabilities + RIDGE * np.eye(probabilities.shape[1])
    return np.asarray(centred - probabilities @ np.linalg.solve(gram, probabilities.T @ centred))


def gaussian_kernel(rows: Array) -> NDArray[np.float32]:
    """Kernel (N, N) exp(-|x - y|^2 / (2 s^2)) between all rows; s is the median distance of two different rows."""
    squares = (rows**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0.0)
    pairs = distances[np.triu_indices(len(rows), 1)]
    positive = pairs[pairs > 1e-12]
    width = float(np.median(positive)) if len(positive) else 1.0
    return np.asarray(np.exp(-distances / (2 * width)), np.float32)


def discrepancy(kernel: NDArray[np.float32], is_current: Mask, weights: Array | None = None) -> Array:
    """Squared discrepancy (b,) of each division (b, N) by a kernel (N, N): Gretton et al. (2012), eq. 3, unbiased.

    Those of the N pictures that are of the reference may have weights (N,).
    """
    current = is_current.astype(np.float32)
    reference = (1 - current) * (1 if weights is None else weights.astype(np.float32))
    within_current, within_reference = (_mean_of_pairs(kernel, sample, sample) for sample in (current, reference))
    return within_current + within_reference - 2 * _mean_of_pairs(kernel, current, reference)


def _mean_of_pairs(kernel: NDArray[np.float32], a: NDArray[np.float32], b: NDArray[np.float32]) -> Array:
    """Mean kernel (b,) of pairs of two different pictures, one by each row of weights (b, N)."""
    same = np.einsum("bn,bn->b", a, b, dtype=np.float64)
    all_pairs = np.einsum("bn,bn->b", a @ kernel, b, dtype=np.float64)
    return np.asarray((all_pairs - same) / (a.sum(axis=1, dtype=np.float64) * b.sum(axis=1, dtype=np.float64) - same))


def draw_permutations(odds: Array, m: int, draws: int, rng: np.random.Generator) -> Mask:
    """Draw sets of m out of N pictures, each with probability proportional to the product of its odds.

    If two samples have one distribution, all divisions of them are equally likely, and a permutation test is exact. If
    the stream has the same classes with other priors, the divisions are not equally likely: a picture of a class that
    is r times as frequent belongs to the stream with r times the odds. Given all pictures, a set S of m of them is the
    stream with probability proportional to the product of the odds in S. Drawing from that distribution makes the test
    exact again if the odds are known (weighted exchangeability, Tibshirani et al. 2019,
    https://arxiv.org/abs/1904.06019; the conditional permutation test of Berrett et al. 2020,
    https://arxiv.org/abs/1807.05405, approximates it by swaps).

    The method is the exact one of Chen, Dempster and Liu (1994, Biometrika 81:457-469), one picture after the other.
    """
    log_odds = np.log(odds / np.exp(np.log(odds).mean()))  # only their ratios matter
    log_sums = _log_symmetric_sums(log_odds, m)
    n_missing = np.full(draws, m)
    sets = np.zeros((draws, len(odds)), bool)
    for i, log in enumerate(log_odds):
        with np.errstate(invalid="ignore"):  # -inf - -inf: the set is complete
            probability = np.exp(log + log_sums[i + 1, n_missing - 1] - log_sums[i, n_missing])
        sets[:, i] = (n_missing > 0) & (rng.random(draws) < probability)
        n_missing -= sets[:, i]
    return sets


def _log_symmetric_sums(log_odds: Array, m: int) -> Array:
    """Logarithms (N + 1, m + 1) of elementary symmetric polynomials."""
    # Row i, column j: the sum, over all sets of j of the pictures i ... N, of the product of their odds.
    sums = np.full((len(log_odds) + 1, m + 1), -np.inf)
    sums[-1, 0] = 0.0
    for i in range(len(log_odds) - 1, -1, -1):
        sums[i] = sums[i + 1]
        sums[i, 1:] = np.logaddexp(sums[i + 1, 1:], log_odds[i] + sums[i + 1, :-1])
    return sums


# ---- Label shift ----

MAX_CHUNK_VALUES = 2_000_000  # values (draws times pictures) that are in memory at a time
SMOOTHING_WEIGHT_SHOTS = 2.0
"""Weight in all, in shots, of the shots of any class that smooth the distribution of a class."""
SMOOTHING_SAMPLE_SIZE = 20
"""Approximate number of shots that smooth it. A weight of two shots needs no more, and each costs time per draw."""


def compare_priors_with_pictures(
    reference: Array, current: Array, *, draws: int = 999, seed: int = 0
) -> tuple[float, list[float]]:
    """Compare the probabilities of two samples of pictures, (n, c) and (m, c). See `_test_difference`."""
    rows, n, m = np.concatenate([reference, current]), len(reference), len(current)
    total = rows.sum(axis=0)

    def draw_differences(count: int, rng: np.random.Generator) -> Array:
        # (count, n + m): each row marks m random pictures as current, so the number of current pictures stays m.
        is_current = rng.permuted(np.tile(np.arange(n + m) < m, (count, 1)), axis=1)
        current_sum = is_current.astype(np.float64) @ rows
        return np.asarray(current_sum / m - (total - current_sum) / n)

    observed = current.mean(axis=0) - reference.mean(axis=0)
    return _test_difference(observed, total / (n + m), draw_differences, draws, seed, n + m)


def compare_priors_with_shots(
    shots: Array, labels: NDArray[np.int64], priors: Array, current: Array, *, draws: int = 999, seed: int = 0
) -> tuple[float, list[float]]:
    """Compare pictures (m, c) with shots (n, c), predicted by fits without the shot; priors (c,) of the reference."""
    m, c = len(current), len(priors)
    counts = np.bincount(labels, minlength=c)
    present = np.flatnonzero(counts).tolist()
    distributions = {k: _class_distribution(shots, labels, k) for k in present}
    priors = np.where(counts > 0, priors, 0.0)
    priors /= priors.sum()
    expected = np.sum([priors[k] * shots[labels == k].mean(axis=0) for k in present], axis=0)

    def draw_differences(count: int, rng: np.random.Generator) -> Array:
        differences = np.zeros((count, current.shape[1]))
        sizes = rng.multinomial(m, priors, size=count)
        for k, (weights, rows) in distributions.items():
            differences += rng.multinomial(sizes[:, k], weights) @ rows / m
            # One shot less, so that the variance is that of the class and not of its few shots.
            n_drawn = max(1, counts[k] - 1)
            differences -= priors[k] * (rng.multinomial(n_drawn, weights, size=count) / n_drawn) @ rows
        return differences

    return _test_difference(current.mean(axis=0) - expected, expected, draw_differences, draws, seed, m)


def _class_distribution(shots: Array, labels: NDArray[np.int64], k: int) -> tuple[Array, Array]:
    """Distribution of the probabilities that pictures of class k get: weights (r,) of rows (r, c)."""
    # Beside the shots of the class, some of all classes are taken as if they were of class k: otherwise a confusion
    # that no shot of the class shows would be taken for impossible.
    of_class = np.flatnonzero(labels == k)
    sample = np.arange(0, len(shots), max(1, len(shots) // SMOOTHING_SAMPLE_SIZE))
    rows, indices, classes = shots[sample].copy(), np.arange(len(sample)), labels[sample]
    # Exchange the columns of the shot's class and of k. Both values are read from `shots`, which does not change.
    rows[indices, classes], rows[:, k] = shots[sample, k], shots[sample, classes]
    weights = np.concatenate([np.ones(len(of_class)), np.full(len(sample), SMOOTHING_WEIGHT_SHOTS / len(sample))])
    return weights / weights.sum(), np.concatenate([shots[of_class], rows])


def _test_difference(
    observed: Array,
    expected: Array,
    draw_differences: Callable[[int, np.random.Generator], Array],
    draws: int,
    seed: int,
    rows_per_draw: int,
) -> tuple[float, list[float]]:
    """Test an observed difference (c,) of mean probabilities against draws of such differences.

    Returns the share of the draws that are as far apart in all, and the same for each class, corrected for their number
    (by the largest of all classes: Westfall and Young 1993).
    """
    rng, chunk = np.random.default_rng(seed), max(1, MAX_CHUNK_VALUES // rows_per_draw)
    parts = [draw_differences(min(chunk, draws - start), rng) for start in range(0, draws, chunk)]
    differences = np.concatenate([observed[None], *parts])
    chi_square = (differences**2 / np.maximum(expected, 1e-6)).sum(axis=1)
    standardised = np.abs(differences) / np.maximum(differences[1:].std(axis=0), 1e-9)
    largest = standardised[1:].max(axis=1)
    return _p_value(chi_square[1:], chi_square[0]), [_p_value(largest, value) for value in standardised[0]]


def _p_value(draws: Array, value: float) -> float:
    return float((1 + (draws >= value - 1e-12).sum()) / (len(draws) + 1))


# ---- The rate of pictures of none of the classes ----


def fisher_p_value(rejected: Mask, reference_rejected: Mask) -> float:
    """P-value of Fisher's exact test, one-sided: are more of m pictures rejected than of n of the reference?

    The test also holds for shots, although the threshold is the score of one of them. Consider the pictures with the
    highest scores, as many as are rejected in both samples together. If nothing changed, they are a random draw from
    all m + n pictures. The p-value is the probability that as many or more of them are of the stream. Not SciPy's,
    which an installation for exported files lacks.
    """
    m, n, total = len(rejected), len(reference_rejected), int(rejected.sum() + reference_rejected.sum())
    counts = range(max(int(rejected.sum()), total - n), min(m, total) + 1)
    log_ways = (_log_binomial(m, k) + _log_binomial(n, total - k) for k in counts)
    return min(1.0, math.fsum(math.exp(log - _log_binomial(m + n, total)) for log in log_ways))


def _log_binomial(n: int, k: int) -> float:
    """Logarithm of the binomial coefficient n over k."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: Holm (1979, Scandinavian Journal of Statistics 6:65-70)."""
    values = np.array(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    values[order] = np.maximum.accumulate(np.minimum(1.0, np.arange(len(values), 0, -1) * values[order]))
    return values.tolist()
