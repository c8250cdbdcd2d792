import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipadapter.errors import InputError
from clipadapter.studio.selection import select_for_labelling


def by_hand(features, uncertainty, count, labelled):
    """The rule of the docstring in plain loops."""
    unit = [np.array(row) / np.linalg.norm(row) for row in features]
    centres = [np.array(row) / np.linalg.norm(row) for row in labelled]
    selected = []
    while len(selected) < min(count, len(unit)):
        score = {}
        for i, row in enumerate(unit):
            if i not in selected:
                distance = min((np.linalg.norm(row - other) for other in centres), default=2.0)
                score[i] = uncertainty[i] * distance
        best = max(score, key=lambda i: (round(score[i], 9), -i))
        selected.append(best)
        centres.append(unit[best])
    return selected


@given(st.integers(1, 12), st.integers(0, 4), st.integers(1, 6), st.integers(0, 10_000))
def test_it_equals_the_greedy_rule_in_plain_loops(u, k, count, seed):
    rng = np.random.default_rng(seed)
    features, labelled, uncertainty = rng.standard_normal((u, 3)), rng.standard_normal((k, 3)), rng.random(u)
    given_all = (features, uncertainty, count, labelled)
    assert select_for_labelling(*given_all) == by_hand(*given_all)


def test_each_row_is_selected_once_even_if_all_are_equal():
    assert sorted(select_for_labelling(np.ones((5, 2)), np.ones(5), 9)) == [0, 1, 2, 3, 4]
    assert sorted(select_for_labelling(np.ones((3, 2)), np.zeros(3), 2, np.ones((1, 2)))) == [0, 1]
    assert select_for_labelling(np.empty((0, 4)), [], 8) == []


@pytest.mark.parametrize("uncertainty", [[1.0], [1.0, -0.1], [np.nan, 1.0]])
def test_invalid_weights_are_an_error(uncertainty):
    with pytest.raises(InputError, match="2 finite weights"):
        select_for_labelling(np.eye(2), uncertainty)
