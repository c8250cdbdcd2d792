"""GDA against the released estimator in numpy, and its closed-form answers against refits."""

import numpy as np
import pytest

from clipadapter.errors import InputError
from clipadapter.heads import TextFeatures
from clipadapter.heads.gda import Gda
from clipadapter.heads.zero_shot import ZeroShot
from clipadapter.testing import check_head

from .formulas import unit
from .golden_figures import doubles
from .small_shots import released_shots


def drawn(counts=(4, 4, 4, 4, 4), d=32, views=10, seed=3):
    """Raw views (n, v, d), class positions, text and queries."""
    rng = np.random.default_rng(seed)
    means = 2 * rng.standard_normal(d) + rng.standard_normal((len(counts), d))
    labels = np.repeat(np.arange(len(counts)), counts)
    X = means[labels][:, None] + 0.5 * rng.standard_normal((len(labels), views, d))
    text = TextFeatures(
        [str(i) for i in range(len(counts))], means + rng.standard_normal(means.shape), logit_scale=30.0
    )
    return X, labels, text, means[rng.integers(len(counts), size=20)] + 0.5 * rng.standard_normal((20, d))


def test_default_precision_is_the_inverse_of_an_average_of_covariances():
    X, labels, _, Q = drawn((3, 5, 4), d=6, views=1)
    rows = unit(X[:, 0])
    n, c, d = len(rows), 3, 6
    means = np.array([rows[labels == k].mean(axis=0) for k in range(c)])
    scatter = sum(np.outer(x - means[k], x - means[k]) for x, k in zip(rows, labels, strict=True))
    grand = np.trace(np.cov(rows.T))
    trace = (np.trace(scatter) + grand) / (n - c + 1)
    covariance = (scatter + trace * np.eye(d)) / (d + n)  # weight n / (d + n) to scatter / n, the rest to trace / d
    P = np.linalg.inv(covariance) * (n / c) / (n / c + 1)
    expected = [[q @ P @ m - m @ P @ m / 2 - np.log(c) for m in means] for q in unit(Q)]
    np.testing.assert_allclose(Gda(alpha=1.0).fit(X, labels).logits(Q), expected, rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0])
def test_released_code_gives_these_logits(alpha):
    figures, X, y, text, Q = released_shots("gda")
    found = Gda.official(alpha=alpha).fit(X, y, text=text).logits(Q)
    np.testing.assert_allclose(found, figures[f"f64_logits_alpha{alpha}"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0])
def test_released_code_gives_these_logits_of_base_and_new_classes(alpha):
    figures, X, y, text, Q = released_shots("gda_base_to_new")
    new_text, new_Q = doubles(figures, "text_raw_new", "query_raw_new")
    head = Gda.base_to_new(alpha=alpha).fit(X, y, text=text)
    new = head.for_classes(TextFeatures(["a", "b", "c", "d"], new_text))
    np.testing.assert_allclose(head.logits(Q), figures[f"f64_base_logits_alpha{alpha}"], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(new.logits(new_Q), figures[f"f64_new_logits_alpha{alpha}"], rtol=1e-10, atol=1e-10)
    assert set(new.predict(new_Q)) <= {"a", "b", "c", "d"}


def test_base_to_new_takes_classes_of_unequal_shots_as_equals():
    X, labels, _, Q = drawn((9, 0, 1, 5), d=4, views=2)
    rows, y = unit(X).reshape(-1, 4), np.repeat(labels, 2)
    P = np.linalg.inv(np.mean([np.cov(rows[y == k].T) for k in (0, 2, 3)], axis=0))
    means = [rows[y == k].mean(axis=0) for k in (0, 2, 3)]
    means.insert(1, np.mean(means, axis=0))
    expected = [[q @ P @ m - m @ P @ m / 2 - np.log(4) for m in means] for q in unit(Q)]
    text = TextFeatures(list("0123"), np.ones((4, 4)), logit_scale=1e-30)
    np.testing.assert_allclose(Gda.base_to_new().fit(X, labels.astype(str), text=text).logits(Q), expected, rtol=1e-9)


@pytest.mark.parametrize("shrinkage", ["pooled", "published", "base-to-new"])
def test_new_classes_are_known_by_few_views_too_and_after_loading(shrinkage):
    X, labels, text, Q = drawn((2, 1), d=6, views=1)
    others = np.random.default_rng(0).standard_normal((3, 6))
    head = Gda(shrinkage=shrinkage, neighbours=64).fit(X, labels.astype(str), text=text)
    near = unit(X[:, 0])
    T, means, P = unit(others), [], 0
    for t in T:
        means.append((near.sum(axis=0) + 16 * t) / 19)
        scatter = (near - t).T @ (near - t)
        P = P + 6 * np.linalg.inv(scatter + np.trace(scatter) / 2 * np.eye(6)) / 3
    expected = [
        [30 * q @ t + 0.06 * (q @ P @ m - m @ P @ m / 2 - np.log(3)) for m, t in zip(means, T, strict=True)]
        for q in unit(Q)
    ]
    again = Gda(shrinkage=shrinkage, neighbours=64).load_state(head.state(), head.classes_, 6)
    for fitted in (head, again):
        new = fitted.for_classes(TextFeatures(["x", "y", "z"], others, logit_scale=30.0))
        np.testing.assert_allclose(new.logits(Q), expected, rtol=1e-9)


def test_new_classes_stand_on_the_nearest_views_alone():
    near, far = [[0.6, 0.8], [0.8, 0.6]], [[-1.0, 0.0], [0.0, -1.0]]
    text = TextFeatures(["a"], [[1.0, 0.0]])
    heads = [Gda(neighbours=2).fit(X, ["p", "q"] * (len(X) // 2)) for X in (near, near + far)]
    found, expected = (head.for_classes(text).logits([[0.1, 1.0]]) for head in reversed(heads))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_new_classes_ask_for_neighbours():
    X, labels, text, _ = drawn()
    y = labels.astype(str)
    kept = Gda(neighbours=64).fit(X, y, text=text)
    for head in (Gda(), Gda.official(), kept.set_params(neighbours=0)):
        head.fit(X, y, text=text)
        assert "views_" not in head.state()
        with pytest.raises(InputError, match="knows only the classes .* neighbours=64"):
            head.for_classes(text)


@pytest.mark.parametrize("head", [Gda.official(), Gda.base_to_new()], ids=["official", "base to new"])
def test_published_estimators_without_any_variance_are_zero_shot(head):
    X, labels, text, Q = drawn((1, 1, 1), views=1)
    y = labels.astype(str)
    fitted, zero_shot = (each.fit(X, y, text=text).predict_proba(Q) for each in (head, ZeroShot()))
    np.testing.assert_allclose(fitted, zero_shot, rtol=1e-6)
    assert np.isfinite(head.fit(np.ones((4, 3)), ["a", "a", "b", "b"]).logits(np.eye(3))).all()


def test_base_to_new_keeps_the_rules_of_heads():
    check_head(Gda.base_to_new())
