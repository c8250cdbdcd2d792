"""The paper's figure: features of pictures before and after an adapter, projected to two dimensions.

A projection to two dimensions shows structure that does not exist, and hides structure that does. So each panel states
two metrics of the features themselves, not of the projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from clipadapter.bench.bundle import load_bundle, select_views
from clipadapter.errors import InputError
from clipadapter.heads import Head, TextFeatures
from clipadapter.heads.estimator import clone
from clipadapter.rendering.plots import save_plots
from clipadapter.rendering.projection import (
    MAX_POINTS,
    SAME_FEATURE_DISTANCE,
    Array,
    checked_unit_rows,
    match_orientation,
    project,
    scatter_figure,
)
from clipadapter.utils.files import safe_file_name

if TYPE_CHECKING:
    from clipadapter.bench.fits import Fit

N_NEIGHBOURS = 10


def adapted_features(head: Head, X: ArrayLike) -> Array:
    """(m, d) picture features as a fitted head, such as "clip-adapter" or "rla", compares them with class text."""
    name = type(head).__name__

    def inner_products(directions: Array) -> Array:
        """Inner products of features with text (k, d)."""
        text = TextFeatures([str(i) for i in range(len(directions))], directions, logit_scale=1.0, order="given")
        return head.for_classes(text).logits(X)

    width = np.shape(X)[-1]
    # Text along each axis returns the feature if the head only compares features with text. Random text verifies that.
    features = inner_products(np.eye(width))
    others = checked_unit_rows(np.random.default_rng(0).normal(size=(3, width)))
    if not np.allclose(inner_products(others), features @ others.T, atol=1e-4):
        raise InputError(f"{name} does more than compare a feature with class text: it has no adapted features")
    if np.allclose(features, checked_unit_rows(X), atol=SAME_FEATURE_DISTANCE):
        raise InputError(f"{name} does not adapt features: use a head that does, such as clip-adapter or rla")
    return features


def separation(features: ArrayLike, labels: Sequence[str]) -> tuple[float, float]:
    """How well the classes of (n, d) features are separated, by the cosine: (silhouette, purity).

    Silhouette, from -1 to 1, says how much nearer a picture is to its own class than to the next one. Purity, from 0
    to 1, is the fraction of a picture's 10 nearest neighbours that have its class.
    """
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    rows, truth = checked_unit_rows(features), np.asarray(labels)
    c = len(set(labels))
    if not 2 <= c < len(rows):
        raise InputError(
            f"{c} class{'es' * (c != 1)} among {len(rows)} pictures: give two classes or more, some with several"
        )
    k = min(N_NEIGHBOURS, len(rows) - 1)
    nearest = NearestNeighbors(n_neighbors=k, metric="cosine").fit(rows).kneighbors(return_distance=False)  # (n, k)
    purity = (truth[nearest] == truth[:, None]).mean()
    return float(silhouette_score(rows, truth, metric="cosine")), float(purity)


def draw_adapted_features(fit: Fit, folder: Path, plot_formats: Sequence[str] = ("png",)) -> list[Path]:
    """Draw features of a test part before and after the head of a fit; none if the head does not adapt features."""
    head, rows = fit.head, fit.runs[0].rows
    name = f"{fit.entries[0].data}-{fit.entries[0].label}"
    bundle = load_bundle(fit.folder)
    part = bundle.test(bundle.names[0], rows).features
    part = part.take(np.unique(np.linspace(0, len(part) - 1, min(len(part), MAX_POINTS)).astype(int)))
    shots = select_views(head, bundle.shots(rows))
    fitted = clone(head).fit(shots.X, shots.y, text=bundle.text, blocks=shots.blocks)
    try:
        after = adapted_features(fitted, part.plain)
    except InputError:  # a head that does not adapt features
        return []
    titles = {}
    for when, X in (("before", part.final), ("after", after)):
        silhouette, purity = separation(X, part.y)
        titles[when] = f"{when}: silhouette {silhouette:.3f}, {N_NEIGHBOURS}-NN purity {100 * purity:.1f} %"
    points = project(part.final, "tsne", seed=1)
    # The second t-SNE starts from the points of the first, and is rotated and mirrored to match it.
    turned = match_orientation(project(after, "tsne", seed=1, start=points), points)
    panels = {titles["before"]: points, titles["after"]: turned}
    title = f"{len(part)} test pictures before and after {name}, {len(rows)} shots"
    figure = scatter_figure(panels, part.y, part.class_names, title)
    return save_plots(figure, folder / safe_file_name(name), plot_formats)
