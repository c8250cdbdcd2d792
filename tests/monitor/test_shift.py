"""Changed features and changed priors are found, and neither is taken for the other or for a small number of shots."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel

from clipadapter.monitor.shift import (
    class_residuals,
    compare_priors_with_pictures,
    compare_priors_with_shots,
    discrepancy,
    draw_permutations,
    gaussian_kernel,
    measure_covariate_shift,
)

CENTRES = np.array([[4.0, 0, 0, 3, 0, 0], [0, 4, 0, 3, 0, 0]])
SPREAD = np.array([0.3, 1.2])


def draw_features(rng, prior, m):
    """Features (m, 6) of a narrow and a wide class, where the first has a prior; and almost certain probabilities."""
    y = (rng.random(m) >= prior).astype(int)
    return CENTRES[y] + rng.normal(size=(m, 6)) * SPREAD[y, None], np.eye(2)[y] * 0.98 + 0.01


def p_values(runs, change=lambda Z: Z, prior=0.8, m=90):
    """P-values of streams whose first class is more frequent than in a reference of 40 with equal priors."""
    values = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        (X, P), (Z, Q) = draw_features(rng, 0.5, 40), draw_features(rng, prior, m)
        ratio = np.array([prior, 1 - prior]) / 0.5
        odds = (P @ ratio, Q @ ratio)
        values.append(measure_covariate_shift((X, change(Z)), (P, Q), odds, draws=99, seed=seed).p_value)
    return np.array(values)


def test_the_discrepancy_equals_the_unbiased_one_of_the_paper_in_plain_loops():
    rng = np.random.default_rng(0)
    rows, in_stream = rng.normal(size=(9, 3)), np.array([True] * 4 + [False] * 5)
    K = gaussian_kernel(rows)
    a, b = range(4), range(4, 9)
    within = (np.mean([K[i, j] for i in part for j in part if i != j]) for part in (a, b))
    expected = sum(within) - 2 * np.mean([K[i, j] for i in a for j in b])
    np.testing.assert_allclose(discrepancy(K, in_stream[None]), [expected], atol=1e-6)


def test_the_width_of_the_kernel_is_the_median_distance():
    rows = np.random.default_rng(0).normal(size=(7, 3))
    distances = [np.linalg.norm(a - b) for i, a in enumerate(rows) for b in rows[:i]]
    expected = rbf_kernel(rows, gamma=1 / (2 * np.median(distances) ** 2))
    np.testing.assert_allclose(gaussian_kernel(rows), expected, atol=0.02)  # the median of squares, of an even number


def test_class_residuals_are_those_of_ridge_regression():
    rng = np.random.default_rng(0)
    X, P = rng.normal(size=(20, 4)), rng.dirichlet([1, 1, 1], 20)
    centred = X - X.mean(axis=0)
    expected = centred - Ridge(alpha=0.1, fit_intercept=False).fit(P, centred).predict(P)
    np.testing.assert_allclose(class_residuals(X, P), expected, atol=1e-9)


def test_changed_priors_alone_are_significant_no_more_often_than_by_chance():
    values = p_values(100)
    assert (values <= 0.1).mean() <= 0.21  # 0.1 and 3 sd
    assert 0.39 <= values.mean() <= 0.61


@pytest.mark.parametrize(
    "change",
    [
        lambda Z: Z + np.array([0, 0, 0.6, 0, 0, 0]),
        lambda Z: Z + np.random.default_rng(9).normal(0, 1.0, Z.shape),
        lambda Z: np.vstack([Z[:68], Z[68:] + np.array([0, 0, 0, -6, 6, 0])]),
    ],
    ids=["moved", "noisy", "a quarter of others"],
)
def test_changed_features_are_found_if_priors_changed_too(change):
    assert (p_values(10, change) <= 0.02).mean() >= 0.9


@pytest.mark.parametrize("odds", [[1, 1, 1, 1, 1], [1, 2, 3, 4, 5], [0.001, 1, 1, 1, 1000]])
@pytest.mark.parametrize("m", [0, 1, 2, 4, 5])
def test_each_set_is_as_frequent_as_the_product_of_its_odds(odds, m):
    sets = draw_permutations(np.array(odds, float), m, 20_000, np.random.default_rng(0))
    products = {group: np.prod([odds[i] for i in group]) for group in combinations(range(5), m)}
    for group, product in products.items():
        share = (sets == np.isin(np.arange(5), group)).all(axis=1).mean()
        assert abs(share - product / sum(products.values())) < 0.015  # 4 sd


CONFUSION = np.array([[0.9, 0.08, 0.02], [0.25, 0.7, 0.05], [0.02, 0.03, 0.95]])
"""Rates at which pictures of each class are predicted as each class."""
EQUAL_PRIORS = (1 / 3, 1 / 3, 1 / 3)


def draw_probabilities(rng, y):
    """Probabilities (m, 3) of pictures of classes y, by a model that is certain and sometimes wrong."""
    predictions = (rng.random(len(y))[:, None] > CONFUSION.cumsum(axis=1)[y, :2]).sum(axis=1)
    return np.eye(3)[predictions] * 0.94 + 0.02


def compare_streams(runs, priors, k=8, m=150, reference_priors=EQUAL_PRIORS):
    results = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        y = np.repeat(np.arange(3), k)
        stream = draw_probabilities(rng, rng.choice(3, p=priors, size=m))
        shots = draw_probabilities(rng, y)
        results.append(compare_priors_with_shots(shots, y, np.array(reference_priors), stream, draws=199, seed=seed))
    return results


@pytest.mark.parametrize("k", [3, 16])
def test_confusions_of_the_model_are_no_change(k):
    p_values = np.array([p_value for p_value, _ in compare_streams(150, EQUAL_PRIORS, k)])
    assert (p_values <= 0.05).mean() <= 0.12  # 0.05 and 3.9 sd: three shots show few of the confusions


def test_a_class_twice_as_frequent_as_before_or_as_given_is_found_and_named():
    results = compare_streams(20, (0.15, 0.15, 0.7), k=16)
    assert np.mean([p_value <= 0.01 for p_value, _ in results]) >= 0.9
    assert np.mean([of_classes[2] <= 0.01 for _, of_classes in results]) >= 0.9
    unchanged = compare_streams(60, (0.2, 0.2, 0.6), reference_priors=(0.2, 0.2, 0.6))
    assert np.mean([p_value <= 0.05 for p_value, _ in unchanged]) <= 0.13
    changed = compare_streams(20, EQUAL_PRIORS, k=16, reference_priors=(0.15, 0.15, 0.7))
    assert np.mean([p_value <= 0.01 for p_value, _ in changed]) >= 0.9


def test_a_class_without_a_shot_has_no_effect():
    y, rng = np.repeat([0, 1], 8), np.random.default_rng(0)
    shots, stream = np.eye(3)[y], np.eye(3)[rng.integers(2, size=60)]
    assert compare_priors_with_shots(shots, y, np.array([0.5, 0.5, 0.0]), stream, draws=199)[0] > 0.05


def test_pictures_are_compared_by_permutation():
    p_values, rng = [], np.random.default_rng(0)
    for seed in range(150):
        rows = draw_probabilities(rng, rng.choice(3, p=[0.7, 0.2, 0.1], size=120))
        p_values.append(compare_priors_with_pictures(rows[:40], rows[40:], draws=99, seed=seed)[0])
    assert 0.01 <= np.mean(np.array(p_values) <= 0.1) <= 0.19
    stream = draw_probabilities(rng, rng.choice(3, p=[0.4, 0.2, 0.4], size=150))
    p_value, of_classes = compare_priors_with_pictures(
        draw_probabilities(rng, rng.choice(3, p=[0.7, 0.2, 0.1], size=150)), stream
    )
    assert p_value <= 0.01 and of_classes[2] <= 0.01


def test_p_values_of_classes_are_corrected_for_their_number():
    rng = np.random.default_rng(0)
    rows = np.eye(40)[rng.integers(40, size=400)]
    _, p_values = compare_priors_with_pictures(rows[:200], rows[200:], draws=199)
    assert sum(p_value <= 0.05 for p_value in p_values) <= 1  # of 40, where two are expected without the correction
