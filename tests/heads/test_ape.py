"""APE against its published formulas, written out in plain loops."""

import math

import numpy as np
import pytest

from clipadapter.heads import TextFeatures
from clipadapter.heads.ape import Ape
from clipadapter.heads.tip_adapter import TipAdapter

from .small_shots import released_shots

D, CLASSES, SCALE = 8, 3, 30.0


def draw():
    """Two views of each shot, their labels, class text, queries; float64."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(CLASSES), (4, 1, 2))
    means = rng.standard_normal((CLASSES, D)) + 0.5
    X = 9 * (means[labels][:, None] + 0.7 * rng.standard_normal((len(labels), 2, D)))
    text = TextFeatures([f"class {i}" for i in range(CLASSES)], means + rng.standard_normal(means.shape), SCALE)
    return X, np.array(text.labels)[labels], text, 9 * rng.standard_normal((6, D))


def test_all_channels_and_gamma_zero_is_tip_adapter():
    X, y, text, Q = draw()
    heads = TipAdapter(alpha=2.0, beta=3.0), Ape(alpha=2.0, beta=3.0, gamma=0, channels=1.0)
    expected, found = (head.fit(X, y, text=text).logits(Q) for head in heads)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_surprising_shot_counts_more():
    text = TextFeatures(["a", "b"], np.eye(2), logit_scale=1.0)
    shares = Ape(gamma=1.0, channels=1.0).fit([[1.0, 0.0], [0.0, 1.0]], ["a", "a"], text=text).share_
    # Softmax of (1, 0) and of (0, 1) at the label a, by hand.
    e = math.e
    np.testing.assert_allclose(shares, np.exp(np.log2([(e + 1) / e, e + 1])), rtol=1e-4)


@pytest.mark.parametrize(("fraction", "kept"), [(0.5, 4), (0.01, 1), (1.0, 8)])
def test_channels_is_a_fraction(fraction, kept):
    X, y, text, _ = draw()
    assert len(Ape(channels=fraction).fit(X, y, text=text).channels_.unique()) == kept


@pytest.mark.parametrize(("preset", "weights"), [("imagenet", "w0.7_0.3"), ("dtd", "w0.5_0.5")])
@pytest.mark.parametrize(("alpha", "beta", "gamma"), [(2, 1, 0.1), (3, 5.5, 0.3)])
def test_released_code_gives_these_channels_shares_and_logits(preset, weights, alpha, beta, gamma):
    figures, X, y, text, Q = released_shots("ape")
    head = Ape.preset(preset, alpha=alpha, beta=beta, gamma=gamma, channels=5 / 8).fit(X, y, text=text)
    assert head.channels_.tolist() == figures[f"channels_{weights}"].tolist()
    np.testing.assert_allclose(head.share_.log(), gamma * figures[f"divergence_{weights}"], atol=3e-7)  # float32 there
    expected = figures[f"f64_logits_{weights}_alpha{alpha}_beta{beta}_gamma{gamma}"]
    np.testing.assert_allclose(head.logits(Q), expected, rtol=1e-10, atol=1e-10)
