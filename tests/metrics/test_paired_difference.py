import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from clipadapter.metrics.intervals import difference_on_pictures, paired_difference


def two_methods(n, seed=0, gain=0.02):
    """Accuracies by draw: the draws differ much, the methods little."""
    rng = np.random.default_rng(seed)
    draws = [("pets", 1, i) for i in range(n)]
    b = {draw: float(value) for draw, value in zip(draws, rng.normal(0.7, 0.1, n), strict=True)}
    return {draw: value + float(rng.normal(gain, 0.03)) for draw, value in b.items()}, b


@pytest.mark.parametrize("n", [5, 20])
def test_the_interval_is_that_of_scipy(n):
    a, b = two_methods(n)
    differences = np.array([a[draw] - b[draw] for draw in a])
    theirs = bootstrap((differences,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    difference = paired_difference(a, b)
    assert difference.mean == pytest.approx(differences.mean())
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert difference.interval == pytest.approx(tuple(theirs.confidence_interval), abs=0.03 * width)
    assert difference.pairs == n


def test_three_pairs_have_27_resamples_that_can_be_listed():
    """Differences 1, 2, 6: one resample in 27 is all 1 and one all 6, so 2.5 % and 97.5 % lie at the ends."""
    difference = paired_difference({1: 1.0, 2: 2.0, 3: 6.0}, {1: 0.0, 2: 0.0, 3: 0.0})
    assert difference.mean == 3.0
    assert difference.interval == (1.0, 6.0)


def test_groups_count_the_same_and_are_resampled_each_for_itself():
    """Constant within each set: 0.1 over three draws, 0.3 over six. No resample can differ from the mean, 0.2."""
    sets = {("a", i): 0.1 for i in range(3)} | {("b", i): 0.3 for i in range(6)}
    difference = paired_difference(sets, dict.fromkeys(sets, 0.0), group=lambda draw: draw[0])
    assert difference.mean == pytest.approx(0.2)
    assert difference.interval == pytest.approx((0.2, 0.2))
    assert difference.pairs == 9
    together = paired_difference(sets, dict.fromkeys(sets, 0.0))
    assert together.mean == pytest.approx(2.1 / 9)
    assert together.interval[1] - together.interval[0] > 0.05


def test_fewer_than_three_pairs_in_a_group_give_no_interval():
    for n in (1, 2):
        a, b = two_methods(n)
        difference = paired_difference(a, b)
        assert (difference.interval, difference.pairs) == (None, n)
        assert difference.mean == pytest.approx(np.mean([a[draw] - b[draw] for draw in a]))
    a, b = two_methods(6)
    difference = paired_difference(a, b, group=dict(zip(a, "xxxxyy", strict=True)).get)
    assert (difference.interval, difference.pairs) == (None, 6)


def test_draws_are_paired_by_key_and_those_of_one_method_are_left_out():
    a, b = two_methods(8)
    expected = paired_difference(a, b)
    assert paired_difference({**a, "another": 0.9}, dict(reversed({**b, "third": 0.1}.items()))) == expected


def test_methods_without_a_common_draw_have_no_difference():
    assert paired_difference({1: 0.5}, {2: 0.5, 3: 0.5}) is None
    assert paired_difference({}, {}) is None


def test_the_margin_on_pictures_holds_in_95_of_100_cases():
    """Two methods whose answers depend on the picture, which they share, and on the draw; true difference 6 points."""
    rng, covered, widths = np.random.default_rng(0), 0, []
    for _ in range(300):
        difficulty, luck = rng.normal(size=(1, 150)), rng.normal(0, 0.1, (3, 1))
        right = [difficulty + luck + 0.3 * rng.normal(size=(3, 150)) < level for level in (0.70, 0.52)]
        a, b = ({seed: rows[seed] for seed in range(3)} for rows in right)
        mean, error = difference_on_pictures(a, b)
        scale = np.hypot(1, np.hypot(0.1, 0.3))
        truth = norm.cdf(0.70 / scale) - norm.cdf(0.52 / scale)
        covered += abs(mean - truth) <= 2 * error
        widths.append(2 * error)
    assert 0.92 * 300 <= covered <= 0.995 * 300
    assert np.mean(widths) < 0.05  # 10 points with own pictures for each


def test_classes_count_the_same_if_they_are_given():
    """Differences 1 and 0 in a class of two pictures, 0, 0, 0, 1 in one of four: means 0.5 and 0.25."""
    right = np.array([True, True, True, True, True, True])
    other = np.array([False, True, True, True, True, False])
    mean, error = difference_on_pictures({1: right}, {1: other, 2: right}, list("aabbbb"))
    assert mean == pytest.approx((0.5 + 0.25) / 2)
    assert error == pytest.approx(np.sqrt(0.5 / 2 + 0.25 / 4) / 2)
    assert difference_on_pictures({1: right}, {2: right}) is None
