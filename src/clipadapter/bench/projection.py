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

from clipadapter.bench.bundle import select_views
from clipadapter.bench.bundle_files import load_bundle
from clipadapter.classifier.evaluation import check_labels
from clipadapter.errors import InputError
from clipadapter.heads import Head, TextFeatures
from clipadapter.heads.estimator import clone
from clipadapter.rendering.plots import save_plot, save_plots
from clipadapter.rendering.projection import (
    MAX_POINTS,
    METHOD_TITLES,
    SAME_FEATURE_DISTANCE,
    Array,
    Method,
    match_orientation,
    project,
    scatter_figure,
    unit_rows,
)
from clipadapter.utils.files import safe_file_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_NEIGHBOURS = 10


def adapted_features(head: Head, X: ArrayLike) -> Array:
    """The adapted picture features that a fitted head compares with class text.

    Args:
        head: fitted, of a method that predicts other classes by their text, such as "clip-adapter" or "rla".
        X: (m, d) raw features.

    Returns:
        (m, d).

    Raises:
        InputError: if the head is none of these, or does not adapt features.
        sklearn.exceptions.NotFittedError: before `fit`.

    >>> from clipadapter.heads import create_head
    >>> text = TextFeatures(["cat", "dog"], [[1, 0, 0], [0, 1, 0]])
    >>> head = create_head("clip-adapter", alpha=0.2).fit([[3, 1, 1], [1, 3, 1]], ["cat", "dog"], text=text)
    >>> adapted_features(head, [[3, 1, 1], [1, 3, 1]]).shape
    (2, 3)
    """
    name = type(head).__name__

    def inner_products(directions: Array) -> Array:
        """Inner products of features with text (k, d)."""
        text = TextFeatures([str(i) for i in range(len(directions))], directions, logit_scale=1.0, order="given")
        return head.for_classes(text).logits(X)

    width = np.shape(X)[-1]
    # Text along each axis returns the feature if the head only compares features with text. Random text verifies that.
    features, others = inner_products(np.eye(width)), unit_rows(np.random.default_rng(0).normal(size=(3, width)))
    if not np.allclose(inner_products(others), features @ others.T, atol=1e-4):
        raise InputError(f"{name} does more than compare a feature with class text: it has no adapted features")
    if np.allclose(features, unit_rows(X), atol=SAME_FEATURE_DISTANCE):
        raise InputError(f"{name} does not adapt features: use a head that does, such as clip-adapter or rla")
    return features


def separation(features: ArrayLike, labels: Sequence[str]) -> tuple[float, float]:
    """How well classes are separated: (silhouette, purity), both by the cosine of the unprojected features.

    Silhouette, from -1 to 1, says how much nearer a picture is to its own class than to the next one. Purity, from 0
    to 1, is the fraction of a picture's 10 nearest neighbours that have its class.

    Args:
        features: (n, d), any length.
        labels: n class names, two classes or more, and fewer than n.

    Raises:
        InputError: if these numbers don't fit, or a feature is not finite.

    >>> separation([[1, 0], [1, 0], [0, 1], [0, 1]], ["a", "a", "b", "b"])[0]
    1.0
    """
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    rows, truth = unit_rows(features), np.asarray(labels)
    if len(rows) != len(truth):
        raise InputError(f"there are {len(rows)} rows of features but {len(truth)} labels")
    c = len(set(labels))
    if not 2 <= c < len(rows):
        raise InputError(
            f"{c} class{'es' * (c != 1)} among {len(rows)} pictures: give two classes or more, some with several"
        )
    k = min(N_NEIGHBOURS, len(rows) - 1)
    nearest = NearestNeighbors(n_neighbors=k, metric="cosine").fit(rows).kneighbors(return_distance=False)  # (n, k)
    purity = (truth[nearest] == truth[:, None]).mean()
    return float(silhouette_score(rows, truth, metric="cosine")), float(purity)


def draw_projection(
    before: ArrayLike,
    after: ArrayLike,
    labels: Sequence[str],
    class_names: Sequence[str],
    path: str | Path,
    title: str = "",
    method: Method = "tsne",
    seed: int = 0,
) -> Path:
    """Draw features before and after an adapter side by side, coloured by class.

    Use pictures that the head was not fitted to: any adapter separates its shots. With t-SNE the right panel starts
    from the points of the left one. It is rotated and mirrored to match it.

    Args:
        before: (n, d) features.
        after: (n, e) features of the same pictures, such as `adapted_features` gives.
        labels: n class names.
        class_names: all classes in order; of more than 10 those with the most pictures are coloured.
        path: PNG, PDF or SVG file to write.
        title: above the plot.
        method: see `project`.
        seed: of t-SNE.

    Raises:
        InputError: if numbers of rows differ, a label is no class, there are too few pictures or classes, a feature is
            not finite, or the file can't be written.
    """
    return save_plot(_projection_figure(before, after, labels, class_names, title, method, seed), path)


def _projection_figure(
    before: ArrayLike,
    after: ArrayLike,
    labels: Sequence[str],
    class_names: Sequence[str],
    title: str,
    method: Method,
    seed: int,
) -> Figure:
    check_labels(labels, class_names)
    if not len(labels) == len(np.asarray(before)) == len(np.asarray(after)):
        raise InputError(
            f"there are {len(labels)} labels, but {len(np.asarray(before))} rows before and "
            f"{len(np.asarray(after))} after: all must be of the same pictures"
        )
    names = {}
    for name, features in (("before", before), ("after", after)):
        silhouette, purity = separation(features, labels)
        names[name] = f"{name}: silhouette {silhouette:.3f}, {N_NEIGHBOURS}-NN purity {100 * purity:.1f} %"
    points = project(before, method, seed)
    turned = match_orientation(project(after, method, seed, points), points)
    title = title or f"{len(labels)} pictures, {METHOD_TITLES[method]}"
    return scatter_figure({names["before"]: points, names["after"]: turned}, labels, class_names, title)


def draw_adapted_features(
    head: Head, features: Path, rows: Sequence[int], name: str, folder: Path, plot_formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Draw features of a test part before and after a head that adapts them.

    Args:
        head: unfitted.
        features: folder of a bundle.
        rows: the drawn shots.
        name: of the data set and the head, for the title and the files.
        folder: for the files.
        plot_formats: "png", "pdf", "svg".

    Returns:
        The files; there is none for a head that does not adapt features.
    """
    bundle = load_bundle(features)
    part = bundle.test(bundle.names[0], rows).features
    part = part.take(np.unique(np.linspace(0, len(part) - 1, min(len(part), MAX_POINTS)).astype(int)))
    shots = select_views(head, bundle.shots(rows))
    fitted = clone(head).fit(shots.X, shots.y, text=bundle.text, blocks=shots.blocks)
    try:
        after = adapted_features(fitted, part.plain)
    except InputError:  # a head that does not adapt features
        return []
    title = f"{len(part)} test pictures before and after {name}, {len(rows)} shots"
    figure = _projection_figure(part.final, after, part.y, part.class_names, title, "tsne", seed=1)
    return save_plots(figure, folder / safe_file_name(name), plot_formats)
