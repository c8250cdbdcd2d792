"""Features in the plane, to be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MOST = 2000
"""Points that are drawn: t-SNE of more takes minutes, and nobody can click them apart."""
ROUNDS = 500
"""Of t-SNE; from the start that PCA gives, more move hardly a point."""
FEWEST = 10
"""Points below which neighbourhoods, and so t-SNE, mean nothing."""


@dataclass(frozen=True, eq=False)
class Map:
    """Points in the plane.

    Args:
        rows: (k,) which of the given features are drawn.
        views: (k, 2) coordinates in 0..1 by name of the method, the one to show first before the other.
    """

    rows: Array
    views: dict[str, Array]


def draw_map(test: Array, shots: Array, seed: int = 0) -> Map:
    """PCA, and t-SNE (van der Maaten and Hinton 2008) of features scaled to unit length.

    Args:
        test: (m, d) features.
        shots: (n, d) features; rows m to m + n - 1 of the map.
        seed: of t-SNE, and of the sample where there are more than 2,000: as many of either as their share is.

    >>> rng = np.random.default_rng(0)
    >>> found = draw_map(rng.normal(size=(20, 8)), rng.normal(size=(5, 8)))
    >>> list(found.views), found.views["PCA"].shape
    (['t-SNE', 'PCA'], (25, 2))
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows = _sample(len(test), len(shots), seed)
    # Test features are a view of another type; nothing is learned here that answers.
    X = np.concatenate([np.asarray(test), np.asarray(shots)]).astype(np.float64)[rows]
    X /= np.maximum(np.linalg.norm(X, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    width = min(50, len(X), X.shape[1])
    if width < 2:
        return Map(rows, {})
    flat = PCA(width, svd_solver="full" if len(X) * X.shape[1] < 10_000 else "auto", random_state=seed)
    found = flat.fit_transform(X)
    views = {"PCA": _scaled(found[:, :2])}
    if len(X) >= FEWEST:
        flat_map = TSNE(2, perplexity=min(30.0, (len(X) - 1) / 3), init="pca", max_iter=ROUNDS, random_state=seed)
        # More threads gain a second where nothing else runs, and cost a minute where something does.
        with threadpool_limits(1):
            near = flat_map.fit_transform(found)
        views = {"t-SNE": _scaled(near), **views}
    return Map(rows, views)


def _sample(m: int, n: int, seed: int) -> Array:
    if m + n <= MOST:
        return np.arange(m + n)
    rng, of_test = np.random.default_rng(seed), round(MOST * m / (m + n))
    parts = rng.choice(m, of_test, replace=False), m + rng.choice(n, MOST - of_test, replace=False)
    return np.sort(np.concatenate(parts))


def _scaled(points: Array) -> Array:
    """To 0..1 in both directions by one factor, centred."""
    low, high = points.min(axis=0), points.max(axis=0)
    reach = max(float((high - low).max()), 1e-12)
    return np.asarray((points - (low + high) / 2) / reach + 0.5)
