import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipadapter.errors import InputError
from clipadapter.studio import margins, suggest


def by_hand(features, doubt, count, known):
    """The rule of the docstring in plain loops."""
    unit = [np.array(row) / np.linalg.norm(row) for row in features]
    centres = [np.array(row) / np.linalg.norm(row) for row in known]
    taken = []
    while len(taken) < min(count, len(unit)):
        worth = {}
        for i, row in enumerate(unit):
            if i not in taken:
                distance = min((np.linalg.norm(row - other) for other in centres), default=2.0)
                worth[i] = doubt[i] * distance
        best = max(worth, key=lambda i: (round(worth[i], 9), -i))
        taken.append(best)
        centres.append(unit[best])
    return taken


@given(st.integers(1, 12), st.integers(0, 4), st.integers(1, 6), st.integers(0, 10_000))
def test_it_is_the_greedy_rule(u, k, count, seed):
    rng = np.random.default_rng(seed)
    features, known, doubt = rng.standard_normal((u, 3)), rng.standard_normal((k, 3)), rng.random(u)
    assert suggest(features, doubt, count, known) == by_hand(features, doubt, count, known)


def test_the_first_is_the_most_doubtful_if_nothing_is_known():
    assert suggest(np.eye(3), [0.1, 0.9, 0.5], 3) == [1, 2, 0]


def test_no_two_alike_come_together():
    features = [[1, 0], [1, 0.001], [1, 0.002], [0, 1]]
    assert suggest(features, [1.0, 0.99, 0.98, 0.2], 2) == [0, 3]


def test_what_is_labelled_already_is_not_asked_for():
    assert suggest([[1, 0], [0, 1]], [1.0, 0.5], 1, known=[[2, 0]]) == [1]


def test_each_row_is_taken_once_even_if_all_are_equal():
    assert sorted(suggest(np.ones((5, 2)), np.ones(5), 9)) == [0, 1, 2, 3, 4]
    assert sorted(suggest(np.ones((3, 2)), np.zeros(3), 2, np.ones((1, 2)))) == [0, 1]
    assert suggest(np.empty((0, 4)), [], 8) == []


@pytest.mark.parametrize("doubt", [[1.0], [1.0, -0.1], [np.nan, 1.0]])
def test_weights_that_are_none_are_refused(doubt):
    with pytest.raises(InputError, match="2 finite weights"):
        suggest(np.eye(2), doubt)


def test_margins_are_best_less_second_best():
    np.testing.assert_allclose(margins([[0.2, 0.5, 0.3], [1, 0, 0]]), [0.2, 1.0])
