"""Assertions that tests of several heads share; expected values are computed here or come from refits."""

import numpy as np
import pytest

from clipadapter.errors import InputError
from clipadapter.testing import toy_features

from .formulas import unit


def assert_refused(head, words):
    """The toy's shots can't be fitted; the message has these words."""
    X, y, text = toy_features()
    with pytest.raises(InputError, match=words):
        head.fit(X, y, text=text)


def assert_loss_falls(head_type):
    """The mean negative log probability of the shots' classes falls over the epochs."""
    X, y, text = toy_features((8, 8, 8), noise=2.0)
    position = [text.labels.index(label) for label in y]
    losses = []
    for epochs in (0, 20, 200):
        p = head_type(epochs=epochs).fit(X, y, text=text).predict_proba(X)
        losses.append(-np.log(p[np.arange(len(y)), position]).mean())
    assert losses[0] > losses[1] > losses[2]


def assert_trains_on_views(result):
    """A function of features, labels and class text gives something else for features with views."""
    X, y, text = toy_features()
    noise = np.random.default_rng(0).standard_normal(X.shape).astype(np.float32)
    views = np.stack([X, X + noise, X - noise], axis=1)  # the mean, and so the start, is that of X
    plain, augmented = (result(data, y, text) for data in (X, views))
    assert np.abs(plain - augmented).max() > 1e-4


def assert_uses_views(head):
    """A head that trains with a second view, which has the shots in reverse order, gives other logits."""
    X, y, text = toy_features()
    views = np.stack([X, X[::-1]], axis=1)
    plain, viewed = (head.fit(data, y, text=text).logits(X) for data in (X, views))
    assert np.abs(plain - viewed).max() > 1e-3


def assert_zero_shot(head, atol=1e-4):
    """The head, fitted to the toy's shots, gives the logits of its class text: scale * cosine."""
    X, y, text = toy_features()
    expected = text.logit_scale * unit(X.astype(np.float64)) @ unit(text.embeddings.astype(np.float64)).T
    np.testing.assert_allclose(head.fit(X, y, text=text).logits(X), expected, atol=atol)


def assert_steps_are_epochs(head_type, attribute, case, steps, epochs):
    """Without epochs, as many are trained as the steps need: the shots of `three_classes` are three steps of two."""
    X, _, y, text = case
    by_steps, by_epochs = (
        head_type(batch_size=2, **length).fit(X, y, text=text)
        for length in ({"epochs": None, "steps": steps}, {"epochs": epochs})
    )
    assert (getattr(by_steps, attribute) == getattr(by_epochs, attribute)).all()
