from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from clipadapter.errors import InputError
from clipadapter.features import FeatureSet

X = np.arange(12, dtype=np.float64).reshape(3, 2, 2)
Y = ("cat", "dog", "cat")


def test_take_keeps_the_order_of_the_rows():
    features = FeatureSet(X, Y, ("dog", "cat", "emu"), {"encoder": "toy"})
    taken = features.take(np.array([2, 1, 2]))
    np.testing.assert_array_equal(taken.X, [X[2], X[1], X[2]])
    assert taken.y == ("cat", "dog", "cat")
    assert taken.class_names == ("dog", "cat", "emu")
    assert taken.provenance == {"encoder": "toy"}
    assert (len(features), len(taken), len(features.take([]))) == (3, 3, 0)


def test_plain_is_view_zero():
    np.testing.assert_array_equal(FeatureSet(X, Y, ("cat", "dog")).plain, [[0, 1], [4, 5], [8, 9]])
    np.testing.assert_array_equal(FeatureSet(X[:, 1], Y, ("cat", "dog")).plain, [[2, 3], [6, 7], [10, 11]])


def test_it_is_float32_and_frozen():
    provenance = {"seed": 1}
    features = FeatureSet(X, list(Y), ["cat", "dog"], provenance)
    provenance["seed"] = 2
    assert features.X.dtype == np.float32
    assert (features.y, features.class_names, features.provenance) == (Y, ("cat", "dog"), {"seed": 1})
    with pytest.raises(FrozenInstanceError):
        features.y = ()
    with pytest.raises(TypeError):
        features.provenance["seed"] = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((X[0, 0], Y, ("cat", "dog")), r"shape \(n, d\) or \(n, views, d\), but have \(2,\)"),
        ((X[:, :0], Y, ("cat", "dog")), r"but have \(3, 0, 2\)"),
        ((X, Y[:2], ("cat", "dog")), "3 features but 2 labels"),
        ((X, Y, ("cat", "dog", "cat")), "class names must differ"),
        ((X, Y, ("cat", "emu")), "no class: dog; classes: cat, emu"),
        ((np.where(X == 5, np.nan, X), Y, ("cat", "dog")), "1 of 3 features are not finite, the first in row 1"),
        ((np.where(X > 7, np.inf, X), Y, ("cat", "dog")), "1 of 3 features are not finite, the first in row 2"),
    ],
)
def test_arguments_that_do_not_match_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        FeatureSet(*values)


@pytest.mark.parametrize("rows", [[3], [-1], [0, 7]])
def test_a_row_that_does_not_exist_is_refused(rows):
    with pytest.raises(InputError, match="rows must be 0 to 2"):
        FeatureSet(X, Y, ("cat", "dog")).take(rows)
