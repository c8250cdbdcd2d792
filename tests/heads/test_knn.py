import math

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from clipadapter.heads import TextFeatures
from clipadapter.heads.knn import MIN_PROBABILITY, Knn
from clipadapter.testing import toy_features

# From the query (1, 0): cosines 1, 0.6 and 0.
X = np.array([[2.0, 0.0], [3.0, 4.0], [0.0, 1.0]])


def test_text_is_mixed_into_the_probabilities():
    text = TextFeatures(["a", "b"], np.array([[1.0, 0.0], [0.6, 0.8]]), logit_scale=5.0)
    found = Knn(temperature=0.5, mix=0.25).fit(X, ["a", "b", "b"], text=text).predict_proba([[1.0, 0.0]])[0]
    votes = [math.exp(cosine / 0.5) for cosine in (1.0, 0.6, 0.0)]
    zero_shot = math.exp(5.0) / (math.exp(5.0) + math.exp(3.0))
    assert found[0] == pytest.approx(0.75 * votes[0] / sum(votes) + 0.25 * zero_shot, rel=1e-5)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_equals_scikit_learn_with_the_same_weights(k):
    shots, y, _ = toy_features((6, 5, 4), noise=3.0)
    queries, _, _ = toy_features((6, 5, 4), noise=3.0, seed=1)
    shots, queries = (a.astype(float) / np.linalg.norm(a, axis=1, keepdims=True) for a in (shots, queries))
    # Between unit vectors the cosine is 1 less half the squared distance.
    peer = KNeighborsClassifier(k, weights=lambda distance: np.exp(-(distance**2) / 2 / 0.1)).fit(shots, y)
    found = Knn(k=k, temperature=0.1).fit(shots, y).predict_proba(queries)
    np.testing.assert_allclose(found, peer.predict_proba(queries), atol=5 * MIN_PROBABILITY)
