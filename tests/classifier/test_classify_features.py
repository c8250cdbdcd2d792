"""`classify_features` and `iter_predictions` give what `classify` gives."""

import numpy as np
import pytest

from clipadapter import FeatureSet, FewShotClassifier
from clipadapter.classifier import answers
from clipadapter.testing import toy_features
from clipadapter.uncertainty import UncertaintyOptions

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220)}
SETS = [("red",), ("green",), ("blue",), ("red", "green"), ("green", "blue")]


def noisy(names, seed=0):
    """Pictures with a stripe of each colour that is named."""
    rng, pictures = np.random.default_rng(seed), []
    for labels in names:
        stripes = [np.full((16, 16 // len(labels), 3), COLOURS[label]) for label in labels]
        pixels = np.concatenate(stripes, axis=1)
        pictures.append(np.clip(pixels + rng.integers(-60, 61, pixels.shape), 0, 255).astype(np.uint8))
    return pictures


@pytest.fixture(scope="module")
def model():
    labels = [name for name in COLOURS for _ in range(5)]
    options = UncertaintyOptions(sets="cv+", coverage=0.8)
    classifier = FewShotClassifier("toy", "linear-probe", cache=None, uncertainty=options, batch_size=4)
    return classifier.fit(noisy([(label,) for label in labels]), labels)


@pytest.fixture(scope="module")
def several():
    classifier = FewShotClassifier("toy", "linear-probe", cache=None, batch_size=4)
    labels = SETS * 4
    return classifier.fit(noisy(labels), labels)


def near(found, expected):
    for one, other in zip(found, expected, strict=True):
        for name in ("source", "label", "nearest", "labels", "error"):
            assert getattr(one, name) == getattr(other, name)
        assert one.probability == pytest.approx(other.probability, rel=1e-5)
        assert [name for name, _ in one.top] == [name for name, _ in other.top]
        assert dict(one.top) == pytest.approx(dict(other.top), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top": 1, "coverage": None},
        {"top": 2, "reject": 0.3},
        {"coverage": None, "costs": [[0, 1, 1], [1, 0, 1], [50, 50, 0]]},
        {"adapt": "tda", "reject": 0.3},
    ],
    ids=str,
)
def test_features_and_streams_are_answered_as_pictures_are(options, model, monkeypatch):
    monkeypatch.setattr(answers, "ROWS_PER_BLOCK", 7)
    pictures = noisy([(name,) for name in COLOURS for _ in range(8)], seed=1)
    pictures += [np.full((16, 16, 3), grey, np.uint8) for grey in (10, 200)]
    options = {**options, "costs": np.array(options["costs"])} if "costs" in options else options
    # In one batch, by one object for each picture.
    features = model._reader.features(pictures)
    decision = {name: value for name, value in options.items() if name not in ("top", "adapt")}
    whole = answers.answer_features(model._to_model(), features[:, None], decision, options.get("adapt"))
    sources = [prediction.source for prediction in model.classify(pictures, **options)]
    top = options.get("top", 5)
    expected = [whole.prediction(i, source, model.class_names_, top) for i, source in enumerate(sources)]
    near(model.classify_features(features, **options).predictions(sources), expected)
    near(model.iter_predictions(iter(pictures), **options), expected)


def test_features_of_multilabel_models_too(several):
    pictures = noisy(SETS * 2, seed=1)
    expected = several.classify(pictures)
    assert len({prediction.labels for prediction in expected}) > 1
    sources = [prediction.source for prediction in expected]
    near(several.classify_features(several._reader.features(pictures)).predictions(sources), expected)


def test_no_features_give_no_predictions(model):
    assert len(model.classify_features(np.zeros((0, model.encoder_.info.dim), np.float32))) == 0


def test_a_model_with_text_of_others_has_no_prompts_and_is_saved(tmp_path):
    X, y, text = toy_features(d=32)
    model = FewShotClassifier("toy", "zero-shot", cache=None).fit_features(FeatureSet(X, y, text.labels), text)
    assert model.prompts_ == {}
    model.save(tmp_path / "model")
    assert FewShotClassifier.load(tmp_path / "model").prompts_ == {}
