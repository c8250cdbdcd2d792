"""Tip-Adapter against its published formula, written out in plain loops."""

import math

import numpy as np
import pytest
import torch

from clipadapter.heads import TextFeatures, cache
from clipadapter.heads.tip_adapter import TipAdapter

from .small_shots import released_shots


def test_keys_are_means_of_raw_views_not_of_unit_ones():
    views = [[[9.0, 0.0], [0.0, 1.0]]]
    text = TextFeatures(["a", "b"], np.eye(2))
    keys = TipAdapter().fit(np.array(views), ["a"], text=text).keys_
    np.testing.assert_allclose(keys, [[9 / math.sqrt(82), 1 / math.sqrt(82)]])


@pytest.mark.parametrize(("alpha", "beta"), [(1.17, 1.0), (3.0, 5.5), (0.5, 12.0)])
def test_released_code_gives_these_logits(alpha, beta):
    figures, X, y, text, Q = released_shots("tip_adapter")
    found = TipAdapter(alpha=alpha, beta=beta).fit(X, y, text=text).logits(Q)
    np.testing.assert_allclose(found, figures[f"f64_logits_alpha{alpha}_beta{beta}"], rtol=1e-10, atol=1e-10)


def test_class_numbers_of_the_compiled_cache_are_on_the_device_of_the_labels(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    keys, labels = torch.eye(2, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    assert cache.cache_logits(keys, labels, n_classes=3, beta=1.0).shape == (2, 3)
