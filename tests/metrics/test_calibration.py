import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from clipadapter.errors import InputError
from clipadapter.metrics import METRICS, Predictions, expected_calibration_error, log_loss, reliability


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(4, 0.5), 200)
    return p, rng.integers(0, 4, 200)


def test_calibration_error_of_equal_width_is_the_sum_over_bins_in_plain_loops(answers):
    p, y = answers
    total = 0.0
    for low in range(10):
        inside = [i for i in range(len(y)) if low / 10 < p[i].max() <= (low + 1) / 10]
        if inside:
            confidence = sum(p[i].max() for i in inside) / len(inside)
            right = sum(p[i].argmax() == y[i] for i in inside) / len(inside)
            total += len(inside) / len(y) * abs(confidence - right)
    assert expected_calibration_error(p, y, bins=10, mass="equal-width") == pytest.approx(total)


def test_bins_of_equal_mass_hold_as_many_answers_but_those_of_one_probability_stay_in_one(answers):
    p, y = answers
    found = reliability(p.max(axis=1), p.argmax(axis=1) == y, bins=8, mass="equal-mass")
    assert found.count.tolist() == [25] * 8
    assert (np.diff(found.confidence) > 0).all()
    found = reliability([0.5] * 6 + [0.9], [True] * 3 + [False] * 4, bins=3, mass="equal-mass")
    assert found.count.tolist() == [6, 1]
    assert found.accuracy.tolist() == [0.5, 0.0]


def test_brier_and_log_loss_are_those_of_scikit_learn_and_log_loss_of_a_probability_of_zero_is_finite(answers):
    p, y = answers
    brier = METRICS["brier"].function(Predictions(y, np.log(p)))
    assert brier == pytest.approx(brier_score_loss(y, p, labels=range(4)))
    assert log_loss(p, y) == pytest.approx(sklearn_log_loss(y, p, labels=range(4)))
    assert np.isfinite(log_loss([[1.0, 0.0]], [1]))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 20))
@settings(deadline=None)
def test_every_answer_is_in_one_bin_and_the_error_is_a_share(pairs, bins):
    for mass in ("equal-width", "equal-mass"):
        found = reliability([p for p, _ in pairs], [right for _, right in pairs], bins, mass)
        assert found.count.sum() == len(pairs)
        assert 0 <= found.error <= 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: reliability([], []), "give one probability per prediction"),
        (lambda: reliability([3.0], [True]), "not logits"),
        (lambda: reliability([0.5], [True], mass="equal"), "equal-mass"),
        (lambda: log_loss([[0.5, 0.5]], [2]), "positions of the 2 classes"),
        (lambda: log_loss([0.5], [0]), "don't match"),
    ],
)
def test_wrong_input_says_what_is_wrong(call, words):
    with pytest.raises(InputError, match=words):
        call()
