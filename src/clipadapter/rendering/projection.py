"""Features in the plane, by t-SNE (van der Maaten and Hinton 2008) or PCA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError
from clipadapter.rendering.method_colours import MARKERS
from clipadapter.rendering.plots import create_figure, set_title, truncate
from clipadapter.utils.prediction import unit_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Method = Literal["tsne", "pca"]
METHOD_TITLES = {"tsne": "t-SNE", "pca": "PCA"}
MIN_ROWS = 5  # fewer rows are not projected
MAX_POINTS = 2000  # points in a plot: t-SNE of more takes minutes, and they could not be distinguished
TSNE_PERPLEXITY = 30.0
SAME_FEATURE_DISTANCE = 1e-6  # unit features closer than this, in single precision, are the same
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7A4B2A", "#6A3D9A", "#999933")
"""One colour per class, as many as can be distinguished."""
CLASS_STYLES: list[dict[str, Any]] = [{"color": c, "marker": m} for c, m in zip(PALETTE, cycle(MARKERS), strict=False)]
GREY = "#cccccc"

Array = NDArray[Any]


def project(
    features: ArrayLike, method: Method = "tsne", seed: int = 0, start: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Project (n, d) features to (n, 2) points. Only the direction of a row counts, as in CLIP.

    t-SNE keeps neighbours together, but distances between groups have no meaning; 10,000 rows take minutes. It begins
    from (n, 2) points, so that two projections are alike, or from those of PCA.
    """
    rows = checked_unit_rows(features)
    if len(rows) < MIN_ROWS or rows.shape[1] < 2:
        raise InputError(f"a projection needs {MIN_ROWS} rows and 2 columns or more, but the features are {rows.shape}")
    if np.ptp(rows, axis=0).max() < SAME_FEATURE_DISTANCE:
        raise InputError("all rows of the features are the same: there is nothing to project")
    if method == "pca":
        from sklearn.decomposition import PCA

        return np.asarray(PCA(2, svd_solver="full").fit_transform(rows))
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(TSNE_PERPLEXITY, (len(rows) - 1) / 3)
    # With the spread of an initialisation by PCA, 1e-4, a hundred points turn over before they converge.
    init = "pca" if start is None else (start / start[:, 0].std()).astype(np.float32)
    # More threads save a second on an idle machine, and cost a minute on a busy one.
    with threadpool_limits(1):
        return np.asarray(TSNE(2, perplexity=perplexity, init=init, random_state=seed).fit_transform(rows), np.float64)


def checked_unit_rows(features: ArrayLike) -> Array:
    """`unit_rows` of features (n, d)."""
    # `np.array` since test features have a type of their own that `fit` refuses; nothing here is used to predict.
    rows = np.array(features, dtype=np.float64)
    if rows.ndim != 2:
        raise InputError(f"features must be (n, d), but have shape {rows.shape}; of several views give one")
    if not np.isfinite(rows).all():
        raise InputError("a feature is not finite: leave out the pictures that could not be read")
    return unit_rows(rows)


def match_orientation(points: Array, target: Array) -> Array:
    """The points, rotated and mirrored to match the target; the methods do not determine an orientation."""
    from scipy.linalg import orthogonal_procrustes

    centred = points - points.mean(axis=0)
    return np.asarray(centred @ orthogonal_procrustes(centred, target - target.mean(axis=0))[0])


def scatter_figure(
    panels: Mapping[str, Array], labels: Sequence[str], class_names: Sequence[str], title: str
) -> Figure:
    """(n, 2) points by the title of their panel, side by side. Of more than 10 classes the largest are coloured."""
    counts = Counter(labels)
    frequent = sorted((name for name in class_names if counts[name]), key=lambda name: -counts[name])[: len(PALETTE)]
    coloured = [name for name in class_names if name in frequent]
    figure = create_figure(10.5, 4.9)
    for axes, (name, points) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        _scatter(axes, points, np.asarray(labels), coloured)
        axes.set_title(name, loc="left", fontsize=10)
    _legend(figure, coloured, len(counts) - len(coloured))
    set_title(figure, title)
    return figure


def _scatter(axes: Axes, points: Array, labels: Array, coloured: Sequence[str]) -> None:
    is_other, (x, y) = ~np.isin(labels, coloured), points.T
    size = 16 if len(points) < 2500 else 6
    if is_other.any():
        axes.scatter(x[is_other], y[is_other], s=size / 2, color=GREY, linewidths=0)
    for i, name in enumerate(coloured):
        own = labels == name
        axes.scatter(x[own], y[own], s=size, alpha=0.75, linewidths=0, **CLASS_STYLES[i])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color("#bbbbbb")


def _legend(figure: Figure, coloured: Sequence[str], others: int) -> None:
    from matplotlib.lines import Line2D

    names = list(coloured)
    handles = [Line2D([], [], linestyle="", **CLASS_STYLES[i]) for i in range(len(coloured))]
    if others:
        names.append(f"{others} others")
        handles.append(Line2D([], [], linestyle="", color=GREY, marker="o"))
    legend = figure.legend(handles, list(map(str, range(len(names)))), loc="outside right upper", frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        # Set afterwards: a legend omits labels that begin with an underscore, and reads dollars as formulas.
        text.set_text(truncate(name))
        text.set_parse_math(False)
