"""The paper's figure: features of pictures before and after an adapter, projected to two dimensions.

A projection to two dimensions shows structure that does not exist, and hides structure that does. So each panel states
two metrics of the features themselves, not of the projection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from clipadapter.bench.bundle import select_views
from clipadapter.bench.bundle_files import load_bundle
from clipadapter.classifier.evaluation import check_labels
from clipadapter.errors import InputError, brief
from clipadapter.files import safe_file_name
from clipadapter.functional import unit
from clipadapter.heads import Head, TextFeatures
from clipadapter.heads.estimator import clone
from clipadapter.rendering.method_colours import MARKERS
from clipadapter.rendering.plots import create_figure, save_plot, save_plots, set_title, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Method = Literal["tsne", "pca"]
METHOD_TITLES = {"tsne": "t-SNE", "pca": "PCA"}
MIN_ROWS = 5
"""Fewer rows are not projected."""
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7A4B2A", "#6A3D9A", "#999933")
"""One colour per class, as many as can be distinguished."""
GREY = "#cccccc"
N_NEIGHBOURS = 10
SAME_FEATURE_DISTANCE = 1e-6
"""Unit features closer than this, in single precision, are the same."""

Array = NDArray[Any]


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
    features, others = inner_products(np.eye(width)), _unit_rows(np.random.default_rng(0).normal(size=(3, width)))
    if not np.allclose(inner_products(others), features @ others.T, atol=1e-4):
        raise InputError(f"{name} does more than compare a feature with class text: it has no adapted features")
    if np.allclose(features, _unit_rows(X), atol=SAME_FEATURE_DISTANCE):
        raise InputError(f"{name} does not adapt features: use a head that does, such as clip-adapter or rla")
    return features


def project(
    features: ArrayLike, method: Method = "tsne", seed: int = 0, start: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Project features to two dimensions. Only the direction of a row counts, as in CLIP.

    Args:
        features: (n, d), any length.
        method: "tsne" keeps neighbours together, but distances between groups have no meaning (10,000 rows take
            minutes); "pca" is the plane of the largest variance.
        seed: of t-SNE.
        start: (n, 2) initial points of t-SNE, so that two projections are alike; None for those of PCA.

    Returns:
        (n, 2).

    Raises:
        InputError: if the method is unknown, there are fewer than 5 rows or 2 columns, all rows are the same, or a
            feature is not finite.

    >>> points = project(np.eye(6), method="pca")
    >>> points.shape
    (6, 2)
    """
    if method not in METHOD_TITLES:
        raise InputError(f"the method must be one of {', '.join(METHOD_TITLES)}, but is {brief(method)}")
    rows = _unit_rows(features)
    if len(rows) < MIN_ROWS or rows.shape[1] < 2:
        raise InputError(f"a projection needs {MIN_ROWS} rows and 2 columns or more, but the features are {rows.shape}")
    if np.ptp(rows, axis=0).max() < SAME_FEATURE_DISTANCE:
        raise InputError("all rows of the features are the same: there is nothing to project")
    if method == "pca":
        from sklearn.decomposition import PCA

        return np.asarray(PCA(2, svd_solver="full").fit_transform(rows))
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(rows) - 1) / 3)
    # With the spread of an initialisation by PCA, 1e-4, a hundred points turn over before they converge.
    init = "pca" if start is None else (start / start[:, 0].std()).astype(np.float32)
    # More threads save a second on an idle machine, and cost a minute on a busy one.
    with threadpool_limits(1):
        return np.asarray(TSNE(2, perplexity=perplexity, init=init, random_state=seed).fit_transform(rows), np.float64)


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

    rows, truth = _unit_rows(features), np.asarray(labels)
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
    panel_separations = [separation(features, labels) for features in (before, after)]
    before_points = project(before, method, seed)
    panels = {"before": before_points, "after": _turned(project(after, method, seed, before_points), before_points)}
    coloured = _frequent_classes(labels, class_names)
    figure = create_figure(10.5, 4.9)
    for axes, (name, points), separations in zip(figure.subplots(1, 2), panels.items(), panel_separations, strict=True):
        _scatter(axes, points, np.asarray(labels), coloured)
        axes.set_title(
            f"{name}: silhouette {separations[0]:.3f}, {N_NEIGHBOURS}-NN purity {100 * separations[1]:.1f} %",
            loc="left",
            fontsize=10,
        )
    _legend(figure, coloured, len(set(labels)) - len(coloured))
    set_title(figure, title or f"{len(labels)} pictures, {METHOD_TITLES[method]}")
    return figure


def _unit_rows(features: ArrayLike) -> Array:
    """(n, d) float array, rows of length one."""
    rows = np.array(features, dtype=np.float64)
    if rows.ndim != 2:
        raise InputError(f"features must be (n, d), but have shape {rows.shape}; of several views give one")
    if not np.isfinite(rows).all():
        raise InputError("a feature is not finite: leave out the pictures that could not be read")
    return unit(torch.from_numpy(rows)).numpy()


def _turned(points: Array, target: Array) -> Array:
    """The points, rotated and mirrored to match the target; the methods do not determine an orientation."""
    from scipy.linalg import orthogonal_procrustes

    centred = points - points.mean(axis=0)
    return np.asarray(centred @ orthogonal_procrustes(centred, target - target.mean(axis=0))[0])


def _frequent_classes(labels: Sequence[str], class_names: Sequence[str]) -> list[str]:
    counts = Counter(labels)
    frequent = sorted((name for name in class_names if counts[name]), key=lambda name: -counts[name])[: len(PALETTE)]
    return [name for name in class_names if name in frequent]


def _scatter(axes: Axes, points: Array, labels: Array, coloured: Sequence[str]) -> None:
    is_other, (x, y) = ~np.isin(labels, coloured), points.T
    size = 16 if len(points) < 2500 else 6
    if is_other.any():
        axes.scatter(x[is_other], y[is_other], s=size / 2, color=GREY, linewidths=0)
    for i, name in enumerate(coloured):
        is_class = labels == name
        axes.scatter(x[is_class], y[is_class], s=size, alpha=0.75, linewidths=0, color=PALETTE[i], marker=_marker(i))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color("#bbbbbb")


def _marker(i: int) -> str:
    return MARKERS[i % len(MARKERS)]


def _legend(figure: Figure, coloured: Sequence[str], others: int) -> None:
    from matplotlib.lines import Line2D

    names = list(coloured)
    handles = [Line2D([], [], linestyle="", color=PALETTE[i], marker=_marker(i)) for i in range(len(coloured))]
    if others:
        names.append(f"{others} others")
        handles.append(Line2D([], [], linestyle="", color=GREY, marker="o"))
    legend = figure.legend(handles, list(map(str, range(len(names)))), loc="outside right upper", frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        # Set afterwards: a legend omits labels that begin with an underscore, and reads dollars as formulas.
        text.set_text(truncate(name))
        text.set_parse_math(False)


MAX_PLOTTED_IMAGES = 2000
"""Test pictures in a plot, at even distances: t-SNE of more takes minutes, and they could not be distinguished."""


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
    part = part.take(np.unique(np.linspace(0, len(part) - 1, min(len(part), MAX_PLOTTED_IMAGES)).astype(int)))
    shots = select_views(head, bundle.shots(rows))
    fitted = clone(head).fit(shots.X, shots.y, text=bundle.text, blocks=shots.blocks)
    try:
        after = adapted_features(fitted, part.plain)
    except InputError:  # a head that does not adapt features
        return []
    title = f"{len(part)} test pictures before and after {name}, {len(rows)} shots"
    figure = _projection_figure(part.final, after, part.y, part.class_names, title, "tsne", seed=1)
    return save_plots(figure, folder / safe_file_name(name), plot_formats)
