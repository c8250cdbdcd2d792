"""BDC-Adapter against distance covariance by its definition: matrices of distances, double-centred, in plain loops."""

import math

import numpy as np
import pytest
import torch

from clipadapter.heads import bdc_adapter
from clipadapter.heads.bdc_adapter import BdcAdapter, _sums_and_length, correlations
from clipadapter.heads.zero_shot import ZeroShot
from clipadapter.testing import toy_features


def centred(x):
    """Double-centred distances between the channels of one vector."""
    d = len(x)
    a = [[abs(p - q) for q in x] for p in x]
    row = [sum(values) / d for values in a]
    mean = sum(row) / d
    return [[a[i][j] - row[i] - row[j] + mean for j in range(d)] for i in range(d)]


def product(a, b):
    return sum(p * q for row, other in zip(a, b, strict=True) for p, q in zip(row, other, strict=True))


def plain_correlations(queries, rows, labels, n_classes):
    """Cosine between the query's matrix and the class's mean of matrices of length one."""
    found = np.zeros((len(queries), n_classes))
    for k in set(labels):
        own = [centred(x) for x, label in zip(rows, labels, strict=True) if label == k]
        mean = sum(np.array(b) / math.sqrt(product(b, b)) for b in own) / len(own)
        for i, x in enumerate(queries):
            b = centred(x)
            found[i, k] = product(b, mean) / math.sqrt(product(b, b) * product(mean, mean))
    return found


@pytest.fixture
def case():
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1, 3], [5, 1, 3])
    return rng.standard_normal((6, 9)), rng.standard_normal((9, 9)) + rng.standard_normal((4, 9))[labels], labels


def prototypes(rows, labels):
    """Shots as long as they should weigh: their matrices have length one."""
    _, length = _sums_and_length(torch.from_numpy(rows))
    return torch.from_numpy(rows) / length[:, None], torch.from_numpy(labels)


@pytest.mark.parametrize(("group", "pairs", "tile"), [(16, 1 << 23, 1 << 23), (2, 1, 1), (2, 27, 100), (3, 40, 40)])
def test_correlations_to_prototypes_are_those_of_the_written_out_matrices(case, monkeypatch, group, pairs, tile):
    monkeypatch.setattr(bdc_adapter, "SHOTS_PER_GROUP", group)
    monkeypatch.setattr(bdc_adapter, "PAIRS_PER_BLOCK", pairs)
    monkeypatch.setattr(bdc_adapter, "DISTANCES_PER_TILE", tile)
    queries, rows, labels = case
    found = correlations(torch.from_numpy(queries), *prototypes(rows, labels), 5)
    np.testing.assert_allclose(found, plain_correlations(queries, rows, labels, 5), rtol=1e-9, atol=1e-12)


def test_logits_are_the_residual_net_and_the_exponential_of_the_correlation():
    X, y, text = toy_features((3, 2, 4))
    X = X.astype(np.float64)
    fitted = BdcAdapter(alpha=3.0, beta=2.0).fit(X, y, text=text)
    rows = X / np.linalg.norm(X, axis=1, keepdims=True)
    labels = np.array([text.labels.index(label) for label in y])
    moved = rows @ (np.eye(16) + fitted.residual_.numpy())
    net = 20.0 * moved / np.linalg.norm(moved, axis=1, keepdims=True) @ text.embeddings.T
    expected = net + 3.0 * np.exp(-2.0 * (1 - plain_correlations(rows.tolist(), rows.tolist(), labels.tolist(), 3)))
    np.testing.assert_allclose(fitted.logits(X), expected, rtol=1e-6)


def test_a_class_without_a_shot_has_the_mean_of_the_others():
    X, y, text = toy_features((4, 0, 4))
    near = (BdcAdapter(epochs=0).fit(X, y, text=text).logits(X) - ZeroShot().fit(X, y, text=text).logits(X)) / 20
    np.testing.assert_allclose(near[:, 1], near[:, [0, 2]].mean(axis=1), atol=1e-5)
