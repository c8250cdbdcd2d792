"""A fitted model of three colours."""

import pytest

from clipadapter import FewShotClassifier

from .colours import squares


@pytest.fixture(scope="module")
def fitted():
    return FewShotClassifier("toy", "linear-probe", cache=None).fit(*squares())
