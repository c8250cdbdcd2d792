import numpy as np
import pytest

from clipadapter.errors import InputError
from clipadapter.metrics import forecast_accuracy

SHOTS = (1, 2, 4, 8)


def outcomes(accuracy, pictures, draws=3, seed=0, shots=SHOTS):
    """Fits whose predictions are right with the probability that a curve says; two classes in turn."""
    rng = np.random.default_rng(seed)
    n = np.repeat(shots, draws)
    return n, (rng.random((len(n), pictures)) < accuracy(n)[:, None]).astype(float), np.arange(pictures) % 2


@pytest.mark.parametrize("c", [0.2, 0.5, 0.8])
def test_the_interval_contains_the_value_of_a_power_law(c):
    n, correct, labels = outcomes(lambda n: 0.95 - 0.4 * n**-c, 1000)
    forecast = forecast_accuracy(n, correct, labels, target_shots=16, resamples=300)
    assert forecast.low <= 0.95 - 0.4 * 16**-c <= forecast.high
    assert forecast.high - forecast.low < 0.12


def test_the_interval_contains_the_truth_as_often_as_it_says():
    inside = []
    for seed in range(40):
        n, correct, labels = outcomes(lambda n: 0.9 - 0.4 * n**-0.5, 32, seed=seed)
        forecast = forecast_accuracy(n, correct, labels, target_shots=18, resamples=200, seed=seed)
        inside.append(forecast.low <= 0.9 - 0.4 * 18**-0.5 <= forecast.high)
    assert np.mean(inside) >= 0.9


def test_the_interval_has_a_length_if_all_is_right_and_a_shorter_one_by_more_pictures():
    forecast = forecast_accuracy([1, 2, 4], np.ones((3, 8)), [0, 1] * 4, target_shots=14)
    assert forecast.low < 0.95 < forecast.value < forecast.high <= 1
    measured = (outcomes(lambda n: 0.9 - 0.3 / n, pictures) for pictures in (16, 400))
    few, many = (forecast_accuracy(*fits, target_shots=18) for fits in measured)
    assert many.high - many.low < (few.high - few.low) / 2


def test_more_shots_never_lower_the_forecast():
    correct = np.array([[1.0] * 15 + [0] * 5, [1] * 12 + [0] * 8, [1] * 10 + [0] * 10])
    forecasts = [forecast_accuracy([1, 2, 4], correct, [0, 1] * 10, target_shots=n).value for n in (4, 10, 20)]
    assert forecasts == sorted(forecasts) and forecasts[0] > 0.5


@pytest.mark.parametrize(("right", "rises"), [((10, 13, 17), True), ((17, 13, 10), False), ((20, 20, 20), False)])
def test_a_curve_rises_if_nearly_all_resamples_do(right, rises):
    correct = np.array([[1.0] * n + [0] * (20 - n) for n in right])
    assert forecast_accuracy([1, 2, 4], correct, [0, 1] * 10, target_shots=10).rises == rises


def test_classes_count_the_same_whatever_their_size():
    """Class 0 has 90 pictures that are always right, class 1 ten that are always wrong."""
    labels = np.repeat([0, 1], [90, 10])
    forecast = forecast_accuracy([1, 2, 4], np.tile(1.0 - labels, (3, 1)), labels, target_shots=8)
    assert forecast.value == pytest.approx(0.5, abs=0.01)


def test_pictures_that_a_fit_saw_are_left_out():
    correct = np.tile([1.0, np.nan, 1, 1], (3, 10))
    correct[0, 1] = 0  # the other fits saw this picture
    labels = [0, 0, 1, 1] * 10
    assert forecast_accuracy([1, 2, 4], correct, labels, target_shots=8).value > 0.95
    assert forecast_accuracy([1, 2, 4], np.nan_to_num(correct), labels, target_shots=8).value < 0.8


@pytest.mark.parametrize(
    ("shots", "target"),
    [([], 8), ([0, 0, 4], 8), ([4, 4], 8), ([1, 2], 12)],
    ids=["no fit", "class names and one number", "one number of shots", "more than five times as many"],
)
def test_too_few_fits_give_no_forecast(shots, target):
    correct = np.ones((len(shots), 4))
    assert forecast_accuracy(shots, correct, [0, 0, 1, 1], target_shots=target) is None


def test_numbers_that_do_not_match_are_an_error():
    with pytest.raises(InputError, match=r"correct must be \(2, 3\)"):
        forecast_accuracy([1, 2], np.ones((2, 4)), [0, 1, 1], target_shots=8)
    with pytest.raises(InputError, match="target_shots is not positive"):
        forecast_accuracy([1, 2], np.ones((2, 2)), [0, 1], target_shots=0)
