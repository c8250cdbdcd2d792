"""Adaptation and views of predictions: off by default, and what they are when they are on."""

import functools

import numpy as np
import pytest

from clipadapter import FewShotClassifier
from clipadapter.adaptation import TdaCache, vote
from clipadapter.errors import InputError
from clipadapter.features import ViewSpec, extract
from clipadapter.uncertainty import UncertaintyOptions
from clipadapter.utils.prediction import softmax

from .squares import squares as all_squares

NAMES = ["blue", "green", "red"]
squares = functools.partial(all_squares, colours=dict(zip(NAMES, np.eye(3)[::-1] * 200, strict=True)), noise=120)


@pytest.fixture(scope="module")
def model():
    options = UncertaintyOptions(coverage=0.8)
    return FewShotClassifier(encoder="toy", head="linear-probe", cache=None, uncertainty=options).fit(*squares())


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (16, 16, 3)).astype(np.uint8) for _ in range(9)] + squares(each=3, seed=5)[0]


def probabilities(predictions):
    rows = [dict(one.top) for one in predictions]
    return np.array([[row[name] for name in NAMES] for row in rows])


def log_probabilities(model, features):
    return model.uncertainty_.calibrator.log_probabilities(model.head_.logits(features))


def test_adaptation_is_that_of_a_cache_on_calibrated_probabilities(model, stream):
    features = extract(model.encoder_, stream).features[:, 0]
    expected = softmax(TdaCache(3).adapt(features, log_probabilities(model, features)))
    found = model.classify(stream, 3, adapt="tda")
    np.testing.assert_allclose(probabilities(found), expected, rtol=1e-9)
    assert np.abs(expected - probabilities(model.classify(stream, 3))).max() > 0.005
    assert model.predict(stream, adapt="tda") == [one.label for one in found]


def test_a_cache_goes_on_from_call_to_call(model, stream):
    cache = TdaCache(3)
    parts = [*model.classify(stream[:5], 3, adapt=cache), *model.classify(stream[5:], 3, adapt=cache)]
    np.testing.assert_allclose(probabilities(parts), probabilities(model.classify(stream, 3, adapt="tda")), rtol=1e-6)


def test_an_unreadable_picture_is_not_in_the_stream(model, stream, tmp_path):
    mixed = [*stream[:4], tmp_path / "gone.png", *stream[4:]]
    found = model.classify(mixed, 3, adapt="tda")
    assert found[4].error is not None
    del found[4]
    np.testing.assert_allclose(probabilities(found), probabilities(model.classify(stream, 3, adapt="tda")))


def test_views_vote(model, stream):
    features = extract(model.encoder_, stream, views=ViewSpec(count=8)).features
    n, v, d = features.shape
    classes, expected = vote(log_probabilities(model, features.reshape(n * v, d)).reshape(n, v, 3))
    found = model.classify(stream, 3, views=8)
    np.testing.assert_allclose(probabilities(found), expected, rtol=1e-9)
    assert [one.label for one in found] == [NAMES[k] for k in classes]
    np.testing.assert_allclose([one.probability for one in found], expected[np.arange(n), classes], rtol=1e-9)
    assert model.classify(stream, 3, views=8) == found
    assert model.predict(stream[0], views=8) == [found[0].label]


def test_views_with_a_cache_are_averaged(model, stream):
    features = extract(model.encoder_, stream, views=ViewSpec(count=10)).features
    n, v, d = features.shape
    z = log_probabilities(model, features.reshape(n * v, d)).reshape(n, v, 3)
    expected = softmax(TdaCache(3).adapt(features, z))
    found = model.classify(stream, 3, views=10, adapt="tda")
    np.testing.assert_allclose(probabilities(found), expected, rtol=1e-9)


def test_sets_are_those_without_adaptation_and_the_class(model, stream):
    plain, adapted = model.classify(stream, 3), model.classify(stream, 3, adapt="tda")
    assert plain == model.classify(stream, 3, adapt=None, views=1)  # the default
    for one, other in zip(plain, adapted, strict=True):
        assert set(one.labels) - {one.label} <= set(other.labels) and other.label in other.labels


@pytest.mark.parametrize("views", [0, -1, 2.0, True])
def test_a_number_of_views_that_is_none_is_refused(model, stream, views):
    with pytest.raises(InputError, match="views of a prediction"):
        model.classify(stream, views=views)


def test_several_labels_per_picture_are_refused():
    images, labels = squares()
    several = [(label,) if i % 4 else (label, "red") for i, label in enumerate(labels)]
    model = FewShotClassifier(encoder="toy", head="linear-probe", cache=None).fit(images, several)
    for options in ({"adapt": "tda"}, {"views": 4}):
        with pytest.raises(InputError, match="multi-label"):
            model.classify(images[:2], **options)
