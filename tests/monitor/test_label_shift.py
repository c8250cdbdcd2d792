"""Changed priors are found; confusions of the model and a small number of shots are not taken for a change."""

import numpy as np
import pytest

from clipadapter.monitor.shift import compare_priors_with_pictures, compare_priors_with_shots

CONFUSION = np.array([[0.9, 0.08, 0.02], [0.25, 0.7, 0.05], [0.02, 0.03, 0.95]])
"""Rates at which pictures of each class are predicted as each class."""
EQUAL_PRIORS = (1 / 3, 1 / 3, 1 / 3)


def draw_probabilities(rng, y):
    """Probabilities (m, 3) of pictures of classes y, by a model that is certain and sometimes wrong."""
    predictions = (rng.random(len(y))[:, None] > CONFUSION.cumsum(axis=1)[y, :2]).sum(axis=1)
    return np.eye(3)[predictions] * 0.94 + 0.02


def compare_streams(runs, priors, k=8, m=150, reference_priors=EQUAL_PRIORS):
    results = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        y = np.repeat(np.arange(3), k)
        stream = draw_probabilities(rng, rng.choice(3, p=priors, size=m))
        shots = draw_probabilities(rng, y)
        results.append(compare_priors_with_shots(shots, y, np.array(reference_priors), stream, draws=199, seed=seed))
    return results


@pytest.mark.parametrize("k", [3, 16])
def test_confusions_of_the_model_are_no_change(k):
    p_values = np.array([result.p_value for result in compare_streams(150, EQUAL_PRIORS, k)])
    assert (p_values <= 0.05).mean() <= 0.12  # 0.05 and 3.9 sd: three shots show few of the confusions


def test_a_class_twice_as_frequent_is_found_and_named():
    results = compare_streams(20, (0.15, 0.15, 0.7), k=16)
    assert np.mean([result.p_value <= 0.01 for result in results]) >= 0.9
    assert np.mean([result.class_p_values[2] <= 0.01 for result in results]) >= 0.9


def test_the_priors_of_the_reference_can_be_given():
    unchanged = compare_streams(60, (0.2, 0.2, 0.6), reference_priors=(0.2, 0.2, 0.6))
    assert np.mean([result.p_value <= 0.05 for result in unchanged]) <= 0.13
    changed = compare_streams(20, EQUAL_PRIORS, k=16, reference_priors=(0.15, 0.15, 0.7))
    assert np.mean([result.p_value <= 0.01 for result in changed]) >= 0.9


def test_a_class_without_a_shot_has_no_effect():
    y, rng = np.repeat([0, 1], 8), np.random.default_rng(0)
    shots, stream = np.eye(3)[y], np.eye(3)[rng.integers(2, size=60)]
    assert compare_priors_with_shots(shots, y, np.array([0.5, 0.5, 0.0]), stream, draws=199).p_value > 0.05


def test_pictures_are_compared_by_permutation():
    p_values, rng = [], np.random.default_rng(0)
    for seed in range(150):
        rows = draw_probabilities(rng, rng.choice(3, p=[0.7, 0.2, 0.1], size=120))
        p_values.append(compare_priors_with_pictures(rows[:40], rows[40:], draws=99, seed=seed).p_value)
    assert 0.01 <= np.mean(np.array(p_values) <= 0.1) <= 0.19
    stream = draw_probabilities(rng, rng.choice(3, p=[0.4, 0.2, 0.4], size=150))
    changed = compare_priors_with_pictures(draw_probabilities(rng, rng.choice(3, p=[0.7, 0.2, 0.1], size=150)), stream)
    assert changed.p_value <= 0.01 and changed.class_p_values[2] <= 0.01


def test_p_values_of_classes_are_corrected_for_their_number():
    rng = np.random.default_rng(0)
    rows = np.eye(40)[rng.integers(40, size=400)]
    p_values = compare_priors_with_pictures(rows[:200], rows[200:], draws=199).class_p_values
    assert (p_values <= 0.05).sum() <= 1  # of 40, where two are expected without the correction
