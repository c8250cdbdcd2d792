"""Sets drawn by odds, beside the list of all sets."""

from itertools import combinations

import numpy as np
import pytest

from clipadapter.errors import InputError
from clipadapter.monitor.permutations import draw_groups


@pytest.mark.parametrize("odds", [[1, 1, 1, 1, 1], [1, 2, 3, 4, 5], [0.001, 1, 1, 1, 1000]])
@pytest.mark.parametrize("m", [1, 2, 4])
def test_each_set_is_as_frequent_as_the_product_of_its_odds(odds, m):
    drawn = draw_groups(odds, m, 20_000, np.random.default_rng(0))
    products = {group: np.prod([odds[i] for i in group]) for group in combinations(range(5), m)}
    for group, product in products.items():
        inside = np.isin(np.arange(5), group)
        expected = product / sum(products.values())
        assert abs((drawn == inside).all(axis=1).mean() - expected) < 0.015  # 4 sd


def test_every_set_has_the_size():
    drawn = draw_groups(np.linspace(0.1, 9, 300), 120, 50, np.random.default_rng(0))
    assert (drawn.sum(axis=1) == 120).all()


def test_none_and_all_are_sets_too():
    rng = np.random.default_rng(0)
    assert not draw_groups([1, 2], 0, 3, rng).any()
    assert draw_groups([1, 2], 2, 3, rng).all()


def test_what_are_no_odds_is_told():
    for odds, m in (([1, 0], 1), ([1, np.inf], 1), ([1, 1], 3), ([[1]], 1)):
        with pytest.raises(InputError, match="give one positive odds a picture"):
            draw_groups(odds, m, 1, np.random.default_rng(0))
