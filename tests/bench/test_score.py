import math

import numpy as np
import pytest

from clipadapter.classifier.evaluation import score
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head
from clipadapter.heads.zero_shot import ZeroShot
from clipadapter.uncertainty import Calibrator


class BrokenHead(Head):
    def _fit(self, shots):
        self.c_ = shots.n_classes

    def _logits(self, X):
        return X.new_full((len(X), self.c_), float("nan"))


@pytest.fixture
def head(text):
    """Logits of (1, 0): 10 and 0."""
    return ZeroShot().fit([[1.0, 0.0]], ["cat"], text=text)


def test_the_temperature_divides_the_logits_and_views_beyond_the_plain_one_are_not_looked_at(head):
    test = FeatureSet([[1.0, 0.0]], ("cat",), ("cat", "dog"))
    loss = score(head, test, Calibrator(temperature=5.0)).evaluation.metrics["log_loss"]
    assert loss == pytest.approx(math.log(1 + math.exp(-2.0)))
    views = FeatureSet([[[1.0, 0.0], [0.0, 1.0]]], ("cat",), ("cat", "dog"))
    assert score(head, views).evaluation.metrics["accuracy"] == 1.0


def test_what_cannot_be_scored_is_refused(head, text, test_part):
    with pytest.raises(InputError, match="a label that is no class of the model: cow; known: cat, dog"):
        score(head, FeatureSet([[1.0, 0.0]], ("cow",), ("cow", "dog")))
    with pytest.raises(InputError, match="there are no test pictures"):
        score(head, FeatureSet(np.empty((0, 2)), (), ("cat", "dog")))
    with pytest.raises(InputError, match="BrokenHead gives logits that are not finite"):
        score(BrokenHead().fit([[1.0, 0.0]], ["cat"], text=text), test_part)
