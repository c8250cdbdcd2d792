import numpy as np
import pytest
from PIL import Image
from sklearn.exceptions import NotFittedError

from clipadapter.bench.projection import adapted_features, match_orientation, project, scatter_figure, separation
from clipadapter.errors import InputError
from clipadapter.heads import Head, create_head
from clipadapter.rendering.plots import save_plot
from clipadapter.testing import toy_features
from clipadapter.utils.functional import unit


def unit_rows(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def blobs(names, n=8, d=6, spread=0.2):
    """n rows around a direction of its own for each name."""
    rng = np.random.default_rng(0)
    centres = np.eye(d)[np.arange(len(names)) % d] + 0.3 * rng.normal(size=(len(names), d))
    rows = np.concatenate([centre + spread * rng.normal(size=(n, d)) for centre in centres])
    return rows, [name for name in names for _ in range(n)]


def test_adapted_features_are_those_of_the_papers_of_clip_adapter_and_rla():
    """Equations 1 and 3 in numpy; and the head's own logits are their inner products with class text."""
    X, y, text = toy_features()
    head = create_head("clip-adapter", alpha=0.6, centre=False, steps=20).fit(X, y, text=text)
    x, state = unit_rows(X), head.state()
    expected = unit_rows(0.6 * np.maximum(x @ state["down_"].T, 0) @ state["up_"].T + 0.4 * x)
    adapted = adapted_features(head, X)
    np.testing.assert_allclose(adapted, expected, atol=1e-5)
    np.testing.assert_allclose(text.logit_scale * adapted @ text.embeddings.T, head.logits(X), atol=1e-3)
    head = create_head("rla", penalty=0.0, steps=20).fit(X, y, text=text)
    np.testing.assert_allclose(adapted_features(head, X), unit_rows(x + x @ head.state()["shift_"].T), atol=1e-5)


class WithCache(Head):
    """Not only compares with text: something of the picture is added to every class."""

    def _fit(self, shots):
        self.weight_ = shots.text

    def _for_text(self, text, scale):
        self.weight_ = text

    def _logits(self, X):
        return unit(X) @ self.weight_.to(X.dtype).T + X[:, :1]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (create_head("zero-shot"), "ZeroShot does not adapt features"),
        (create_head("clip-adapter", alpha=0.0, steps=1), "ClipAdapter does not adapt features"),
        (create_head("linear-probe"), "LinearProbe knows only the classes"),
        (WithCache(), "WithCache does more than compare"),
    ],
)
def test_a_head_without_adapted_features_or_that_is_not_fitted_is_refused(head, words):
    X, y, text = toy_features()
    with pytest.raises(NotFittedError):
        adapted_features(create_head("clip-adapter"), X)
    with pytest.raises(InputError, match=words):
        adapted_features(head.fit(X, y, text=text), X)


def test_pca_is_the_plane_of_the_first_two_singular_vectors():
    X, _ = blobs("abc")
    rows = unit_rows(X)
    u, s, _ = np.linalg.svd(rows - rows.mean(axis=0))
    np.testing.assert_allclose(abs(project(5 * X, "pca")), abs(u[:, :2] * s[:2]), atol=1e-9)


def test_tsne_keeps_groups_together_and_lies_like_the_points_that_it_begins_from():
    X, labels = blobs("abc", n=12, spread=0.05)
    points = project(X, "tsne", seed=1)
    assert points.shape == (36, 2)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag([np.inf] * 36)
    assert [labels[i] for i in distance.argmin(axis=1)] == labels
    np.testing.assert_array_equal(points, project(X, "tsne", seed=1))
    mirrored = points * [-1, 1]
    begun = project(X, start=mirrored)
    assert min(np.corrcoef(begun[:, i], mirrored[:, i])[0, 1] for i in (0, 1)) > 0.9


def test_separation_in_plain_loops():
    X, labels = blobs("abc", spread=0.6)
    rows, n = unit_rows(X), len(X)
    distance = [[1 - float(rows[i] @ rows[j]) for j in range(n)] for i in range(n)]
    silhouettes, alike = [], 0
    for i in range(n):
        to = {c: np.mean([distance[i][j] for j in range(n) if labels[j] == c and j != i]) for c in "abc"}
        own = to.pop(labels[i])
        other = min(to.values())
        silhouettes.append((other - own) / max(own, other))
        nearest = sorted((j for j in range(n) if j != i), key=lambda j: distance[i][j])[:10]
        alike += sum(labels[j] == labels[i] for j in nearest)
    assert separation(X, labels) == pytest.approx((np.mean(silhouettes), alike / (10 * n)))


def test_the_second_picture_is_turned_like_the_first():
    points = np.random.default_rng(0).normal(size=(20, 2))
    points -= points.mean(axis=0)
    mirrored = points @ [[0.6, 0.8], [0.8, -0.6]] + 3.0
    np.testing.assert_allclose(match_orientation(mirrored, points), points, atol=1e-12)


@pytest.mark.parametrize("names", [["a", "b"], [f"class {i:02}" for i in range(14)], ["_a", "$x$ and $y", "猫" * 40]])
def test_a_picture_of_any_classes_is_of_sane_size(names, tmp_path):
    X, labels = blobs(names)
    points = project(X, "pca")
    figure = scatter_figure({"before": points, "after": -points}, labels, names, "50 %")
    with Image.open(save_plot(figure, tmp_path / "new" / "p.png", "bench")) as image:
        assert image.format == "PNG" and 1200 < image.width < 2000 and 600 < image.height < 1000


@pytest.mark.parametrize(
    ("features", "error"),
    [
        (np.eye(4), r"5 rows and 2 columns or more, but the features are \(4, 4\)"),
        ([[np.nan, 1.0]] * 6, "not finite"),
        (np.ones((2, 3, 4)), r"must be \(n, d\), but have shape \(2, 3, 4\)"),
        (np.ones((6, 3)), "all rows of the features are the same"),
    ],
)
def test_features_that_cannot_be_projected_are_refused(features, error):
    with pytest.raises(InputError, match=error):
        project(features)


def test_one_class_cannot_be_separated():
    with pytest.raises(InputError, match="1 class among 4 pictures"):
        separation(np.eye(4), ["a"] * 4)
