"""Rules that heads of one kind share, each as one table in place of a copy per head."""

import numpy as np
import pytest

from clipadapter.heads import TextFeatures, TrainedHead, create_head, head_info, list_heads
from clipadapter.testing import toy_features

from .estimators import create_short
from .formulas import softmax

NAMES = [name for name in list_heads() if not head_info(name).cls.tunes_encoder]
TRAINING_FREE = [
    "ape", "gda", "knn", "nearest-mean", "proker", "prototype", "rail", "ss-text", "ss-text-u", "stata", "tip-adapter",
    "timo", "transclip", "zero-shot", "zlap",
]  # fmt: skip
"""Heads whose fit does not draw shots in an order."""
TRAINED = [name for name in NAMES if issubclass(head_info(name).cls, TrainedHead)]
AS_ZERO_SHOT = [
    ("ape", {"alpha": 0.0}),
    ("bdc-adapter", {"alpha": 0.0, "epochs": 0}),
    ("ape-t", {"alpha": 0.0, "epochs": 0}),
    ("clip-adapter", {"alpha": 0.0}),
    ("clip-adapter", {"branch": "text", "beta": 0.0}),
    ("clip-adapter", {"branch": "both", "alpha": 0.0, "beta": 0.0}),
    ("cross-modal", {"wise": 1.0}),
    ("cross-modal", {"epochs": 0}),
    ("gda", {"alpha": 0.0}),
    ("knn", {"mix": 1.0}),
    ("proker", {"height": 0.0}),
    ("prototype", {"mix": 1.0}),
    ("rla", {"lr": 1e-30}),
    ("ss-text-u", {"updates": 0, "support_weight": 0.0}),
    ("stata", {"anchors": "text", "frequencies": False, "likelihood": 0.0, "smoothness": 0.0}),
    ("svl-adapter", {"blend": 0.0}),
    ("taskres", {"alpha": 0.0}),
    ("taskres", {"epochs": 0}),
    ("tip-adapter", {"alpha": 0.0}),
    ("tip-adapter-f", {"alpha": 0.0, "epochs": 1}),
    ("transclip", {"prior": 1.0, "likelihood": 0.0, "smoothness": 0.0}),
    ("zs-lp", {"epochs": 0}),
]
"""Parameters at which the shots change no answer."""


def pool_of(name, Q):
    return Q if head_info(name).cls.transductive else None


@pytest.mark.parametrize("name", sorted({*NAMES} - {"auto"}))  # the folds of auto are drawn class by class
def test_length_of_features_and_order_of_classes_and_shots_make_no_difference(name):
    counts = (4, 0, 3) if head_info(name).cls.needs_text else (4, 1, 3)
    X, y, text = toy_features(counts, noise=1.0)
    Q = toy_features((3, 3, 3), noise=1.0, seed=1)[0]
    X, Q, order = X.astype(np.float64), Q.astype(np.float64), np.array([2, 0, 1])
    turned = TextFeatures(
        [text.labels[i] for i in order], text.embeddings[order], text.logit_scale, order="given", tower=text.tower
    )
    rows = np.random.default_rng(0).permutation(len(y)) if name in TRAINING_FREE else np.arange(len(y))
    expected = create_short(name).fit(X, y, text=text, unlabelled=pool_of(name, Q)).predict_proba(Q)[:, order]
    head = create_short(name).fit(7 * X[rows], y[rows], text=turned, unlabelled=pool_of(name, 7 * Q))
    np.testing.assert_allclose(head.predict_proba(np.arange(1, len(Q) + 1)[:, None] * Q), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "params"), AS_ZERO_SHOT)
def test_shots_without_weight_leave_zero_shot(name, params):
    X, y, text = toy_features((4, 0, 2), noise=1.0)
    Q = toy_features((3, 3, 3), noise=1.0, seed=1)[0]
    head = create_head(name, **params).fit(X, y, text=text, unlabelled=pool_of(name, Q))
    expected = create_head("zero-shot").fit(X, y, text=text).predict_proba(Q)
    np.testing.assert_allclose(head.predict_proba(Q), expected, atol=1e-5)
    part = head.text_logits(Q)
    if part is not None:
        np.testing.assert_allclose(softmax(part), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "params"),
    [("prototype", {}), ("nearest-mean", {}), ("knn", {}), ("rail", {}), ("bdc-adapter", {"epochs": 0})],
)
def test_views_of_a_shot_are_one_row_their_mean_at_unit_length(name, params):
    X, y, text = toy_features((1, 1, 1), noise=1.0)
    views = np.stack([X, 3 * X + np.random.default_rng(0).standard_normal(X.shape)], axis=1).astype(np.float64)
    mean = (views / np.linalg.norm(views, axis=2, keepdims=True)).mean(axis=1)
    found, expected = (create_head(name, **params).fit(rows, y, text=text).logits(X) for rows in (views, mean))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["stata", "transclip", "zlap"])
def test_shots_without_weight_are_not_looked_at(name):
    X, y, text = toy_features(noise=1.0)
    Q = toy_features(noise=1.0, seed=1)[0]
    shots = ((X, y), (2 * X[::-1], np.roll(y, 1)))
    head = head_info(name).cls.official().set_params(support_weight=0)
    found, other = (head.fit(*some, text=text, unlabelled=Q).logits(Q) for some in shots)
    np.testing.assert_array_equal(found, other)


@pytest.mark.parametrize("name", [name for name in NAMES if head_info(name).cls.transductive])
def test_a_coordinate_that_never_changes_does_no_harm(name):
    X, y, text = toy_features(noise=1.0)
    wide = [np.pad(rows, ((0, 0), (0, 2))) for rows in (X, text.embeddings, toy_features(noise=1.0, seed=1)[0])]
    head = create_head(name).fit(wide[0], y, TextFeatures(text.labels, wide[1], 20.0), unlabelled=wide[2])
    assert np.abs(head.logits(np.ones((2, X.shape[1] + 2)))).max() < 200


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_head_learns_from_all_views(name):
    X, y, text = toy_features()
    noise = np.random.default_rng(0).standard_normal(X.shape).astype(np.float32)
    views = np.stack([X, X + noise, X - noise], axis=1)  # their mean, where caches start, is the plain picture
    params = {"blend": 1.0} if name == "svl-adapter" else {}  # by default zero-shot alone is as sure here
    plain, augmented = (
        create_short(name).set_params(**params).fit(data, y, text=text).logits(X) for data in (X, views)
    )
    assert np.abs(plain - augmented).max() > 1e-3


@pytest.mark.parametrize("name", TRAINED)
def test_training_lowers_the_loss(name):
    X, y, text = toy_features((8, 8, 8), noise=2.0)
    length = "epochs" if "epochs" in create_head(name).get_params() else "steps"
    first, last = (create_head(name, **{length: n}).fit(X, y, text=text).loss_ for n in (1, 100))
    assert last < 0.9 * first


@pytest.mark.parametrize("name", [name for name in NAMES if head_info(name).cls.needs_text or name in TRAINING_FREE])
def test_a_class_without_a_shot_answers_by_its_text(name):
    X, y, text = toy_features((4, 0, 4))
    Q, truth, _ = toy_features(seed=1)
    head = create_short(name).fit(X, y, text=text, unlabelled=pool_of(name, Q))
    assert (head.predict(Q) == truth).all()
