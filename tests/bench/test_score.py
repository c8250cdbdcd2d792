import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from clipadapter.classifier.evaluation import score
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures
from clipadapter.heads.linear_probe import LinearProbe
from clipadapter.heads.zero_shot import ZeroShot
from clipadapter.uncertainty import Calibrator

NAMES = ("ant", "bee", "cow", "dog")


class BrokenHead(Head):
    def _fit(self, shots):
        self.c_ = shots.n_classes

    def _logits(self, X):
        return X.new_full((len(X), self.c_), float("nan"))


@pytest.fixture
def problem():
    """Four overlapping clouds and a probe fitted to some of them; no test picture is a dog."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    y = np.repeat(NAMES, 5)
    X = np.repeat(centres, 5, axis=0) + rng.normal(size=(20, 6))
    head = LinearProbe().fit(X, y, text=TextFeatures(NAMES, centres))
    truth = tuple(np.array(NAMES)[rng.integers(0, 3, 60)])
    test = np.stack([centres[NAMES.index(name)] for name in truth]) + rng.normal(size=(60, 6))
    return head, FeatureSet(test, truth, NAMES)


def test_figures_are_those_of_scikit_learn(problem):
    head, test = problem
    result = score(head, test)
    predicted = head.predict(test.X)
    used = sorted({*test.y, *predicted})
    assert 0.3 < result.evaluation.metrics["accuracy"] < 1
    assert result.evaluation.metrics["accuracy"] == accuracy_score(test.y, predicted)
    assert result.evaluation.metrics["macro_f1"] == pytest.approx(
        f1_score(test.y, predicted, average="macro", labels=used)
    )
    assert result.evaluation.metrics["log_loss"] == pytest.approx(
        log_loss(test.y, head.predict_proba(test.X), labels=list(NAMES))
    )
    np.testing.assert_array_equal(result.evaluation.confusion, confusion_matrix(test.y, predicted, labels=list(NAMES)))


@pytest.fixture
def head(text):
    """Logits of (1, 0): 10 and 0."""
    return ZeroShot().fit([[1.0, 0.0]], ["cat"], text=text)


def test_the_temperature_divides_the_logits(head):
    test = FeatureSet([[1.0, 0.0]], ("cat",), ("cat", "dog"))
    loss = score(head, test, Calibrator(temperature=5.0)).evaluation.metrics["log_loss"]
    assert loss == pytest.approx(math.log(1 + math.exp(-2.0)))


def test_views_beyond_the_plain_one_are_not_looked_at(head):
    test = FeatureSet([[[1.0, 0.0], [0.0, 1.0]]], ("cat",), ("cat", "dog"))
    assert score(head, test).evaluation.metrics["accuracy"] == 1.0


def test_what_cannot_be_scored_is_refused(head, text, test_part):
    with pytest.raises(InputError, match="a label that is no class of the model: cow; known: cat, dog"):
        score(head, FeatureSet([[1.0, 0.0]], ("cow",), ("cow", "dog")))
    with pytest.raises(InputError, match="there are no test pictures"):
        score(head, FeatureSet(np.empty((0, 2)), (), ("cat", "dog")))
    with pytest.raises(InputError, match="BrokenHead gives logits that are not finite"):
        score(BrokenHead().fit([[1.0, 0.0]], ["cat"], text=text), test_part)
