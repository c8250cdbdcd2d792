"""GDA against the released estimator in numpy, and its closed-form answers against refits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from clipadapter.errors import InputError
from clipadapter.heads import ClassText
from clipadapter.heads.gda import ABSENT, Gda
from clipadapter.heads.zero_shot import ZeroShot
from clipadapter.testing import toy_features


def drawn(counts=(4, 4, 4, 4, 4), d=32, views=10, seed=3):
    """Raw views (n, v, d), class positions, text and queries."""
    rng = np.random.default_rng(seed)
    means = 2 * rng.standard_normal(d) + rng.standard_normal((len(counts), d))
    labels = np.repeat(np.arange(len(counts)), counts)
    X = means[labels][:, None] + 0.5 * rng.standard_normal((len(labels), views, d))
    text = ClassText([str(i) for i in range(len(counts))], means + rng.standard_normal(means.shape), logit_scale=30.0)
    return X, labels, text, means[rng.integers(len(counts), size=20)] + 0.5 * rng.standard_normal((20, d))


def length_one(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def released(X, labels, Q):
    """Gaussian logits of the released code: every view a row, S by rows less one, pseudo-inverse."""
    rows, y = length_one(X).reshape(-1, X.shape[2]), np.repeat(labels, X.shape[1])
    c, d = labels.max() + 1, X.shape[2]
    means = np.array([rows[y == k].mean(axis=0) for k in range(c)])
    S = np.cov((rows - means[y]).T)
    P = d * np.linalg.pinv((len(rows) - 1) * S + np.trace(S) * np.eye(d))
    return np.array([[q @ P @ m - m @ P @ m / 2 - np.log(c) for m in means] for q in length_one(Q)])


@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0])
def test_official_is_the_released_estimator_beside_zero_shot(alpha):
    X, labels, text, Q = drawn()
    expected = 30.0 * length_one(Q) @ text.embeddings.T.astype(float) + alpha * released(X, labels, Q)
    fitted = Gda.official(alpha=alpha).fit(X, labels.astype(str), text=text)
    np.testing.assert_allclose(fitted.logits(Q), expected, rtol=1e-9, atol=1e-5)


def test_official_without_text_is_the_estimator_alone():
    X, labels, _, Q = drawn((5, 2, 3), views=2)
    np.testing.assert_allclose(Gda.official().fit(X, labels).logits(Q), released(X, labels, Q), rtol=1e-9, atol=1e-9)


def test_alpha_zero_is_zero_shot():
    X, y, text = toy_features()
    expected = ZeroShot().fit(X, y, text=text).logits(X)
    np.testing.assert_allclose(Gda(alpha=0.0).fit(X, y, text=text).logits(X), expected, atol=1e-5)


def test_default_precision_is_the_inverse_of_an_average_of_covariances():
    X, labels, _, Q = drawn((3, 5, 4), d=6, views=1)
    rows = length_one(X[:, 0])
    n, c, d = len(rows), 3, 6
    means = np.array([rows[labels == k].mean(axis=0) for k in range(c)])
    scatter = sum(np.outer(x - means[k], x - means[k]) for x, k in zip(rows, labels, strict=True))
    grand = np.trace(np.cov(rows.T))
    trace = (np.trace(scatter) + grand) / (n - c + 1)
    covariance = (scatter + trace * np.eye(d)) / (d + n)  # weight n / (d + n) to scatter / n, the rest to trace / d
    P = np.linalg.inv(covariance) * (n / c) / (n / c + 1)
    expected = [[q @ P @ m - m @ P @ m / 2 - np.log(c) for m in means] for q in length_one(Q)]
    np.testing.assert_allclose(Gda(alpha=1.0).fit(X, labels).logits(Q), expected, rtol=1e-9)


def test_many_shots_are_told_apart_as_by_lda():
    X, labels, _, Q = drawn((400, 400, 400), d=5, views=1)
    rows = length_one(X[:, 0])
    expected = LinearDiscriminantAnalysis(solver="lsqr").fit(rows, labels).predict_proba(length_one(Q))
    np.testing.assert_allclose(Gda(alpha=1.0).fit(X, labels).predict_proba(Q), expected, atol=0.02)


def test_one_shot_a_class_compares_distances_to_the_shots():
    X, labels, _, Q = drawn((1, 1, 1), views=1)
    distances = np.linalg.norm(length_one(Q)[:, None] - length_one(X[:, 0])[None], axis=2)
    assert (Gda().fit(X, labels).predict(Q) == distances.argmin(axis=1)).all()


def test_one_shot_a_class_is_zero_shot_in_the_released_estimator():
    X, labels, text, Q = drawn((1, 1, 1), views=1)
    y = labels.astype(str)
    fitted, zero_shot = (head.fit(X, y, text=text).predict_proba(Q) for head in (Gda.official(), ZeroShot()))
    np.testing.assert_allclose(fitted, zero_shot, rtol=1e-6)


@pytest.mark.parametrize("shrinkage", ["pooled", "published"])
@pytest.mark.parametrize(("views", "d"), [(1, 4), (1, 16), (3, 16), (3, 8)])
def test_leave_one_out_leaves_out_every_view(shrinkage, views, d):
    X, labels, text, _ = drawn((4, 1, 2, 0), d=d, views=views)
    y = labels.astype(str)
    head = Gda(shrinkage=shrinkage)
    found = head.leave_one_out(X, y, text=text)
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        expected = head.fit(X[others], y[others], text=text).logits(X[i, :1])
        np.testing.assert_allclose(found[i : i + 1], expected, rtol=1e-9, atol=1e-9)


def test_leave_one_out_without_text_gives_up_a_class_that_has_no_other_shot():
    X, labels, _, _ = drawn((3, 1, 2), d=6, views=2)
    found = Gda().leave_one_out(X, labels)
    assert found[3, 1] == ABSENT
    expected = Gda().fit(X[labels != 1], labels[labels != 1]).logits(X[3, :1])[0]
    np.testing.assert_allclose(found[3, [0, 2]], expected, rtol=1e-9)


def test_a_class_without_a_shot_answers_by_its_text():
    X, y, text = toy_features((4, 0, 4))
    Q, truth, _ = toy_features(seed=1)
    assert (Gda().fit(X, y, text=text).predict(Q) == truth).all()


def test_equal_shots_give_finite_logits():
    fitted = Gda().fit(np.ones((4, 3)), ["a", "a", "b", "b"])
    assert np.isfinite(fitted.logits(np.eye(3))).all()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 50), factor=st.floats(0.01, 100))
def test_order_of_features_and_their_length_do_not_matter(seed, factor):
    X, y, _ = toy_features((4, 1, 3))
    X = X.astype(np.float64)
    order = np.random.default_rng(seed).permutation(X.shape[1])
    expected = Gda().fit(X, y).logits(X)
    np.testing.assert_allclose(Gda().fit(X[:, order] * factor, y).logits(X[:, order]), expected, rtol=1e-8, atol=1e-8)


def test_bad_parameters_are_named():
    X, y, _ = toy_features()
    with pytest.raises(InputError, match="shrinkage must be one of pooled, published"):
        Gda(shrinkage="none").fit(X, y)
