"""The part of the logits that comes from text features alone."""

import numpy as np
import pytest

from clipadapter.heads import TextFeatures, create_head
from clipadapter.testing import toy_features

NO_TEXT = [("linear-probe", {}), ("knn", {"mix": 0.0}), ("prototype", {"mix": 0.0})]
SAME_FOR_OTHER_SHOTS = ["zero-shot", "tip-adapter", "tip-adapter-f", "ape", "ape-t", "prototype", "gda"]


@pytest.mark.parametrize(("name", "params"), NO_TEXT, ids=[name for name, _ in NO_TEXT])
def test_a_head_that_reads_no_text_has_a_part_of_zeros(name, params):
    X, y, text = toy_features()
    np.testing.assert_array_equal(create_head(name, **params).fit(X, y, text=text).text_logits(X), np.zeros((12, 3)))


@pytest.mark.parametrize("name", SAME_FOR_OTHER_SHOTS)
def test_text_logits_do_not_depend_on_the_shots(name):
    X, y, text = toy_features()
    Z = toy_features(seed=5, noise=1.0)[0]
    first, second = (create_head(name).fit(shots, y, text=text) for shots in (X, Z))
    assert name == "zero-shot" or np.abs(first.logits(X) - second.logits(X)).max() > 1e-3
    np.testing.assert_allclose(first.text_logits(X), second.text_logits(X), atol=1e-4)


def test_logits_of_clip_adapter_less_text_logits_are_the_adapters():
    X, y, text = toy_features()
    head = create_head("clip-adapter", alpha=0.3, steps=20, centre=False).fit(X, y, text=text)
    down, up = head.down_.numpy(), head.up_.numpy()
    for i in range(3):
        x = X[i] / np.linalg.norm(X[i])
        adapted = up @ np.maximum(down @ x, 0)
        length = np.linalg.norm(0.3 * adapted + 0.7 * x)
        rest = text.logit_scale * text.embeddings @ (0.3 * adapted / length)
        np.testing.assert_allclose(head.logits(X)[i] - head.text_logits(X)[i], rest, atol=1e-3)


def test_autos_part_is_zero_shot_times_one_factor():
    X, y, text = toy_features(noise=3.0)
    head, plain = (create_head(name).fit(X, y, text=text) for name in ("auto", "zero-shot"))
    part, zero_shot = head.text_logits(X), plain.logits(X)
    centred = zero_shot - zero_shot.mean(axis=1, keepdims=True)
    factor = float((part * centred).sum() / (centred**2).sum())
    assert factor > 0
    np.testing.assert_allclose(part, factor * centred, atol=1e-3)


def test_a_head_whose_logits_are_no_sum_has_no_text_logits():
    X, y, text = toy_features()
    for name, params in [("cross-modal", {}), ("knn", {"mix": 0.5}), ("clip-adapter", {"branch": "both", "steps": 2})]:
        assert create_head(name, **params).fit(X, y, text=text).text_logits(X) is None


def test_without_text_features_text_logits_are_zero_or_none():
    X, y, _ = toy_features()
    np.testing.assert_array_equal(create_head("auto").fit(X, y).text_logits(X), np.zeros((12, 3)))
    assert create_head("gda").fit(X, y).text_logits(X) is None


def test_text_that_the_shots_bent_is_no_text():
    """ape-t moves class text by a residual: that is the shots' doing."""
    X, y, text = toy_features(noise=3.0)
    head = create_head("ape-t", lr=0.1, alpha=0.1).fit(X, y, text=text)
    assert float(np.abs(head.weight_.numpy() - text.embeddings).max()) > 0.01
    zero_shot = create_head("zero-shot").fit(X, y, text=TextFeatures(text.labels, text.embeddings, text.logit_scale))
    np.testing.assert_allclose(head.text_logits(X), zero_shot.logits(X), atol=1e-3)
