import random

import numpy as np
import pytest

from clipadapter.data import draw_shots
from clipadapter.data.splits import hold_back
from clipadapter.errors import InputError


def dassl(items, shots):
    """Dassl's own steps, on the global stream: group in order of first appearance, sample, or take all."""
    groups = {}
    for item, label in enumerate(items):
        groups.setdefault(label, []).append(item)
    drawn = []
    for group in groups.values():
        drawn.extend(random.sample(group, shots) if len(group) >= shots else group)
    return drawn


LABELS = ["dog"] * 7 + ["cat"] * 30 + ["eel"] * 3 + ["dog"] * 5 + ["ant"]


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_draw_is_dassls(shots, seed):
    shuffled = random.Random(9).sample(LABELS, len(LABELS))
    state = random.getstate()
    for labels in (LABELS, shuffled):
        random.seed(seed)
        assert draw_shots(labels, shots, seed) == dassl(labels, shots)
    random.setstate(state)


def test_global_random_state_is_neither_read_nor_changed():
    random.seed(5)
    before, rows = random.getstate(), draw_shots(LABELS, 4, seed=1)
    assert random.getstate() == before
    random.seed(6)
    assert draw_shots(LABELS, 4, seed=1) == rows != draw_shots(LABELS, 4, seed=2)
    assert draw_shots(np.array(LABELS), 4, seed=3) == draw_shots(LABELS, 4, seed=3)


def test_a_small_class_gives_all_it_has_in_order_and_bad_counts_are_refused():
    rows = draw_shots(LABELS, 16, seed=1)
    assert [row for row in rows if LABELS[row] == "eel"] == [37, 38, 39]
    assert len(rows) == len(set(rows)) == 12 + 16 + 3 + 1
    with pytest.raises(InputError, match="shots must be at least 1, got 0"):
        draw_shots(LABELS, 0)
    with pytest.raises(InputError, match="no labels"):
        draw_shots([], 1)


@pytest.mark.parametrize(
    ("fraction", "counts"), [(0.2, {"dog": 2, "cat": 6, "eel": 1}), (0.99, {"dog": 11, "cat": 29, "eel": 2})]
)
def test_held_back_rows_are_a_share_of_each_class_that_keeps_a_row(fraction, counts):
    train, test = hold_back(LABELS, fraction, seed=1)
    assert sorted(train + test) == list(range(len(LABELS)))
    assert {name: sum(LABELS[row] == name for row in test) for name in counts} == counts
    assert {LABELS[row] for row in train} == set(LABELS)
    assert hold_back(LABELS, fraction, seed=1) == (train, test) != hold_back(LABELS, fraction, seed=2)
