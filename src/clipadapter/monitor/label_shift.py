"""Label shift: whether the class priors changed, with a p-value that allows for a small reference.

The statistic compares the mean probability of each class in both samples. Its distribution where nothing changed is
drawn:

- If the reference is a sample of pictures, both samples are divided at random again (a permutation test, exact).
- Shots are not such a sample: their number per class was chosen. The stream is drawn from the shots by the reference
  priors, and the reference is drawn again within each class (a stratified bootstrap), with the probabilities of fits
  without the shot. Confusions of the model are thereby part of what is expected.

Letters: n reference pictures, m of the stream, c classes, b draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipadapter.monitor.priors import Array

MAX_CHUNK_VALUES = 2_000_000
"""Values (draws times pictures) that are in memory at a time."""
SMOOTHING_WEIGHT_SHOTS = 2.0
"""Weight in all, in shots, of the shots of any class that smooth the distribution of a class."""
SMOOTHING_SAMPLE_SIZE = 20
"""Approximate number of shots that smooth it. A weight of two shots needs no more, and each costs time per draw."""


@dataclass(frozen=True, eq=False)
class LabelShift:
    """How far the class priors are from those of the reference."""

    p_value: float  # share of the draws that are as far apart in all, if nothing changed
    # (c,) the same for each class, corrected for their number (by the largest of all classes: Westfall and Young 1993)
    class_p_values: Array


def compare_priors_with_pictures(reference: Array, current: Array, *, draws: int = 999, seed: int = 0) -> LabelShift:
    """Compare the probabilities of two samples of pictures, (n, c) and (m, c)."""
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
) -> LabelShift:
    """Compare pictures (m, c) with shots (n, c), predicted by fits without the shot; priors (c,) of the reference."""
    m, c = len(current), len(priors)
    class_rows = [shots[labels == k] for k in range(c)]
    distributions = [_class_distribution(shots, labels, k) for k in range(c)]
    priors = np.where([len(rows) > 0 for rows in class_rows], priors, 0.0)
    priors /= priors.sum()
    expected = np.sum([p * rows.mean(axis=0) for p, rows in zip(priors, class_rows, strict=True) if len(rows)], axis=0)

    def draw_differences(count: int, rng: np.random.Generator) -> Array:
        differences = np.zeros((count, current.shape[1]))
        sizes = rng.multinomial(m, priors, size=count)
        for k in range(c):
            n_shots = len(class_rows[k])
            if not n_shots:
                continue
            weights, rows = distributions[k]
            differences += rng.multinomial(sizes[:, k], weights) @ rows / m
            # One shot less, so that the variance is that of the class and not of its few shots.
            n_drawn = max(1, n_shots - 1)
            differences -= priors[k] * (rng.multinomial(n_drawn, weights, size=count) / n_drawn) @ rows
        return differences

    return _test_difference(current.mean(axis=0) - expected, expected, draw_differences, draws, seed, m)


def _class_distribution(shots: Array, labels: NDArray[np.int64], k: int) -> tuple[Array, Array]:
    """Distribution of the probabilities that pictures of class k get: weights (r,) of rows (r, c).

    Each shot of the class has a weight of one. Some shots of all classes are added as if they were of class k: the
    probabilities of their class and of k are exchanged. Their weight in all is `SMOOTHING_WEIGHT_SHOTS`. Otherwise a
    confusion that no shot of the class shows would be taken for impossible.
    """
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
) -> LabelShift:
    """Test an observed difference (c,) of mean probabilities against draws of such differences."""
    rng, chunk = np.random.default_rng(seed), max(1, MAX_CHUNK_VALUES // rows_per_draw)
    parts = [draw_differences(min(chunk, draws - start), rng) for start in range(0, draws, chunk)]
    differences = np.concatenate([observed[None], *parts])
    chi_square = (differences**2 / np.maximum(expected, 1e-6)).sum(axis=1)
    standardised = np.abs(differences) / np.maximum(differences[1:].std(axis=0), 1e-9)
    largest = standardised[1:].max(axis=1)
    class_p_values = np.array([_p_value(largest, value) for value in standardised[0]])
    return LabelShift(_p_value(chi_square[1:], chi_square[0]), class_p_values)


def _p_value(draws: Array, value: float) -> float:
    return float((1 + (draws >= value - 1e-12).sum()) / (len(draws) + 1))
