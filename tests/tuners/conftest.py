"""Classifiers with the tiny encoder."""

import pytest

from clipadapter import FewShotClassifier


@pytest.fixture
def tiny(opened):
    return opened("tiny")


@pytest.fixture
def model(tiny, create_fast):
    """A function that makes a classifier with the tiny encoder; without a head, with that of `create_fast`."""
    return lambda head=None, **params: FewShotClassifier(
        tiny, create_fast() if head is None else head, **{"cache": None, **params}
    )
