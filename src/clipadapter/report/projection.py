"""Features in the plane, for a scatter plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MAX_POINTS = 2000
"""Points that are drawn: t-SNE of more takes minutes, and they overlap too much to be clicked."""
TSNE_ITERATIONS = 500
"""From the start that PCA gives, more iterations hardly move a point."""
MIN_TSNE_POINTS = 10
"""Points below which neighbourhoods, and so t-SNE, mean nothing."""
MAX_PCA_DIMENSIONS = 50
FULL_SVD_MAX_VALUES = 10_000
TSNE_PERPLEXITY = 30.0


@dataclass(frozen=True, eq=False)
class Projection:
    """Points in the plane."""

    rows: Array  # (k,) which of the given features are drawn
    views: dict[str, Array]  # (k, 2) coordinates in 0..1 by name of the method; the one to show first comes first


def project_features(test: Array, shots: Array, seed: int = 0) -> Projection:
    """PCA, and t-SNE (van der Maaten and Hinton 2008) of features of unit length.

    Args:
        test: (m, d) features.
        shots: (n, d) features; rows m to m + n - 1 of the projection.
        seed: of t-SNE, and of the sample if there are more than 2,000 points: of both parts in proportion.

    >>> rng = np.random.default_rng(0)
    >>> projection = project_features(rng.normal(size=(20, 8)), rng.normal(size=(5, 8)))
    >>> list(projection.views), projection.views["PCA"].shape
    (['t-SNE', 'PCA'], (25, 2))
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    rows = _sample_rows(len(test), len(shots), seed)
    # `np.asarray` since test features have a type of their own that `fit` refuses; nothing here is used to predict.
    X = np.concatenate([np.asarray(test), np.asarray(shots)]).astype(np.float64)[rows]
    X /= np.maximum(np.linalg.norm(X, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    dimensions = min(MAX_PCA_DIMENSIONS, len(X), X.shape[1])
    if dimensions < 2:
        return Projection(rows, {})
    solver = "full" if len(X) * X.shape[1] < FULL_SVD_MAX_VALUES else "auto"
    components = PCA(dimensions, svd_solver=solver, random_state=seed).fit_transform(X)
    views = {"PCA": _scale_to_unit(components[:, :2])}
    if len(X) >= MIN_TSNE_POINTS:
        perplexity = min(TSNE_PERPLEXITY, (len(X) - 1) / 3)
        tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=TSNE_ITERATIONS, random_state=seed)
        # More threads save a second on an idle machine, and cost a minute on a busy one.
        with threadpool_limits(1):
            points = tsne.fit_transform(components)
        views = {"t-SNE": _scale_to_unit(points), **views}
    return Projection(rows, views)


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
