import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from clipadapter.metrics import METRICS, Predictions, bootstrap_metrics, wilson_interval


def predictions(p, labels):
    return Predictions(labels, np.log(p))


@pytest.fixture
def answers():
    """Probabilities of 200 pictures and four classes, and labels that the likeliest class often meets."""
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=200)
    p = rng.dirichlet(np.ones(4), size=200)
    p[np.arange(200), labels] += 0.4
    return p / p.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize(("right", "m"), [(0, 5), (3, 7), (10, 10), (911, 1010)])
def test_wilson_is_that_of_scipy(right, m):
    expected = binomtest(right, m).proportion_ci(method="wilson")
    assert wilson_interval(right / m, m) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_metrics_of_weighted_pictures_are_those_of_repeated_pictures(answers):
    p, labels = answers
    predicted = p.argmax(axis=1)
    rows = np.random.default_rng(5).integers(200, size=200)
    resample = predictions(p, labels).reweighted(np.bincount(rows, minlength=200).astype(float))
    expected = {
        "accuracy": accuracy_score(labels[rows], predicted[rows]),
        "balanced_accuracy": balanced_accuracy_score(labels[rows], predicted[rows]),
        "macro_f1": f1_score(labels[rows], predicted[rows], average="macro"),
        "log_loss": log_loss(labels[rows], p[rows]),
    }
    assert {name: METRICS[name].function(resample) for name in expected} == pytest.approx(expected)


def test_the_interval_of_a_mean_is_that_of_the_central_limit(answers):
    p, labels = answers
    found = bootstrap_metrics({"a": predictions(p, labels)})["a"]
    losses = -np.log(p[np.arange(200), labels])
    half = 1.96 * losses.std() / np.sqrt(200)
    log_loss, f1 = found.metrics["log_loss"], found.metrics["macro_f1"]
    assert log_loss.value == pytest.approx(losses.mean())
    assert (log_loss.low, log_loss.high) == pytest.approx((losses.mean() - half, losses.mean() + half), abs=0.1 * half)
    assert f1.low < f1.value < f1.high
    assert found.metrics["calibration_error"].low is None
    assert found.accuracy_lead is None


def test_differences_are_paired(answers):
    p, labels = answers
    worse = p.copy()
    right = np.flatnonzero(p.argmax(axis=1) == labels)[:20]
    worse[right] = np.roll(p[right], 1, axis=1)  # twenty more mistakes, none less
    models = {"a": p, "same": p, "worse": worse}
    found = bootstrap_metrics({name: predictions(one, labels) for name, one in models.items()})
    assert set(vars(found["same"].accuracy_lead).values()) == {0}
    ahead = found["worse"].accuracy_lead
    assert ahead.value == pytest.approx(0.1)
    # Of 20 in 200: an unpaired interval would be more than twice as wide.
    half = 1.96 * np.sqrt(0.1 * 0.9 / 200)
    assert (ahead.low, ahead.high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.012)


def test_all_right_is_not_certain():
    found = bootstrap_metrics({"a": predictions(np.eye(2)[[0, 1, 1]] * 0.98 + 0.01, np.array([0, 1, 1]))})["a"]
    accuracy, f1 = found.metrics["accuracy"], found.metrics["macro_f1"]
    assert accuracy.high == 1 and accuracy.low < 0.5
    assert (f1.low, f1.high) == (1, 1)
