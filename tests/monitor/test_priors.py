"""Shares of classes by the EM of Saerens et al., beside plain loops, an optimiser and drawn pictures."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from clipadapter.errors import InputError
from clipadapter.monitor import adjusted, estimate_priors, prior_intervals
from clipadapter.monitor.reference import assumed_priors, usual_shares


def pictures(priors, m, seed, assumed=(0.5, 0.5), apart=1.5):
    """True probabilities (m, 2) under ``assumed`` of numbers that two normal classes with ``priors`` give."""
    rng = np.random.default_rng(seed)
    x = rng.normal(np.where(rng.random(m) < priors[0], 0.0, apart), 1)
    joint = np.column_stack([norm.pdf(x), norm.pdf(x, apart)]) * assumed
    return joint / joint.sum(axis=1, keepdims=True)


def test_em_is_that_of_the_paper_in_plain_loops():
    P, before = pictures((0.8, 0.2), 40, 0), [0.5, 0.5]
    shares = list(before)
    for _ in range(2000):
        new = [0.0, 0.0]
        for row in P:
            total = sum(shares[k] / before[k] * row[k] for k in range(2))
            for k in range(2):
                new[k] += shares[k] / before[k] * row[k] / total / len(P)
        shares = new
    np.testing.assert_allclose(estimate_priors(P), shares, atol=1e-4)


def test_no_other_shares_make_the_pictures_likelier():
    P, before = pictures((0.7, 0.3), 200, 1, assumed=(0.6, 0.4)), np.array([0.6, 0.4])

    def unlikely(share):
        return -np.log(P / before @ np.array([share[0], 1 - share[0]])).sum()

    best = minimize(unlikely, [0.5], bounds=[(1e-6, 1 - 1e-6)]).x[0]
    np.testing.assert_allclose(estimate_priors(P, before), [best, 1 - best], atol=1e-3)


@pytest.mark.parametrize("priors", [(0.5, 0.5), (0.9, 0.1), (1.0, 0.0)])
@pytest.mark.parametrize("assumed", [(0.5, 0.5), (0.8, 0.2)])
def test_the_drawn_shares_are_found_whatever_the_probabilities_assume(priors, assumed):
    found = estimate_priors(pictures(priors, 4000, 2, assumed), assumed)
    np.testing.assert_allclose(found, priors, atol=0.03)


def test_nineteen_of_twenty_intervals_hold_the_drawn_share():
    held = 0
    for seed in range(60):
        _, low, high = prior_intervals(pictures((0.8, 0.2), 100, seed), resamples=150)
        held += low[0] <= 0.8 <= high[0]
    assert 52 <= held <= 60  # 57 and 3 sd


def test_intervals_hang_on_the_seed_alone():
    P = pictures((0.8, 0.2), 50, 0)
    np.testing.assert_array_equal(prior_intervals(P, seed=3), prior_intervals(P, seed=3))
    assert not np.array_equal(prior_intervals(P, seed=3), prior_intervals(P, seed=4))


def test_adjusted_probabilities_are_those_of_bayes():
    seen, wanted = (pictures((0.3, 0.7), 50, 4, assumed) for assumed in ((0.5, 0.5), (0.9, 0.1)))
    np.testing.assert_allclose(adjusted(seen, [0.5, 0.5], [0.9, 0.1]), wanted)


def test_what_is_no_probability_or_no_share_is_told():
    for P in ([0.5, 0.5], np.zeros((0, 2)), [[np.nan, 1]], [[-0.1, 1.1]]):
        with pytest.raises(InputError, match="a row for each of one or more pictures"):
            estimate_priors(P)
    for shares in ([1.0], [1.0, 0.0]):
        with pytest.raises(InputError, match="a share above 0 is needed for each of 2 classes"):
            estimate_priors([[0.5, 0.5]], shares)


@pytest.mark.parametrize("assumed", [(0.5, 0.5), (0.8, 0.2)])
def test_what_probabilities_assume_is_seen_from_labels_of_unequal_shots(assumed):
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.2).astype(int)
    x = rng.normal(1.5 * y)
    joint = np.column_stack([norm.pdf(x), norm.pdf(x, 1.5)]) * assumed
    found = assumed_priors(joint / joint.sum(axis=1, keepdims=True), y)
    np.testing.assert_allclose(found, assumed, atol=0.07)


def test_as_many_shots_of_each_class_assume_equal_shares():
    P = np.random.default_rng(0).dirichlet([1, 1, 1], 12)
    np.testing.assert_allclose(assumed_priors(P, np.repeat([0, 1, 2], 4)), [1 / 3] * 3)


def test_usual_shares_must_be_shares_of_the_classes():
    share = np.array([0.5, 0.5])
    assert usual_shares({"a": 0.2, "b": 0.8}, ["a", "b"], share).tolist() == [0.2, 0.8]
    assert usual_shares({}, ["a", "b"], share) is share
    with pytest.raises(InputError, match=r"no class is called 'c'; the model's classes: a, b"):
        usual_shares({"c": 0.2}, ["a", "b"], share)
    for given in ({"a": 0.9, "b": 0.9}, {"a": 0.2, "b": 0.2}, {"a": 1.2}, {"a": -0.1}):
        with pytest.raises(InputError, match="1 in all"):
            usual_shares(given, ["a", "b"], share)
