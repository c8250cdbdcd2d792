"""Classifiers with the tiny encoder."""

from functools import cache

import pytest

from clipadapter import FewShotClassifier
from clipadapter.encoders import create_encoder
from clipadapter.heads import create_head

from .coloured_squares import squares
from .golden_figures import golden, write_clip


@pytest.fixture
def tiny(opened):
    return opened("tiny")


@pytest.fixture
def model(tiny, create_fast):
    """A function that makes a classifier with the tiny encoder; without a head, with that of `create_fast`."""
    return lambda head=None, **params: FewShotClassifier(
        tiny, create_fast() if head is None else head, **{"cache": None, **params}
    )


@pytest.fixture(scope="session")
def fitted_to_colours(opened, tmp_path_factory):
    """A function that fits a classifier to coloured squares, once for each method that tunes the towers.

    Prompts can't change what a tower ignores: they are put into a tiny CLIP whose random weights are large.
    """

    @cache
    def fit(method):
        if method in ("maple", "prompt-src"):
            encoder = create_encoder(write_clip(golden("maple")[1], tmp_path_factory.mktemp("expressive") / "clip"))
            head = create_head(method, lr=0.03, epochs=10, checkpoint=None)
        else:
            encoder, head = opened("tiny"), create_head(method, lr=0.03, steps=100)
        before = {name: value.clone() for name, value in encoder._model.state_dict().items()}
        fitted = FewShotClassifier(encoder, head, cache=None).fit(*squares())
        return encoder, before, fitted

    return fit
