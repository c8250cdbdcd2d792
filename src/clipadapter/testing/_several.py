"""What every head must do with pictures that have several labels: take them, or say that it can't."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import load, save
from sklearn.base import clone

from clipadapter.errors import InputError
from clipadapter.heads import Head, TextFeatures
from clipadapter.testing._toy import CLASSES, Array, toy_features


def toy_several(n: int = 24, noise: float = 0.3, seed: int = 0) -> tuple[Array, Array, TextFeatures]:
    """Features that are the sum of those of their classes, each of three in half of the pictures.

    Args:
        n: pictures; the first eight have every combination, none of the classes and all of them among these.
        noise: spread of the pictures, relative to the distance of the classes.
        seed: of the draw.

    Returns:
        X (n, d), Y (n, 3) zeros and ones, class text.
    """
    rng = np.random.default_rng(seed)
    text = toy_features()[2]
    d, count = text.embeddings.shape[1], 2 ** len(CLASSES)
    numbers = np.concatenate([np.arange(count), rng.integers(count, size=max(0, n - count))])[:n]
    Y = numbers[:, None] >> np.arange(len(CLASSES)) & 1
    common = np.zeros(d)
    common[-1] = 1  # what all pictures share, so that one without a class is a direction too
    X = common + Y @ np.eye(len(CLASSES), d) + noise / np.sqrt(d) * rng.standard_normal((n, d))
    return (9 * X).astype(np.float32), Y, text


def check_several_labels(head: Head) -> None:
    """A head that takes several labels a picture learns them; another says which heads do."""
    X, Y, text = toy_several()
    if not head.multilabel:
        # Taken before anything is learned, whatever else the head would need.
        try:
            head.fit(X, Y, text=text, unlabelled=X if head.transductive else None)
        except InputError as error:
            assert "one label a picture" in str(error) and "zero-shot" in str(error), str(error)
            return
        raise AssertionError("several labels a picture were taken by a head that says it can't")
    assert head.fit(X, Y, text=text) is head
    assert head.task_ == "multilabel"
    logits, found = head.logits(X), head.predict_proba(X)
    assert logits.shape == Y.shape and np.isfinite(logits).all()
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits.astype(np.float64))), rtol=1e-6)
    assert (head.predict(X) == (logits > 0)).all()
    Q, truth, _ = toy_several(seed=1)
    scores = head.logits(Q)
    for k in range(len(CLASSES)):  # a picture of a class is above one without it, nine times in ten
        pairs = scores[truth[:, k] == 1, k][:, None] > scores[truth[:, k] == 0, k]
        assert pairs.mean() > 0.9, f"{CLASSES[k]} is not told from the rest"


def check_several_labels_are_saved(head: Head) -> None:
    """A head that was fitted to several labels is that head again when it was loaded; a new fit forgets them."""
    if not head.multilabel:
        return
    X, Y, text = toy_several()
    expected = head.fit(X, Y, text=text).logits(X)
    state = load(save({name: np.asarray(value, order="C") for name, value in head.state().items()}))
    again = clone(head).load_state(state, head.classes_.tolist(), head.n_features_in_).attach(text)
    assert again.task_ == "multilabel"
    np.testing.assert_array_equal(again.logits(X), expected)
    np.testing.assert_array_equal(again.predict(X), head.predict(X))
    X, y, text = toy_features()
    fresh = clone(head).fit(X, y, text=text)
    assert head.fit(X, y, text=text).task_ == "single-label"
    np.testing.assert_array_equal(head.logits(X), fresh.logits(X))
    assert head.state().keys() == fresh.state().keys()


def check_rare_labels(head: Head) -> None:
    """A class that no picture has, that one has, or that all have, and a single picture, leave finite answers."""
    if not head.multilabel:
        return
    X, Y, text = toy_several()
    Y = np.array(Y)
    Y[:, 0], Y[:, 1], Y[:, 2] = 0, np.arange(len(Y)) == 3, 1
    for rows in (slice(None), slice(3, 4)):
        assert np.isfinite(head.fit(X[rows], Y[rows], text=text).logits(X)).all()
        views = np.stack([X[rows], 1.01 * X[rows]], axis=1)
        assert np.isfinite(head.fit(views, Y[rows].astype(bool), text=text).logits(X)).all()


SEVERAL_CHECKS = (check_several_labels, check_several_labels_are_saved, check_rare_labels)
