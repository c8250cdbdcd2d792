"""The posterior of class priors, compared with integration on a grid and with simulated models."""

import numpy as np
import pytest
from scipy.stats import binom

from clipadapter.monitor import priors
from clipadapter.monitor.priors import draw_priors


@pytest.mark.parametrize(("recalls", "predicted_first"), [((0.9, 0.8), 30), ((0.7, 0.6), 12), ((1.0, 1.0), 40)])
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
    monkeypatch.setattr(priors, "MAX_VALUES", 1_000_000)
    draws = draw_priors(np.full(40, 2), 4 * np.eye(40))
    assert draws.shape[1] == 40 and 100 <= len(draws) < 1000
