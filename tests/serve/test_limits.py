"""Values of limits that are refused."""

import pytest

from clipadapter.errors import InputError
from clipadapter.serve import Limits


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue": 0},
        {"deadline": 0},
        {"max_wait": -1},
        {"max_pictures": 300},
        {"deadline": float("nan")},
        {"formats": ()},
        {"formats": ("jpg",)},
    ],
)
def test_invalid_limits_are_refused(wrong):
    with pytest.raises(InputError):
        Limits(**wrong)
