import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from clipadapter.heads.linear_probe import ABSENT, LinearProbe
from clipadapter.testing import toy_features


@pytest.mark.parametrize("input_norm", [True, False])
@pytest.mark.parametrize("d", [5, 64])
def test_equals_scikit_learn_on_the_same_features(input_norm, d):
    X, y, _ = toy_features((6, 6, 6), d=d, noise=2.0)
    rows = X.astype(float) / (np.linalg.norm(X, axis=1, keepdims=True) if input_norm else 1)
    expected = LogisticRegression(C=3.0, max_iter=5000, tol=1e-8).fit(rows, y)
    fitted = LinearProbe(C=3.0, input_norm=input_norm).fit(X.astype(float), y)
    np.testing.assert_allclose(fitted.predict_proba(X), expected.predict_proba(rows), atol=2e-3)


def test_two_classes_have_the_probabilities_of_scikit_learn():
    X, y, _ = toy_features((6, 6, 0), noise=2.0)
    expected = LogisticRegression(C=1.0).fit(X.astype(float), y)
    fitted = LinearProbe(C=1.0, input_norm=False).fit(X.astype(float), y)
    np.testing.assert_allclose(fitted.predict_proba(X), expected.predict_proba(X.astype(float)), atol=1e-3)


def test_auto_takes_a_weaker_penalty_for_clean_shots_than_for_noisy_ones():
    clean, noisy = (LinearProbe().fit(*toy_features((12, 12, 12), d=8, noise=noise)[:2]).C_ for noise in (0.1, 6.0))
    assert clean > noisy


def test_a_class_without_a_shot_is_never_predicted():
    X, y, text = toy_features((4, 0, 4))
    fitted = LinearProbe().fit(X, y, text=text)
    assert (fitted.logits(X)[:, 1] == ABSENT).all()
    assert set(fitted.predict(X)) == {"cat", "bird"}
