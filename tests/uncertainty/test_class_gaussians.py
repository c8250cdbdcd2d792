"""The Mahalanobis distance: against the formula, refits without a shot, and new draws."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage

from clipadapter.uncertainty.class_gaussians import fit_class_gaussians
from clipadapter.utils.prediction import unit_rows

from .drawn_shots import D, world


def contrasts(rows):
    """Of one class: each shot against the mean of those before it, an orthonormal basis of the differences."""
    rows = rows[np.argsort(rows[:, 0])]
    return [np.sqrt(j / (j + 1)) * (rows[j] - rows[:j].mean(axis=0)) for j in range(1, len(rows))]


def covariance(rows, labels, a):
    H = np.array([h for k in np.unique(labels) for h in contrasts(rows[labels == k])])
    S = H.T @ H / len(H)
    return (1 - a) * S + a * np.trace(S) / S.shape[0] * np.eye(S.shape[0]), H


@pytest.mark.parametrize("counts", [(2, 2, 2, 2, 2), (4, 3, 1, 2, 6), (9, 9, 9, 9, 9)])
def test_distances_are_by_ledoit_and_wolfs_covariance_of_contrasts(counts):
    X, y, known, _, _, _ = world(counts=counts)
    rows, queries = unit_rows(X), unit_rows(known)
    spread, _ = fit_class_gaussians(rows, y, 5)
    _, H = covariance(rows, y, 0)
    S, _ = covariance(rows, y, ledoit_wolf_shrinkage(H, assume_centered=True))
    for k in range(5):
        u = queries - rows[y == k].mean(axis=0)
        expected = np.einsum("md,de,me->m", u, np.linalg.inv(S), u)
        np.testing.assert_allclose(spread.distances(queries)[:, k], expected, rtol=1e-8)


@pytest.mark.parametrize("counts", [(2, 2, 2, 2, 2), (4, 3, 2, 2, 6), (9, 9, 9, 9, 9)])
def test_a_left_out_shots_distances_are_those_of_a_refit_without_it(counts):
    X, y, *_ = world(counts=counts)
    rows = unit_rows(X)
    spread, apart = fit_class_gaussians(rows, y, 5)
    _, H = covariance(rows, y, 0)
    a = ledoit_wolf_shrinkage(H, assume_centered=True)
    scatter = (H.T @ H) / len(H)
    for i in range(len(rows)):
        rest = np.arange(len(rows)) != i
        G = np.array([h for k in range(5) for h in contrasts(rows[rest & (y == k)])])
        S = (1 - a) * G.T @ G / len(H) + a * np.trace(scatter) / D * np.eye(D)
        for k in range(5):
            u = rows[i] - rows[rest & (y == k)].mean(axis=0)
            n = counts[k]
            factor = (n**2 - 1) / n**2 if k == y[i] else 1
            assert apart[i, k] == pytest.approx(factor * u @ np.linalg.inv(S) @ u, rel=1e-7)


def test_left_out_distances_to_the_own_class_are_as_large_as_those_of_new_pictures():
    """On average, from Gaussians with a known spread: what is left is that the covariance has a shot less."""
    ratios = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        y = np.repeat(np.arange(30), 3)
        means = 3 * rng.standard_normal((30, D))
        spread, apart = fit_class_gaussians(means[y] + rng.standard_normal((90, D)), y, 30)
        new = spread.distances(means[y] + rng.standard_normal((90, D)))
        ratios.append(apart[np.arange(90), y].mean() / new[np.arange(90), y].mean())
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)


def test_the_only_shot_of_a_class_has_no_distance_of_its_own():
    X, y, *_ = world(counts=(1, 2, 3, 2, 2))
    _, apart = fit_class_gaussians(unit_rows(X), y, 5)
    assert np.isnan(apart[0, 0])
    assert np.isfinite(np.delete(apart.ravel(), 0)).all()


def test_alike_shots_give_plain_distances():
    X = np.repeat(np.eye(3), 2, axis=0)
    spread, apart = fit_class_gaussians(X, np.repeat(np.arange(3), 2), 3)
    np.testing.assert_allclose(spread.distances(np.eye(3)), 2 - 2 * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(apart[::2], 2 - 2 * np.eye(3), atol=1e-12)
