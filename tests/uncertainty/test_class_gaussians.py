"""The Mahalanobis distance: against the formula, and refits without a shot."""

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


@pytest.mark.parametrize("counts", [(2, 2, 2, 2, 2), (4, 3, 1, 2, 6), (9, 9, 9, 9, 9)])
def test_distances_are_by_ledoit_and_wolfs_covariance_of_contrasts_and_those_of_a_left_out_shot_by_a_refit(counts):
    X, y, known, _, _, _ = world(counts=counts)
    rows, queries = unit_rows(X), unit_rows(known)
    spread, apart = fit_class_gaussians(rows, y, 5)
    H = np.array([h for k in range(5) for h in contrasts(rows[y == k])])
    a = ledoit_wolf_shrinkage(H, assume_centered=True)
    floor = a * np.trace(H.T @ H / len(H)) / D * np.eye(D)
    inverse = np.linalg.inv((1 - a) * H.T @ H / len(H) + floor)
    for k in range(5):
        u = queries - rows[y == k].mean(axis=0)
        expected = np.einsum("md,de,me->m", u, inverse, u)
        np.testing.assert_allclose(spread.distances(queries)[:, k], expected, rtol=1e-8)
    for i in range(len(rows)):
        rest = np.arange(len(rows)) != i
        G = np.array([h for k in range(5) for h in contrasts(rows[rest & (y == k)])])
        inverse = np.linalg.inv((1 - a) * G.T @ G / len(H) + floor)
        for k, n in enumerate(counts):
            if n == 1 and k == y[i]:
                assert np.isnan(apart[i, k])  # the only shot of its class
                continue
            u = rows[i] - rows[rest & (y == k)].mean(axis=0)
            factor = (n**2 - 1) / n**2 if k == y[i] else 1
            assert apart[i, k] == pytest.approx(factor * u @ inverse @ u, rel=1e-7)


def test_alike_shots_give_plain_distances():
    X = np.repeat(np.eye(3), 2, axis=0)
    spread, apart = fit_class_gaussians(X, np.repeat(np.arange(3), 2), 3)
    np.testing.assert_allclose(spread.distances(np.eye(3)), 2 - 2 * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(apart[::2], 2 - 2 * np.eye(3), atol=1e-12)
