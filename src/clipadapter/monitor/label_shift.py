"""Whether classes are as frequent as usual, with a p-value that counts how few pictures say what is usual.

The statistic compares the mean probability of each class in both samples. Where nothing changed it is drawn anew:

- a reference of pictures as they came: both samples are divided anew at random (a permutation test, exact);
- shots, of which every class was given so many: the stream is drawn from the shots by the usual shares, and the
  reference again from each class (a bootstrap by classes), with the probabilities of fits that did not see the shot.
  That the model takes some classes for others is so part of what is usual.

Letters: n reference pictures, m of the stream, c classes, b draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipadapter.monitor.priors import Array

CHUNK = 2_000_000
"""Numbers that are held at a time."""
LENT, LENDERS = 2.0, 20
"""Shots that the other classes lend to each, and of how many one of these is drawn."""


@dataclass(frozen=True, eq=False)
class Shares:
    """How far the shares of the classes are from the usual.

    Args:
        p: share of draws where nothing changed that are as far apart in all.
        by_class: (c,) likewise of each class, corrected for their number (the largest of all classes is compared:
            Westfall and Young 1993).
    """

    p: float
    by_class: Array


def against_pictures(reference: Array, stream: Array, *, draws: int = 999, seed: int = 0) -> Shares:
    """Compare two samples of pictures as they came.

    Args:
        reference: (n, c) probabilities.
        stream: (m, c).
        draws: b.
        seed: of the draws.

    >>> rng = np.random.default_rng(0)
    >>> half, rare = np.eye(2)[rng.integers(2, size=200)], np.eye(2)[rng.integers(8, size=200) // 7]
    >>> against_pictures(half[:100], half[100:]).p > 0.05, against_pictures(half, rare).p
    (True, 0.001)
    """
    rows, n, m = np.concatenate([reference, stream]), len(reference), len(stream)
    total = rows.sum(axis=0)

    def differences(count: int, rng: np.random.Generator) -> Array:
        which = rng.permuted(np.tile(np.arange(n + m) < m, (count, 1)), axis=1)
        inside = which.astype(np.float64) @ rows
        return np.asarray(inside / m - (total - inside) / n)

    return _judged(stream.mean(axis=0) - reference.mean(axis=0), total / (n + m), differences, draws, seed, n + m)


def against_shots(
    shots: Array, labels: NDArray[np.int64], usual: Array, stream: Array, *, draws: int = 999, seed: int = 0
) -> Shares:
    """Compare pictures with shots.

    Args:
        shots: (n, c) probabilities by fits that did not see the shot.
        labels: (n,) class positions.
        usual: (c,) shares of the classes that are usual.
        stream: (m, c) probabilities.
        draws: b.
        seed: of the draws.

    >>> shots, y = np.eye(2)[[0, 0, 0, 1, 1, 1]], np.array([0, 0, 0, 1, 1, 1])
    >>> even, odd = np.eye(2)[[0, 1] * 30], np.eye(2)[[0, 0, 0, 1] * 15]
    >>> against_shots(shots, y, np.array([0.5, 0.5]), even).p, against_shots(shots, y, np.array([0.75, 0.25]), even).p
    (1.0, 0.001)
    """
    m, c = len(stream), len(usual)
    groups = [shots[labels == k] for k in range(c)]
    world = [_world(shots, labels, k) for k in range(c)]
    shares = np.where([len(group) > 0 for group in groups], usual, 0.0)
    shares /= shares.sum()
    expected = np.sum([s * group.mean(axis=0) for s, group in zip(shares, groups, strict=True) if len(group)], axis=0)

    def differences(count: int, rng: np.random.Generator) -> Array:
        found = np.zeros((count, stream.shape[1]))
        sizes = rng.multinomial(m, shares, size=count)
        for k, group in enumerate(groups):
            if not len(group):
                continue
            chance, rows = world[k]
            found += rng.multinomial(sizes[:, k], chance) @ rows / m
            fewer = max(1, len(group) - 1)  # so that the variance is that of the class, not of its few shots
            found -= shares[k] * (rng.multinomial(fewer, chance, size=count) / fewer) @ rows
        return found

    return _judged(stream.mean(axis=0) - expected, expected, differences, draws, seed, m)


def _world(shots: Array, labels: NDArray[np.int64], k: int) -> tuple[Array, Array]:
    """What pictures of class k may get: chances (r,), and the probabilities (r, c) that these are for.

    A class's own shots have a chance each. Some of all shots, as if they were of class k (own class and k exchanged),
    have together that of `LENT` more, so that a mistake none of two shots shows is not taken for impossible.
    """
    own, lent = np.flatnonzero(labels == k), np.arange(0, len(shots), max(1, len(shots) // LENDERS))
    rows, at, theirs = shots[lent].copy(), np.arange(len(lent)), labels[lent]
    rows[at, theirs], rows[:, k] = shots[lent, k], shots[lent, theirs]
    chances = np.concatenate([np.ones(len(own)), np.full(len(lent), LENT / len(lent))])
    return chances / chances.sum(), np.concatenate([shots[own], rows])


def _judged(
    observed: Array,
    usual: Array,
    differences: Callable[[int, np.random.Generator], Array],
    draws: int,
    seed: int,
    rows: int,
) -> Shares:
    """Shares from the observed difference (c,) of mean probabilities, and a function that draws such differences."""
    rng, size = np.random.default_rng(seed), max(1, CHUNK // rows)
    parts = [differences(min(size, draws - done), rng) for done in range(0, draws, size)]
    drawn = np.concatenate([observed[None], *parts])
    distance = (drawn**2 / np.maximum(usual, 1e-6)).sum(axis=1)  # chi-square's
    single = np.abs(drawn) / np.maximum(drawn[1:].std(axis=0), 1e-9)
    p = _tail(distance[1:], distance[0])
    largest = single[1:].max(axis=1)
    return Shares(p, np.array([_tail(largest, value) for value in single[0]]))


def _tail(drawn: Array, value: float) -> float:
    return float((1 + (drawn >= value - 1e-12).sum()) / (len(drawn) + 1))
