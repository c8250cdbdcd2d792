"""Tip-Adapter against its published formula, written out in plain loops."""

import math

import numpy as np
import pytest
import torch

from clipadapter.heads import TextFeatures, cache
from clipadapter.heads.tip_adapter import TipAdapter

from .small_shots import released_shots

D, CLASSES, SCALE = 8, 3, 30.0
COUNTS = (4, 1, 2)


def draw(counts=COUNTS, views=3, seed=3):
    """Views (n, v, d) of length 8 to 12, labels, class text and queries, all float64."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    means = rng.standard_normal((len(counts), D)) + 0.5
    X = means[labels][:, None] + 0.7 * rng.standard_normal((len(labels), views, D))
    X *= rng.uniform(8, 12, (len(labels), views, 1)) / np.linalg.norm(X, axis=2, keepdims=True)
    names = [f"class {i}" for i in range(len(counts))]
    text = TextFeatures(names, means + rng.standard_normal(means.shape), SCALE)
    return X, np.array([names[i] for i in labels]), text, 9 * rng.standard_normal((6, D))


def test_keys_are_means_of_raw_views_not_of_unit_ones():
    views = [[[9.0, 0.0], [0.0, 1.0]]]
    text = TextFeatures(["a", "b"], np.eye(2))
    keys = TipAdapter().fit(np.array(views), ["a"], text=text).keys_
    np.testing.assert_allclose(keys, [[9 / math.sqrt(82), 1 / math.sqrt(82)]])


def test_blocks_of_queries_change_nothing(monkeypatch):
    X, y, text, Q = draw()
    head = TipAdapter(alpha=3.0, beta=5.5).fit(X, y, text=text)
    expected = head.logits(Q)
    monkeypatch.setattr(cache, "MAX_AFFINITIES", 2 * len(X))
    np.testing.assert_allclose(head.logits(Q), expected, rtol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.17, 1.0), (3.0, 5.5), (0.5, 12.0)])
def test_released_code_gives_these_logits(alpha, beta):
    figures, X, y, text, Q = released_shots("tip_adapter")
    found = TipAdapter(alpha=alpha, beta=beta).fit(X, y, text=text).logits(Q)
    np.testing.assert_allclose(found, figures[f"f64_logits_alpha{alpha}_beta{beta}"], rtol=1e-10, atol=1e-10)


def test_class_numbers_of_the_compiled_cache_are_on_the_device_of_the_labels(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    keys, labels = torch.eye(2, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    assert cache.cache_logits(keys, keys, labels, n_classes=3, beta=1.0).shape == (2, 3)
