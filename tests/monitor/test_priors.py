"""Class priors by the EM of Saerens et al. and by the posterior, compared with loops, integrals and simulations."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from clipadapter.errors import InputError
from clipadapter.monitor.priors import (
    complete_priors,
    draw_priors,
    estimate_assumed_priors,
    estimate_priors,
    prior_intervals,
)

EQUAL = np.array([0.5, 0.5])


def draw_probabilities(priors, m, seed, assumed=(0.5, 0.5), distance=1.5):
    """True probabilities (m, 2) for the priors ``assumed``, of values drawn from two normal classes with ``priors``."""
    rng = np.random.default_rng(seed)
    x = rng.normal(np.where(rng.random(m) < priors[0], 0.0, distance), 1)
    joint = np.column_stack([norm.pdf(x), norm.pdf(x, distance)]) * assumed
    return joint / joint.sum(axis=1, keepdims=True)


def test_em_equals_that_of_the_paper_in_plain_loops():
    P, assumed = draw_probabilities((0.8, 0.2), 40, 0), [0.5, 0.5]
    priors = list(assumed)
    for _ in range(2000):
        rows = [[priors[k] / assumed[k] * row[k] for k in range(2)] for row in P]
        priors = [sum(row[k] / sum(row) for row in rows) / len(P) for k in range(2)]
    np.testing.assert_allclose(estimate_priors(P, EQUAL), priors, atol=1e-4)


@pytest.mark.parametrize("priors", [(0.5, 0.5), (0.9, 0.1), (1.0, 0.0)])
@pytest.mark.parametrize("assumed", [(0.5, 0.5), (0.8, 0.2)])
def test_true_priors_are_estimated_for_any_assumed_priors(priors, assumed):
    estimate = estimate_priors(draw_probabilities(priors, 4000, 2, assumed), np.array(assumed))
    np.testing.assert_allclose(estimate, priors, atol=0.03)


def test_intervals_contain_the_true_prior_in_95_percent(monkeypatch):
    monkeypatch.setattr("clipadapter.monitor.priors.RESAMPLES", 150)
    n_covered = 0
    for seed in range(60):
        _, low, high = prior_intervals(draw_probabilities((0.8, 0.2), 100, seed), EQUAL)
        n_covered += low[0] <= 0.8 <= high[0]
    assert 52 <= n_covered <= 60  # 57 and 3 sd


def test_the_interval_of_pictures_that_all_look_like_one_class_is_that_of_wilson():
    _, low, high = prior_intervals(np.tile([1.0, 0.0], (30, 1)), EQUAL)
    # 30 of 30: 1 / (1 + z^2 / 30)
    np.testing.assert_allclose([*low, *high], [0.8865, 0, 1, 0.1135], atol=1e-4)


@pytest.mark.parametrize("assumed", [(0.5, 0.5), (0.8, 0.2)])
def test_assumed_priors_are_estimated_from_labels_of_unequal_shots_and_equal_ones_assume_equal_priors(assumed):
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.2).astype(int)
    x = rng.normal(1.5 * y)
    joint = np.column_stack([norm.pdf(x), norm.pdf(x, 1.5)]) * assumed
    P = joint / joint.sum(axis=1, keepdims=True)
    estimate = estimate_assumed_priors(P, y)
    np.testing.assert_allclose(estimate, assumed, atol=0.07)
    np.testing.assert_allclose(estimate_assumed_priors(P, np.repeat([0, 1], 200)), [0.5] * 2)


def test_given_priors_must_be_of_classes_and_at_most_1_in_all():
    sample_priors = np.array([0.5, 0.5])
    assert complete_priors({"a": 0.2, "b": 0.8}, ["a", "b"], sample_priors).tolist() == [0.2, 0.8]
    assert complete_priors({}, ["a", "b"], sample_priors) is sample_priors
    with pytest.raises(InputError, match=r"no class is called 'c'; the model's classes: a, b"):
        complete_priors({"c": 0.2}, ["a", "b"], sample_priors)
    for priors in ({"a": 0.9, "b": 0.9}, {"a": 0.2, "b": 0.2}, {"a": 1.2}, {"a": -0.1}):
        with pytest.raises(InputError, match="1 in all"):
            complete_priors(priors, ["a", "b"], sample_priors)


@pytest.mark.parametrize(("recalls", "predicted_first"), [((0.7, 0.6), 12), ((1.0, 1.0), 40)])
def test_with_many_shots_the_posterior_is_that_of_known_confusions(recalls, predicted_first):
    C = np.array([[recalls[0], 1 - recalls[0]], [1 - recalls[1], recalls[1]]])
    draws = draw_priors(np.array([predicted_first, 40 - predicted_first]), (5000 * C).round())[:, 0]
    share = (np.arange(20_000) + 0.5) / 20_000
    likelihood = binom.pmf(predicted_first, 40, share * C[0, 0] + (1 - share) * C[1, 0])
    density = likelihood * share**-0.5 * (1 - share) ** -0.5
    density /= density.sum()
    assert draws.mean() == pytest.approx(share @ density, abs=0.02)
    expected = np.interp([0.025, 0.5, 0.975], density.cumsum(), share)
    np.testing.assert_allclose(np.quantile(draws, [0.025, 0.5, 0.975]), expected, atol=0.04)


@pytest.mark.parametrize(
    ("accuracy", "true_priors"),
    [(0.4, (0.6, 0.1, 0.1, 0.1, 0.1)), (0.7, (0.2, 0.2, 0.2, 0.2, 0.2)), (0.95, (0.6, 0.1, 0.1, 0.1, 0.1))],
)
def test_intervals_contain_the_true_prior_for_weak_and_strong_models(accuracy, true_priors):
    rng, n_covered = np.random.default_rng(0), 0
    for _ in range(15):
        C = np.stack([rng.dirichlet(np.ones(5)) for _ in range(5)]) * (1 - accuracy) + accuracy * np.eye(5)
        shots = np.stack([rng.multinomial(6, row) for row in C]).astype(float)
        stream = rng.multinomial(100, np.array(true_priors) @ C)
        low, high = np.quantile(draw_priors(stream, shots, draws=200), [0.025, 0.975], axis=0)
        n_covered += int(((low <= true_priors) & (true_priors <= high)).sum())
    assert n_covered >= 0.88 * 75


def test_intervals_are_wider_with_fewer_shots():
    widths = []
    for n in (4, 40, 400):
        confusions = n * np.array([[0.75, 0.25], [0.25, 0.75]])
        low, high = np.quantile(draw_priors(np.array([60, 40]), confusions), [0.025, 0.975], axis=0)
        widths.append(high[0] - low[0])
    assert widths[0] > 1.5 * widths[1] > 1.5 * widths[2]


def test_classes_that_are_never_predicted_or_have_no_shots_are_possible():
    confusions = np.array([[6.0, 0, 0], [0, 6, 0], [0, 0, 0]])
    draws = draw_priors(np.array([50, 0, 0]), confusions)
    assert np.isfinite(draws).all() and np.allclose(draws.sum(axis=1), 1)
    assert draws[:, 0].mean() > 0.7


def test_many_classes_take_few_draws(monkeypatch):
    monkeypatch.setattr("clipadapter.monitor.priors.MAX_VALUES", 1_000_000)
    draws = draw_priors(np.full(40, 2), 4 * np.eye(40))
    assert draws.shape[1] == 40 and 100 <= len(draws) < 1000
