"""The scores of "none of these" as a graph equal those that `clipadapter.uncertainty` computes in numpy."""

from unittest import mock

import numpy as np
import pytest
import torch

from clipadapter.runtime.export.graph import MahalanobisDistance, OodScores
from clipadapter.uncertainty import Rejector, learn_rejector, ood
from clipadapter.uncertainty.class_gaussians import fit_class_gaussians
from clipadapter.uncertainty.ood import ScorePart
from clipadapter.uncertainty.ood_scores import SCORES, MemoryBank

D, C = 48, 4


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def make_features(k: int, seed: int = 0):
    """Shots of C classes that lie close together far from zero, as features of pictures do; and what goes with them."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(D)
    means = common + 0.4 * rng.standard_normal((C, D))
    labels = np.repeat(np.arange(C), k)
    mix = rng.standard_normal((D, D)) * np.geomspace(1, 1e-3, D)
    X = means[labels] + 0.2 * rng.standard_normal((len(labels), D)) @ mix
    text = unit(means + 0.5 * rng.standard_normal((C, D)))
    Q = np.concatenate([X, common + rng.standard_normal((20, D)), rng.standard_normal((20, D)), np.zeros((1, D))])
    others = unit(common + rng.standard_normal((9, D)))
    back = unit(common + rng.standard_normal((7, D)))
    return X, labels, text, others, back, Q.astype(np.float32)


def logits_of(X, text):
    return (30 * unit(X) @ text.T).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("scores", [(), *((name,) for name in SCORES)])
def test_scores_are_those_of_numpy(scores, k):
    X, labels, text, others, back, Q = make_features(k)
    logits = logits_of(Q, text)
    given = {"text": text, "scale": 30.0, "negative_labels": others, "outliers": back}
    chosen = (lambda *args: list(scores)) if scores else ood._select_scores
    with mock.patch.object(ood, "_select_scores", chosen):
        rejector = learn_rejector(X, labels, C, logits=logits_of(X, text), **given)
    with torch.no_grad():
        total, parts = OodScores(rejector)(*(torch.from_numpy(a.astype(np.float32)) for a in (Q, logits)))
    wanted = rejector.part_scores(Q, logits)
    deviation = np.array([part.deviation for part in rejector.parts])
    assert parts.shape == wanted.shape
    assert (np.abs(parts.numpy() - wanted) <= 1e-3 * deviation + 1e-5 * np.abs(wanted)).all()
    np.testing.assert_allclose(total.numpy(), rejector.scores(Q, logits), rtol=1e-4, atol=1e-3)


def test_every_score_is_tried():
    """What `trust` learns to know must be learned here too."""
    rejector = Rejector((ScorePart("new", 1.0, 0.0, 1.0),), np.zeros((3, 1)), False, (), MemoryBank(text=np.eye(C, D)))
    with pytest.raises(AssertionError, match="'new'"):
        OodScores(rejector)(torch.ones(1, D), torch.ones(1, C))


@pytest.mark.parametrize(("k", "noise"), [(2, 0.2), (40, 0.2), (40, 1e-4)])
def test_distances_are_exact_where_float32_would_lose_them(k, noise):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(C), k)
    rows = unit(3 + rng.standard_normal((C, D))[labels] + noise * rng.standard_normal((len(labels), D)))
    spread = fit_class_gaussians(rows, labels, C)[0].single()
    wanted = spread.distances(rows).min(axis=1)
    found = MahalanobisDistance(spread)(torch.from_numpy(rows.astype(np.float32))).numpy()
    # Roots are off by the rounding of a row, in deviations of the direction that varies least.
    blur = 2**-24 / np.sqrt(spread.floor)
    assert np.abs(np.sqrt(found) - np.sqrt(wanted)).max() < 4 * blur + 1e-5 * np.sqrt(wanted).max()
