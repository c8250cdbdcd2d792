"""APE-T: its training against gradients and AdamW written out by hand."""

import numpy as np
import pytest

from clipadapter.heads.ape import Ape
from clipadapter.heads.ape_t import ApeT

from .formulas import AdamW, cosine_rate, softmax, unit
from .small_shots import three_classes

D, SCALE = 6, 20.0
SAME_CHANNELS = {"channels": 0.5, "similarity_weight": 0.7, "variance_weight": 0.3}


@pytest.fixture
def case():
    return three_classes(D, SCALE)


def logits_by_hand(x, text, keys, labels, channels, residual, share, alpha, beta):
    """scale * f (T + R) + alpha * exp(-beta (1 - f' (F' + R))) diag(share) Y, and the affinities."""
    moved = text.copy()
    moved[:, channels] += residual
    affinity = np.exp(-beta * (1 - unit(x[:, channels]) @ (keys + residual[labels]).T))
    return SCALE * x @ moved.T + alpha * (affinity * share) @ np.eye(len(text))[labels], affinity


def trained_by_hand(X, labels, text, channels, steps, alpha, beta):
    x, onehot = unit(X), np.eye(len(text))[labels]
    part, keys = x[:, channels], unit(x[:, channels])
    residual, share = np.zeros((len(text), len(channels))), np.ones(len(X))
    first, second = (AdamW(eps=1e-3, decay=0.1) for _ in range(2))  # the published values
    for i in range(steps):
        logits, affinity = logits_by_hand(x, text, keys, labels, channels, residual, share, alpha, beta)
        error = (softmax(logits) - onehot) / len(x)  # (m, c)
        shot = alpha * affinity * (error @ onehot.T)  # (m, n): of each vote before its share
        of_residual = SCALE * error.T @ part + onehot.T @ ((beta * shot * share).T @ unit(part))
        rate = cosine_rate(1e-3, i, steps)
        residual, share = first.step(residual, of_residual, rate), second.step(share, shot.sum(axis=0), rate)
    return keys, residual, share


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 5.5), (3.0, 1.0)])
def test_training_is_adamw_on_residuals_and_shares(case, alpha, beta):
    X, labels, y, text = case
    head = ApeT(alpha=alpha, beta=beta, epochs=10, logit_adjustment=0.0).fit(X, y, text=text)
    channels = head.channels_.numpy()
    keys, residual, share = trained_by_hand(X, labels, text.embeddings, channels, 10, alpha, beta)
    expected, _ = logits_by_hand(unit(X), text.embeddings, keys, labels, channels, residual, share, alpha, beta)
    assert np.abs(residual).max() > 1e-3
    np.testing.assert_allclose(head.share_.numpy(), share, rtol=1e-9)
    np.testing.assert_allclose(head.keys_.numpy(), keys + residual[labels], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(head.logits(X), expected, rtol=1e-9)


def test_no_epoch_is_ape_without_gamma(case):
    X, _, y, text = case
    expected = Ape(alpha=2.0, beta=3.0, gamma=0.0, **SAME_CHANNELS).fit(X, y, text=text).logits(X)
    found = ApeT(alpha=2.0, beta=3.0, epochs=0, **SAME_CHANNELS).fit(X, y, text=text).logits(X)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
