"""Features in the plane, for a scatter plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError
from clipadapter.rendering.projection import MAX_POINTS, METHOD_TITLES, Method, project

Array = NDArray[Any]
MIN_TSNE_POINTS = 10
"""Points below which neighbourhoods, and so t-SNE, mean nothing."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Points in the plane."""

    rows: Array  # (k,) which of the given features are drawn
    views: dict[str, Array]  # (k, 2) coordinates in 0..1 by name of the method; the one to show first comes first


def project_features(test: Array, shots: Array, seed: int = 0) -> Projection:
    """PCA and t-SNE of (m, d) test features and (n, d) shots, which are rows m to m + n - 1.

    Of more than 2,000 rows a sample of both in proportion is drawn.

    >>> rng = np.random.default_rng(0)
    >>> projection = project_features(rng.normal(size=(20, 8)), rng.normal(size=(5, 8)))
    >>> list(projection.views), projection.views["PCA"].shape
    (['t-SNE', 'PCA'], (25, 2))
    """
    rows = _sample_rows(len(test), len(shots), seed)
    X = np.concatenate([np.asarray(test), np.asarray(shots)])[rows]
    methods: list[Method] = ["tsne", "pca"] if len(X) >= MIN_TSNE_POINTS else ["pca"]
    try:
        return Projection(rows, {METHOD_TITLES[method]: _scale_to_unit(project(X, method, seed)) for method in methods})
    except InputError:  # too few points, or all the same: there is nothing to draw
        return Projection(rows, {})


def _sample_rows(m: int, n: int, seed: int) -> Array:
    if m + n <= MAX_POINTS:
        return np.arange(m + n)
    rng, n_test = np.random.default_rng(seed), round(MAX_POINTS * m / (m + n))
    parts = rng.choice(m, n_test, replace=False), m + rng.choice(n, MAX_POINTS - n_test, replace=False)
    return np.sort(np.concatenate(parts))


def _scale_to_unit(points: Array) -> Array:
    """Scale to 0..1 in both directions by one factor, centred."""
    low, high = points.min(axis=0), points.max(axis=0)
    extent = max(float((high - low).max()), 1e-12)
    return np.asarray((points - (low + high) / 2) / extent + 0.5)
