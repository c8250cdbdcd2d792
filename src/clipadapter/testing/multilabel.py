"""Conformance checks of heads in the multi-label task; a head without support for it must refuse the targets."""

from __future__ import annotations

import numpy as np

from clipadapter.errors import InputError
from clipadapter.heads import Head, TextFeatures
from clipadapter.heads.estimator import clone
from clipadapter.testing.assertions import save_and_load
from clipadapter.testing.toy import CLASSES, Array, toy_features


def toy_multilabel(n: int = 24, noise: float = 0.3, seed: int = 0) -> tuple[Array, Array, TextFeatures]:
    """X (n, d), Y (n, 3) and text features: each picture is the sum of the means of its classes, half of three each.

    The first eight pictures have all combinations of the classes, from none to all three.
    """
    rng = np.random.default_rng(seed)
    text = toy_features()[2]
    d, count = text.embeddings.shape[1], 2 ** len(CLASSES)
    numbers = np.concatenate([np.arange(count), rng.integers(count, size=max(0, n - count))])[:n]
    Y = numbers[:, None] >> np.arange(len(CLASSES)) & 1
    common = np.zeros(d)
    common[-1] = 1  # shared by all pictures, so that one without a class has a direction too
    X = common + Y @ np.eye(len(CLASSES), d) + noise / np.sqrt(d) * rng.standard_normal((n, d))
    return (9 * X).astype(np.float32), Y, text


def check_multilabel_fit(head: Head) -> None:
    """A multi-label head learns the targets; another head raises an error that names the multi-label heads."""
    X, Y, text = toy_multilabel()
    if not head.multilabel:
        # This error comes first, whatever else the head would need.
        try:
            head.fit(X, Y, text=text, unlabelled=X if head.transductive else None)
        except InputError as error:
            assert "single-label head" in str(error) and "zero-shot" in str(error), str(error)
            return
        raise AssertionError("multi-label targets were accepted by a head with multilabel = False")
    assert head.fit(X, Y, text=text) is head
    assert head.task_ == "multilabel"
    logits, p = head.logits(X), head.predict_proba(X)
    assert logits.shape == Y.shape and np.isfinite(logits).all()
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-logits.astype(np.float64))), rtol=1e-6)
    assert (head.predict(X) == (logits > 0)).all()
    Q, truth, _ = toy_multilabel(seed=1)
    scores = head.logits(Q)
    for k in range(len(CLASSES)):  # area under the ROC curve above 0.9
        pairs = scores[truth[:, k] == 1, k][:, None] > scores[truth[:, k] == 0, k]
        assert pairs.mean() > 0.9, f"{CLASSES[k]} is not separated from the rest"


def check_multilabel_state_round_trip(head: Head) -> None:
    """A loaded multi-label head gives the same logits; a new single-label fit leaves nothing of the multi-label one."""
    if not head.multilabel:
        return
    X, Y, text = toy_multilabel()
    expected = head.fit(X, Y, text=text).logits(X)
    loaded = save_and_load(head, text)
    assert loaded.task_ == "multilabel"
    np.testing.assert_array_equal(loaded.logits(X), expected)
    np.testing.assert_array_equal(loaded.predict(X), head.predict(X))
    X, y, text = toy_features()
    fresh = clone(head).fit(X, y, text=text)
    assert head.fit(X, y, text=text).task_ == "single-label"
    np.testing.assert_array_equal(head.logits(X), fresh.logits(X))
    assert head.state().keys() == fresh.state().keys()


def check_multilabel_rare_classes(head: Head) -> None:
    """Classes of no picture, of one and of all, and a single picture, give finite logits."""
    if not head.multilabel:
        return
    X, Y, text = toy_multilabel()
    Y = np.array(Y)
    Y[:, 0], Y[:, 1], Y[:, 2] = 0, np.arange(len(Y)) == 3, 1
    for rows in (slice(None), slice(3, 4)):
        assert np.isfinite(head.fit(X[rows], Y[rows], text=text).logits(X)).all()
        views = np.stack([X[rows], 1.01 * X[rows]], axis=1)
        assert np.isfinite(head.fit(views, Y[rows].astype(bool), text=text).logits(X)).all()


MULTILABEL_CHECKS = (check_multilabel_fit, check_multilabel_state_round_trip, check_multilabel_rare_classes)
