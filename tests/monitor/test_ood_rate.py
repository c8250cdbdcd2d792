"""The test of the rate of pictures of none of the classes, compared with scipy and with simulated scores."""

import numpy as np
import pytest
from scipy.stats import fisher_exact

from clipadapter.monitor import holm
from clipadapter.monitor.ood_rate import fisher_p_value


@pytest.mark.parametrize(
    ("rejected", "m", "reference_rejected", "n"), [(5, 50, 2, 80), (0, 50, 4, 80), (30, 90, 4, 80), (3, 3, 0, 1)]
)
def test_the_p_value_is_that_of_fishers_test(rejected, m, reference_rejected, n):
    table = [[rejected, m - rejected], [reference_rejected, n - reference_rejected]]
    expected = fisher_exact(table, alternative="greater").pvalue
    assert fisher_p_value(rejected, m, reference_rejected, n) == pytest.approx(expected)


def test_false_alarms_are_rare_if_the_threshold_is_a_score_of_the_reference():
    rng, p_values = np.random.default_rng(0), []
    for _ in range(2000):
        shots, stream = rng.normal(size=40), rng.normal(size=100)
        threshold = np.sort(shots)[38]  # one of 40 is above it, for a rate of 5 % of 41
        p_values.append(fisher_p_value(int((stream > threshold).sum()), 100, 1, 40))
    for alpha in (0.01, 0.05, 0.2):
        assert np.mean(np.array(p_values) <= alpha) <= alpha + 3.3 * np.sqrt(alpha * (1 - alpha) / 2000)


def test_corrected_p_values_keep_their_order():
    assert holm([]) == []
    assert holm([0.001, 0.02, 0.9]) == pytest.approx([0.003, 0.04, 0.9])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
