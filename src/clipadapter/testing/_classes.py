"""What every head must do with its classes: their order, and their type."""

from __future__ import annotations

import numpy as np
from sklearn.base import clone

from clipadapter.heads import Head, Streaming, TextFeatures
from clipadapter.testing._toy import CLASSES, Array, toy_features

NUMBERS = ("10", "9", "2")


def fit(head: Head, X: Array, y: Array, text: TextFeatures | None) -> Head:
    """Fit a head, with pictures without labels if it is transductive."""
    return head.fit(X, y, text=text, unlabelled=toy_features(seed=2)[0] if head.transductive else None)


def check_logits_have_a_column_a_class(head: Head) -> None:
    """Logits are (m, c), finite, of sorted classes; the best one is predicted; probabilities are their softmax."""
    X, y, text = toy_features()
    turned = TextFeatures(text.labels[::-1], text.embeddings[::-1], text.logit_scale, tower=text.tower)
    for part, classes in ((turned, CLASSES), (turned.with_order("given"), CLASSES[::-1])):
        logits = fit(head, X, y, part).logits(X)
        assert list(head.classes_) == list(classes)
        assert logits.shape == (len(X), len(CLASSES))
        assert np.isfinite(logits).all()
        assert (head.predict(X) == y).all()
        assert (head.predict(X) == head.classes_[logits.argmax(axis=1)]).all()
        p = np.exp(logits.astype(np.float64))
        np.testing.assert_allclose(head.predict_proba(X), p / p.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-12)
        np.testing.assert_allclose(np.exp(head.predict_log_proba(X)), head.predict_proba(X), rtol=1e-9, atol=1e-300)


def check_numbers_as_labels(head: Head) -> None:
    """Whole numbers as labels, with class text that is called so: classes and answers are sorted numbers."""
    X, names, text = toy_features(names=NUMBERS)
    y = names.astype(np.int32)
    fit(head, X, y, text)
    assert head.classes_.dtype == y.dtype and head.classes_.tolist() == [2, 9, 10]
    np.testing.assert_array_equal(head.predict(X), y)
    as_texts = fit(clone(head), X, names, text)
    assert as_texts.classes_.tolist() == ["10", "2", "9"]
    np.testing.assert_array_equal(as_texts.predict(X), names)
    if not isinstance(head, Streaming) or not head.updatable:
        return
    two = TextFeatures(NUMBERS[:2], text.embeddings[:2], text.logit_scale, tower=text.tower)
    head = clone(head).fit(X[:8], y[:8], text=two)
    assert head.classes_.dtype == y.dtype and head.classes_.tolist() == [9, 10]
    head.partial_fit(X[8:], y[8:], text=text)
    assert head.classes_.dtype == y.dtype and head.classes_.tolist() == [2, 9, 10]
    np.testing.assert_array_equal(head.predict(X), y)
    head.partial_fit(X[:1], names[:1], text=text)
    assert head.classes_.dtype == y.dtype and head.predict(X).dtype == y.dtype


CLASS_CHECKS = (check_logits_have_a_column_a_class, check_numbers_as_labels)
