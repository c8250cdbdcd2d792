import numpy as np

from clipadapter.heads import TextFeatures
from clipadapter.heads.prototype import Prototype
from clipadapter.testing import toy_features
from clipadapter.utils.functional import ABSENT_LOGIT

# Two shots of a at right angles: their mean points at 45 degrees. The shot of b is longer, which must not matter.
X = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
TEXT = TextFeatures(["a", "b"], np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), logit_scale=10.0)


def test_logits_without_text_are_cosines_to_the_class_means():
    logits = Prototype().fit(X, ["a", "a", "b"]).logits([[2.0, 0.0, 0.0], [0.0, 3.0, 4.0]])
    np.testing.assert_allclose(logits, 100 * np.array([[np.sqrt(0.5), 0.0], [0.6 * np.sqrt(0.5), 0.8]]), rtol=1e-6)


def test_mix_weighs_the_text_and_a_class_without_a_shot_has_the_mean_of_the_prototypes():
    logits = Prototype(mix=0.25).fit(X, ["a", "a", "b"], text=TEXT).logits([[0.0, 3.0, 4.0]])
    means, text = np.array([0.6 * np.sqrt(0.5), 0.8]), np.array([0.0, 0.6])
    np.testing.assert_allclose(logits[0], 10 * (0.75 * means + 0.25 * text), rtol=1e-6)
    text = TextFeatures(["a", "b", "c"], np.eye(3), logit_scale=10.0)
    logits = Prototype(mix=0.5).fit(X, ["a", "a", "b"], text=text).logits([[0.0, 0.0, 1.0]])
    np.testing.assert_allclose(logits, [[0.0, 5.0, 10 * (0.5 * 1 + 0.5 * 0.5)]], atol=1e-6)
    features, y, text = toy_features((4, 0, 4))
    fitted = Prototype(mix=0.0).fit(features, y, text=text)
    assert (fitted.logits(features)[:, 1] < ABSENT_LOGIT / 2).all()  # it is never answered if text has no say
