import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from clipadapter.errors import ArtifactError, InputError
from clipadapter.metrics import log_loss
from clipadapter.uncertainty import Calibrator, learn_calibrator
from clipadapter.utils.prediction import softmax


def answers(n, c=5, temperature=3.0, seed=0):
    """Logits that are too loud by a factor, and labels drawn from what they should have said."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(n, c)) * 2
    p = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    return honest * temperature, np.array([rng.choice(c, p=row) for row in p])


def test_with_many_shots_the_temperature_is_the_one_of_least_log_loss_and_a_part_of_them_is_enough(monkeypatch):
    z, y = answers(5000)
    best = minimize_scalar(lambda t: log_loss(softmax(z, t), y), bounds=(0.1, 20), method="bounded").x
    assert learn_calibrator(z, y).temperature == pytest.approx(best, rel=0.01)
    assert best == pytest.approx(3.0, rel=0.1)
    monkeypatch.setattr("clipadapter.uncertainty.calibration.MAX_LOGITS", 5000)
    assert learn_calibrator(z, y).temperature == pytest.approx(best, rel=0.15)


def test_the_posterior_is_that_of_plain_loops():
    z, y = answers(6, c=3)
    share = 0.25 / 7

    def minus_log_posterior(log_t):
        total = log_t**2 / (2 * 0.4**2)
        for row, label in zip(z / np.exp(log_t), y, strict=True):
            logs = row - np.log(sum(np.exp(value) for value in row))
            other = max((value, k) for k, value in enumerate(row) if k != label)[1]
            total -= (1 - share) * logs[label] + share * logs[other]
        return total

    best = minimize_scalar(minus_log_posterior, bounds=(-3, 4), method="bounded").x
    assert np.log(learn_calibrator(z, y).temperature) == pytest.approx(best, abs=2e-3)


def test_few_held_out_shots_leave_a_share_of_equal_probabilities():
    for n, share in ((4, 1 / 17), (16, 1 / 257)):
        y = np.arange(n) % 2
        calibrator = learn_calibrator(np.eye(2)[y] * 5.0, y)
        sure = np.array([[1e6, 0.0]])
        np.testing.assert_allclose(calibrator.probabilities(sure), [[1 - share / 2, share / 2]])
        np.testing.assert_allclose(np.exp(calibrator.log_probabilities(sure)), calibrator.probabilities(sure))


def test_logits_of_another_unit_give_the_same_probabilities():
    z, y = answers(60)
    p = learn_calibrator(z, y, prior_temperature=1.0).probabilities(z)
    scaled = learn_calibrator(1000 * z, y, prior_temperature=1000.0).probabilities(1000 * z)
    np.testing.assert_allclose(scaled, p, atol=1e-6)


def test_repeated_rows_count_as_one_shot():
    z, y = answers(10)
    once, twice = learn_calibrator(z, y), learn_calibrator(np.tile(z, (2, 1)), np.tile(y, 2), n=10)
    assert twice.temperature == pytest.approx(once.temperature, rel=2e-3)


def unequal_rows(counts, seed=0):
    """Logits that are honest where classes are equally frequent, of rows with unequal numbers per class."""
    z, y = answers(40 * max(counts), c=len(counts), temperature=1.0, seed=seed)
    rows = np.concatenate([np.flatnonzero(y == k)[:count] for k, count in enumerate(counts)])
    return z[rows], y[rows]


def test_class_shares_that_logit_adjustment_took_out_stay_out():
    z, y = unequal_rows([400, 400, 400, 40, 40])
    adjusted = learn_calibrator(z, y, method="vector", logit_adjustment=1.0)
    unadjusted = learn_calibrator(z, y, method="vector")
    assert np.ptp(adjusted.bias) < 0.6
    assert np.log(10) - 0.6 < unadjusted.bias[:3].mean() - unadjusted.bias[3:].mean() < np.log(10) + 0.6


def test_the_balanced_posterior_is_that_of_plain_loops():
    z, y = unequal_rows([6, 3, 2])
    found = learn_calibrator(z, y, method="vector", logit_adjustment=1.0)
    wrong, shares = 0.25 / 12, [1 / 6, 1 / 3, 1 / 2]  # of a row of the class
    effective_rows = 3**2 / sum(shares)

    def minus_log_posterior(parameters):
        weight, bias = parameters[:3], parameters[3:]
        total = sum((w - 1) ** 2 for w in weight) / (2 * 0.2**2) + sum(b**2 for b in bias) / (2 * 0.5**2)
        for row, label in zip(z / found.temperature, y, strict=True):
            scaled = [w * value + b for w, value, b in zip(weight, row, bias, strict=True)]
            logs = scaled - np.log(sum(np.exp(value) for value in scaled))
            other = max((value, k) for k, value in enumerate(row) if k != label)[1]
            likelihood = (1 - wrong) * logs[label] + wrong * logs[other]
            total -= effective_rows / 3 * shares[label] * likelihood
        return total

    best = minimize(minus_log_posterior, [1, 1, 1, 0, 0, 0]).x
    np.testing.assert_allclose([*found.weight, *found.bias], best, atol=2e-4)


def test_with_equal_numbers_of_rows_logit_adjustment_changes_nothing():
    z, y = unequal_rows([7, 7, 7])
    plain, adjusted = (learn_calibrator(z, y, method="vector", logit_adjustment=tau) for tau in (0.0, 1.0))
    np.testing.assert_array_equal(adjusted.probabilities(z), plain.probabilities(z))


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_a_loaded_state_gives_equal_predictions(method):
    z, y = answers(50)
    found = learn_calibrator(z, y, method=method)
    again = Calibrator.from_state(*found.state(), classes=5)
    np.testing.assert_array_equal(again.probabilities(z), found.probabilities(z))


def test_a_damaged_calibration_and_one_of_other_classes_are_refused():
    wrong = [{"temperature": value} for value in (-1.0, float("inf"), "warm", 10**400, float("nan"))]
    for change in [*wrong, {"n": -1}]:
        with pytest.raises(ArtifactError, match="calibration"):
            Calibrator.from_state({"temperature": 1.0, "n": 3, **change}, {}, 5)
    facts, arrays = learn_calibrator(*answers(50), method="vector").state()
    with pytest.raises(ArtifactError, match="calibration is damaged: its 'weight' has the shape"):
        Calibrator.from_state(facts, arrays, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z, y: learn_calibrator(z, y[:-1]), "don't match"),
        (lambda z, y: learn_calibrator(z, y + 9), "don't match"),
        (lambda z, y: learn_calibrator(z * np.nan, y), "finite"),
        (lambda z, y: learn_calibrator(z, y, method="isotonic"), "temperature, vector"),
    ],
)
def test_wrong_input_says_what_is_wrong(call, words):
    with pytest.raises(InputError, match=words):
        call(*answers(8))
