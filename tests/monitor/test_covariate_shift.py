"""Other looks are found, other shares of the classes are not taken for them."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel

from clipadapter.errors import InputError
from clipadapter.monitor import compare_looks
from clipadapter.monitor.covariate_shift import discrepancy, gaussian_kernel, without_classes

CENTRES = np.array([[4.0, 0, 0, 3, 0, 0], [0, 4, 0, 3, 0, 0]])
SPREAD = np.array([0.3, 1.2])


def pictures(rng, share, m):
    """Features (m, 6) of a narrow and a wide class, of which the first has a share; and true classes (m, 2)."""
    y = (rng.random(m) >= share).astype(int)
    return CENTRES[y] + rng.normal(size=(m, 6)) * SPREAD[y, None], np.eye(2)[y] * 0.98 + 0.01


def chances(runs, change=lambda Z: Z, with_odds=True, share=0.8, m=90):
    """P-values of streams whose first class is more frequent than among 40 even pictures."""
    found = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        (X, P), (Z, Q) = pictures(rng, 0.5, 40), pictures(rng, share, m)
        ratio = np.array([share, 1 - share]) / 0.5
        odds = (P @ ratio, Q @ ratio) if with_odds else None
        found.append(compare_looks(X, change(Z), (P, Q), odds, draws=99, seed=seed).p)
    return np.array(found)


def test_the_discrepancy_is_the_papers_unbiased_one_in_plain_loops():
    rng = np.random.default_rng(0)
    rows, inside = rng.normal(size=(9, 3)), np.array([True] * 4 + [False] * 5)
    K = gaussian_kernel(rows)
    terms = {(True, True): [], (False, False): [], (True, False): []}
    for i in range(9):
        for j in range(9):
            if i != j and (inside[i] or not inside[j]):
                terms[bool(inside[i]), bool(inside[j])].append(float(K[i, j]))
    wanted = np.mean(terms[True, True]) + np.mean(terms[False, False]) - 2 * np.mean(terms[True, False])
    np.testing.assert_allclose(discrepancy(K, inside[None]), [wanted], atol=1e-6)


def test_the_width_of_the_kernel_is_the_median_distance():
    rows = np.random.default_rng(0).normal(size=(7, 3))
    apart = [np.linalg.norm(a - b) for i, a in enumerate(rows) for b in rows[:i]]
    wanted = rbf_kernel(rows, gamma=1 / (2 * np.median(apart) ** 2))
    np.testing.assert_allclose(gaussian_kernel(rows), wanted, atol=0.02)  # the median of squares, of an even number


def test_pictures_that_are_all_the_same_have_a_kernel():
    np.testing.assert_array_equal(gaussian_kernel(np.ones((3, 2))), 1)


def test_what_probabilities_tell_is_taken_off_as_by_ridge():
    rng = np.random.default_rng(0)
    X, P = rng.normal(size=(20, 4)), rng.dirichlet([1, 1, 1], 20)
    centred = X - X.mean(axis=0)
    wanted = centred - Ridge(alpha=0.1, fit_intercept=False).fit(P, centred).predict(P)
    np.testing.assert_allclose(without_classes(X, P), wanted, atol=1e-9)


def test_other_shares_alone_are_found_no_more_often_than_chance():
    found = chances(100)
    assert (found <= 0.1).mean() <= 0.21  # 0.1 and 3 sd
    assert 0.39 <= found.mean() <= 0.61


def test_without_odds_they_would_be_found():
    assert (chances(30, with_odds=False) <= 0.1).mean() > 0.4


@pytest.mark.parametrize(
    "change",
    [
        lambda Z: Z + np.array([0, 0, 0.6, 0, 0, 0]),
        lambda Z: Z + np.random.default_rng(9).normal(0, 1.0, Z.shape),
        lambda Z: np.vstack([Z[:68], Z[68:] + np.array([0, 0, 0, -6, 6, 0])]),
    ],
    ids=["moved", "noisy", "a quarter of others"],
)
def test_other_looks_are_found_beside_other_shares(change):
    assert (chances(10, change) <= 0.02).mean() >= 0.9


def test_what_was_found_hangs_on_the_seed_alone():
    rng = np.random.default_rng(0)
    X, Z = rng.normal(1, 1, (20, 3)), rng.normal(1, 1, (30, 3))
    assert compare_looks(X, Z, seed=1) == compare_looks(X, Z, seed=1)
    assert compare_looks(X, Z, seed=1) != compare_looks(X, Z, seed=2)


def test_lengths_of_features_do_not_count():
    rng = np.random.default_rng(0)
    X, Z = rng.normal(1, 1, (20, 3)), rng.normal(1, 1, (30, 3))
    assert compare_looks(X, 5 * Z).p == compare_looks(X, Z).p


def test_features_that_do_not_go_together_are_told():
    for X, Z in ((np.ones((3, 2)), np.ones((3, 4))), (np.ones((1, 2)), np.ones((3, 2))), (np.ones(3), np.ones(3))):
        with pytest.raises(InputError, match="two or more pictures of each, by one encoder"):
            compare_looks(X, Z)
