"""Differences of two methods on the draws of shots, and the test pictures, that both were measured on.

The accuracies of two methods that were fitted to the same shots depend on the draw in the same way, and two methods are
often wrong on the same pictures. Their differences vary far less than their accuracies, so methods are compared draw by
draw and picture by picture, and not by two means and deviations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Key = TypeVar("Key", bound=Hashable)
MIN_PAIRS = 3  # fewer pairs in a group are not resampled: two pairs have only three different means
RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """How far the first method is above the second, in the unit of their accuracies."""

    mean: float  # with several groups, the mean of the groups' means
    interval: tuple[float, float] | None  # 95 % percentile interval of the mean; None if a group has few pairs
    pairs: int  # number of draws that both methods were measured on


def paired_difference(
    a: Mapping[Key, float], b: Mapping[Key, float], group: Callable[[Key], Hashable] = lambda draw: None
) -> Difference | None:
    """The mean of ``a - b`` over the draws that both have, with a bootstrap interval; None if they share no draw.

    The key of a draw is what both methods have in common, such as data set, shots and seed. Draws are resampled within
    each group, such as a data set, and each group counts the same. The interval covers the variance between draws only:
    not that of the test pictures, nor of the choice of data sets. With few pairs it is too narrow: for normal
    differences it contains the true mean in 76, 84, 90 and 93 of 100 cases with 3, 5, 10 and 20 pairs.
    """
    differences = defaultdict(list)
    for draw, value in a.items():
        if draw in b:
            differences[group(draw)].append(value - b[draw])
    if not differences:
        return None
    groups = [np.array(values) for values in differences.values()]
    interval = None
    if min(map(len, groups)) >= MIN_PAIRS:
        rng = np.random.default_rng(0)
        means = [values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1) for values in groups]
        low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
        interval = float(low), float(high)
    return Difference(float(np.mean([values.mean() for values in groups])), interval, sum(map(len, groups)))


def difference_on_pictures(
    a: Mapping[int, NDArray[np.bool_]], b: Mapping[int, NDArray[np.bool_]], classes: ArrayLike | None = None
) -> tuple[float, float] | None:
    """Mean of ``a - b`` on the same draws and pictures, and its standard error; None if no draw is in both.

    Each method has (m,) whether it is right on each test picture, by the seed of the draw. With (m,) classes the mean
    is that of balanced accuracies. The error is that of the choice of the test pictures and that of the draws, added as
    variances. With one draw it is that of the pictures alone.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    differences = np.stack([a[seed].astype(float) - b[seed] for seed in seeds])  # (draws, m)
    _, group = np.unique(np.zeros(differences.shape[1]) if classes is None else classes, return_inverse=True)
    counts = np.bincount(group)
    weights = 1 / (counts[group] * len(counts))  # classes count the same
    of_draws, of_pictures = differences @ weights, differences.mean(axis=0)
    deviations = of_pictures - (np.bincount(group, of_pictures) / counts)[group]
    variance = float((weights**2 * deviations**2 * (counts / np.maximum(counts - 1, 1))[group]).sum())
    if len(seeds) > 1:
        variance += float(of_draws.var(ddof=1)) / len(seeds)
    return float(of_draws.mean()), float(np.sqrt(variance))
