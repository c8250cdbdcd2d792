"""Changed shares are found; a model's own mistakes and few shots are not taken for a change."""

import numpy as np
import pytest

from clipadapter.monitor.label_shift import against_pictures, against_shots

CONFUSED = np.array([[0.9, 0.08, 0.02], [0.25, 0.7, 0.05], [0.02, 0.03, 0.95]])
"""What pictures of each class are called."""


def asked(rng, y):
    """Probabilities (m, 3) of pictures of classes y by a model that is sure, and sometimes wrong."""
    called = np.array([rng.choice(3, p=CONFUSED[k]) for k in y])
    return np.eye(3)[called] * 0.94 + 0.02


def found(runs, priors, k=8, m=150, usual=(1 / 3, 1 / 3, 1 / 3)):
    values = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        y = np.repeat(np.arange(3), k)
        stream = asked(rng, rng.choice(3, p=priors, size=m))
        values.append(against_shots(asked(rng, y), y, np.array(usual), stream, draws=199, seed=seed))
    return values


@pytest.mark.parametrize("k", [3, 16])
def test_mistakes_of_the_model_are_no_change(k):
    p = np.array([one.p for one in found(150, (1 / 3, 1 / 3, 1 / 3), k)])
    assert (p <= 0.05).mean() <= 0.12  # 0.05 and 3.9 sd: three shots show little of the mistakes


def test_a_class_twice_as_frequent_is_found_and_named():
    values = found(20, (0.15, 0.15, 0.7), k=16)
    assert np.mean([one.p <= 0.01 for one in values]) >= 0.9
    assert np.mean([one.by_class[2] <= 0.01 for one in values]) >= 0.9


def test_what_is_usual_can_be_said():
    assert np.mean([one.p <= 0.05 for one in found(60, (0.2, 0.2, 0.6), usual=(0.2, 0.2, 0.6))]) <= 0.13
    assert np.mean([one.p <= 0.01 for one in found(20, (1 / 3, 1 / 3, 1 / 3), k=16, usual=(0.15, 0.15, 0.7))]) >= 0.9


def test_a_class_without_a_shot_changes_nothing():
    y, rng = np.repeat([0, 1], 8), np.random.default_rng(0)
    shots, stream = np.eye(3)[y], np.eye(3)[rng.integers(2, size=60)]
    assert against_shots(shots, y, np.array([0.5, 0.5, 0.0]), stream, draws=199).p > 0.05


def test_pictures_as_they_came_are_compared_by_permutation():
    p, rng = [], np.random.default_rng(0)
    for seed in range(150):
        rows = asked(rng, rng.choice(3, p=[0.7, 0.2, 0.1], size=120))
        p.append(against_pictures(rows[:40], rows[40:], draws=99, seed=seed).p)
    assert 0.01 <= np.mean(np.array(p) <= 0.1) <= 0.19
    more = asked(rng, rng.choice(3, p=[0.4, 0.2, 0.4], size=150))
    changed = against_pictures(asked(rng, rng.choice(3, p=[0.7, 0.2, 0.1], size=150)), more)
    assert changed.p <= 0.01 and changed.by_class[2] <= 0.01


def test_a_class_alone_needs_more_for_the_number_of_classes():
    rng = np.random.default_rng(0)
    rows = np.eye(40)[rng.integers(40, size=400)]
    values = against_pictures(rows[:200], rows[200:], draws=199).by_class
    assert (values <= 0.05).sum() <= 1  # of 40, where two were to be expected without the correction
