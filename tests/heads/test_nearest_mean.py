import numpy as np
import pytest

from clipadapter.heads import TextFeatures
from clipadapter.heads.nearest_mean import NearestMean
from clipadapter.heads.prototype import Prototype
from clipadapter.heads.zero_shot import ZeroShot
from clipadapter.testing import toy_features
from clipadapter.utils.functional import ABSENT_LOGIT


def test_where_every_class_has_shots_it_is_prototype_without_text():
    features, y, text = toy_features((4, 1, 2))
    expected = Prototype(mix=0.0).fit(features, y, text=text).logits(features)
    np.testing.assert_allclose(NearestMean().fit(features, y, text=text).logits(features), expected, atol=1e-5)


def test_a_class_without_a_shot_is_as_likely_as_zero_shot_says_and_the_others_share_the_rest():
    features, y, text = toy_features((4, 0, 2))
    Q = toy_features(seed=1)[0]
    head = NearestMean().fit(features, y, text=text)
    found, zero_shot = head.predict_proba(Q), ZeroShot().fit(features, y, text=text).predict_proba(Q)
    np.testing.assert_allclose(found[:, 1], zero_shot[:, 1], rtol=1e-4)
    alone = TextFeatures(["cat", "owl"], text.embeddings[[0, 2]], text.logit_scale)
    share = NearestMean().fit(features, y, text=alone).predict_proba(Q)
    np.testing.assert_allclose(found[:, [0, 2]], (1 - zero_shot[:, 1:2]) * share, rtol=1e-4)
    assert (head.predict(Q)[4:8] == "dog").all()


@pytest.mark.parametrize("told", ["nothing", "of others", "of the new class only"])
def test_a_class_without_a_shot_is_never_answered_if_text_can_not_weigh_it(told):
    features, y, text = toy_features((4, 0, 4))
    lacking = {"nothing": [], "of others": [1], "of the new class only": [0, 2]}[told]
    rows = np.where(np.isin(np.arange(3), lacking)[:, None], np.nan, text.embeddings)
    head = NearestMean()
    if told == "nothing":
        head.partial_fit(features, y, classes=list(text.labels))
    else:
        head.fit(features, y, text=TextFeatures(text.labels, rows, text.logit_scale))
    assert (head.logits(features)[:, list(head.classes_).index("dog")] == ABSENT_LOGIT).all()
    assert (head.predict(features) == y).all()


def test_memory_is_a_sum_a_class_however_many_pictures_there_were():
    def numbers(n):
        features, y, _ = toy_features((n, n, n))
        return sum(value.size for value in NearestMean().fit(features, y).state().values())

    assert numbers(1) == numbers(200) == 2 * 3 * 16 + 3 + 1
