import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from clipadapter.bench import Score
from clipadapter.metrics import evaluate
from clipadapter.report._intervals import _resampled, figures, wilson


@pytest.fixture
def scored():
    """A function that makes a score from probabilities and labels."""

    def make(p, labels):
        names = [str(k) for k in range(p.shape[1])]
        told = evaluate([names[k] for k in labels], [names[k] for k in p.argmax(axis=1)], names)
        loss = -np.log(p[np.arange(len(p)), labels]).mean()
        return Score(told, float(loss), 0.0, np.log(np.maximum(p, 1e-300)), p, labels, 0.0)

    return make


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
    found, expected = wilson(right / m, m), binomtest(right, m).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_macro_f1_of_a_resample_is_that_of_its_pictures(answers):
    p, labels = answers
    predicted = p.argmax(axis=1)
    right = (predicted == labels).astype(float)
    columns = np.column_stack([right, right, right])
    means, f1 = _resampled(columns, labels, [predicted], 4, 3, seed=5)
    rng = np.random.default_rng(5)
    for r in range(3):
        rows = rng.integers(200, size=200)
        assert means[r, 0] == pytest.approx(right[rows].mean())
        assert f1[r, 0] == pytest.approx(f1_score(labels[rows], predicted[rows], average="macro"))


def test_the_interval_of_a_mean_is_that_of_the_central_limit(scored, answers):
    p, labels = answers
    found = figures({"a": scored(p, labels)})["a"]
    losses = -np.log(p[np.arange(200), labels])
    half = 1.96 * losses.std() / np.sqrt(200)
    assert found.log_loss.value == pytest.approx(losses.mean())
    assert (found.log_loss.low, found.log_loss.high) == pytest.approx(
        (losses.mean() - half, losses.mean() + half), abs=0.1 * half
    )
    assert found.macro_f1.low < found.macro_f1.value < found.macro_f1.high
    assert found.ahead is None


def test_differences_are_paired(scored, answers):
    p, labels = answers
    worse = p.copy()
    right = np.flatnonzero(p.argmax(axis=1) == labels)[:20]
    worse[right] = np.roll(p[right], 1, axis=1)  # twenty more mistakes, none less
    found = figures({"a": scored(p, labels), "same": scored(p, labels), "worse": scored(worse, labels)})
    assert (found["same"].ahead.value, found["same"].ahead.low, found["same"].ahead.high) == (0, 0, 0)
    ahead = found["worse"].ahead
    assert ahead.value == pytest.approx(0.1)
    # Of 20 in 200: an unpaired interval would be more than twice as wide.
    half = 1.96 * np.sqrt(0.1 * 0.9 / 200)
    assert (ahead.low, ahead.high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.012)


def test_all_right_is_not_certain(scored):
    found = figures({"a": scored(np.eye(2)[[0, 1, 1]] * 0.98 + 0.01, np.array([0, 1, 1]))})["a"]
    assert found.accuracy.high == 1 and found.accuracy.low < 0.5
    assert (found.macro_f1.low, found.macro_f1.high) == (1, 1)
