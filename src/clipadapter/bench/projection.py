"""Features in the plane, by t-SNE (van der Maaten and Hinton 2008) or PCA, as before and after an adapter in the paper.

A projection to two dimensions shows structure that does not exist, and hides structure that does. So each panel states
two metrics of the features themselves, not of the projection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.bench.bundle import load_bundle, select_views
from clipadapter.errors import InputError
from clipadapter.heads import Head, TextFeatures
from clipadapter.heads.estimator import clone
from clipadapter.rendering.method_colours import MARKERS
from clipadapter.rendering.plots import create_figure, save_plots, set_title, truncate
from clipadapter.utils.files import safe_file_name
from clipadapter.utils.prediction import unit_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clipadapter.bench.fits import Fit

Array = NDArray[Any]
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
    return save_plots(figure, folder / safe_file_name(name), "bench", plot_formats)


# ---- The plane ----


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
    from matplotlib.lines import Line2D

    counts, truth = Counter(labels), np.asarray(labels)
    frequent = sorted((name for name in class_names if counts[name]), key=lambda name: -counts[name])[: len(PALETTE)]
    styles = dict(zip((name for name in class_names if name in frequent), CLASS_STYLES, strict=False))
    is_other = ~np.isin(truth, list(styles))
    figure = create_figure(10.5, 4.9)
    for axes, (name, points) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        (x, y), size = points.T, 16 if len(points) < 2500 else 6
        if is_other.any():
            axes.scatter(x[is_other], y[is_other], s=size / 2, color=GREY, linewidths=0)
        for own, style in styles.items():
            axes.scatter(x[truth == own], y[truth == own], s=size, alpha=0.75, linewidths=0, **style)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set_color("#bbbbbb")
        axes.set_title(name, loc="left", fontsize=10)
    others = {f"{len(counts) - len(styles)} others": {"color": GREY, "marker": "o"}} if is_other.any() else {}
    names = [*styles, *others]
    handles = [Line2D([], [], linestyle="", **style) for style in (*styles.values(), *others.values())]
    legend = figure.legend(handles, list(map(str, range(len(names)))), loc="outside right upper", frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        # Set afterwards: a legend omits labels that begin with an underscore, and reads dollars as formulas.
        text.set_text(truncate(name))
        text.set_parse_math(False)
    set_title(figure, title)
    return figure
