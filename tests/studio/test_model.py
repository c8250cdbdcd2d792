from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipadapter.classifier import FewShotClassifier
from clipadapter.data import load_dataset
from clipadapter.doctor import diagnose
from clipadapter.encoders import create_encoder
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures, create_head
from clipadapter.metrics import AccuracyForecast
from clipadapter.studio.model import CurvePoint, LearningCurve, fit_project_model, learning_curve
from clipadapter.studio.panels import plot_curve


@pytest.fixture
def scene():
    """Three classes, six shots each, well apart; class text that takes the third for the first."""
    rng = np.random.default_rng(0)
    names = ["a", "b", "c"]
    means = np.eye(3, 32, dtype=np.float32)
    labels = np.repeat(names, 6)
    X = np.repeat(means, 6, axis=0) + 0.1 * rng.standard_normal((18, 32)).astype(np.float32)
    text = means.copy()
    text[2] = [0, 0, 0.2, 1, *[0] * 28]
    return X.astype(np.float32), labels.tolist(), TextFeatures(names, text, 20.0)


def shots_of(text, X, labels):
    """Pictures whose keys are their numbers."""
    return FeatureSet(X, tuple(labels), tuple(text.labels), {"sources": [str(i) for i in range(len(X))]})


def fit(scene, rows=None, head="tip-adapter"):
    X, labels, text = scene
    rows = np.arange(len(X)) if rows is None else np.array(rows, int)
    classifier = FewShotClassifier(create_encoder("toy"), head, cache=None)
    return fit_project_model(classifier, text, shots_of(text, X[rows], [labels[i] for i in rows]))


def curve_of(model, X=None, labels=()):
    """Its learning curve, on test pictures if there are any."""
    return learning_curve(model, shots_of(model.text, np.empty((0, 32)) if X is None else X, labels))


def test_without_labelled_pictures_the_class_names_predict(scene):
    X, _, text = scene
    model = fit(scene, [])
    assert model.classifier is None and model.shot_count == 0
    assert model.zero_shot_accuracy is None and model.held_out is None
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    best = (unit @ text.embeddings.T).argmax(axis=1)
    p = model.probabilities(X)
    np.testing.assert_array_equal(p.argmax(axis=1), best)
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_accuracies_are_means_over_classes(scene):
    X, labels, text = scene
    rows = [*range(12), 12, 13]  # six of a and b, two of c
    model = fit(scene, rows)
    unit = X[rows] / np.linalg.norm(X[rows], axis=1, keepdims=True)
    called = np.array(text.labels)[(unit @ text.embeddings.T).argmax(axis=1)]
    shares = [np.mean([c == t for c, t in zip(called, np.array(labels)[rows], strict=True) if t == n]) for n in "abc"]
    assert model.zero_shot_accuracy == pytest.approx(np.mean(shares))
    assert model.held_out.accuracy == pytest.approx(1.0) and model.shot_count == 14


def test_a_label_that_held_out_pictures_contradict_is_doubted(scene):
    X, labels, text = scene
    wrong = ["b", *labels[1:]]
    classifier = FewShotClassifier(create_encoder("toy"), cache=None)
    model = fit_project_model(classifier, text, shots_of(text, X, wrong))
    assert [*model.doubts] == ["0"] and model.doubts["0"].startswith("It looks like “a” (")


def test_the_labels_that_the_doctor_doubts_are_doubted(tmp_path):
    pytest.importorskip("imagehash"), pytest.importorskip("cleanlab")
    rng = np.random.default_rng(0)
    for name, channel in (("red", 0), ("green", 1), ("blue", 2)):
        (tmp_path / name).mkdir()
        for i in range(8):
            pixels = rng.integers(0, 60, (12, 12, 3), np.uint8)
            pixels[:, :, channel] += 180
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    (tmp_path / "red/0.png").rename(tmp_path / "blue/moved.png")
    (tmp_path / "green/0.png").rename(tmp_path / "red/moved.png")
    dataset, classifier = load_dataset(tmp_path), FewShotClassifier(create_encoder("toy"), cache=None)
    found = diagnose(dataset, classifier).findings
    features = classifier.extract_features(dataset.paths, dataset.labels, dataset.class_names, views=1)
    keys = [path.relative_to(tmp_path).as_posix() for path in dataset.paths]
    shots = replace(features, provenance={**features.provenance, "sources": keys})
    model = fit_project_model(classifier, classifier.encode_classes(dataset.class_names), shots)
    assert {*model.doubts} == {each.pictures[0].name for each in found if each.kind.endswith("-label")}
    assert {*model.doubts} == {"blue/moved.png", "red/moved.png"}


def test_classes_in_an_order_that_is_not_sorted_keep_their_columns(scene):
    X, labels, text = scene
    order = [2, 0, 1]
    turned = TextFeatures([text.labels[i] for i in order], text.embeddings[order], text.logit_scale)
    for rows in ([], None):
        model, expected = fit((X, labels, turned), rows, "auto"), fit(scene, rows, "auto")
        assert model.text.labels == ("c", "a", "b")
        p, wanted = model.probabilities(X), expected.probabilities(X)[:, order]
        np.testing.assert_array_equal(p.argmax(axis=1), wanted.argmax(axis=1))
    assert model.zero_shot_accuracy == expected.zero_shot_accuracy
    assert model.held_out.accuracy == expected.held_out.accuracy
    assert min(point.accuracy for point in curve_of(model).points) > 0.9


def test_the_curve_is_measured_on_pictures_that_each_fit_did_not_see(scene):
    X, labels, text = scene
    points = curve_of(fit(scene)).points
    assert [point.shots_per_class for point in points[:3]] == [0, 1, 2]
    assert points[0].accuracy == fit(scene).zero_shot_accuracy and points[-1].accuracy == fit(scene).held_out.accuracy
    saw = [np.isnan(point.correct).sum(axis=1).tolist() for point in points]
    assert saw[:3] == [[0], [3, 3, 3], [6, 6, 6]]  # of three classes
    # Noise that no fit can know: right on what it saw, by chance on all else.
    noise = np.random.default_rng(1).standard_normal((60, 32)).astype(np.float32)
    names = ["a", "b", "c"] * 20
    classifier = FewShotClassifier(create_encoder("toy"), "knn", cache=None)
    blind = fit_project_model(classifier, text, shots_of(text, noise, names))
    assert (blind.probabilities(noise).argmax(axis=1) == np.array([0, 1, 2] * 20)).mean() > 0.9
    assert all(point.accuracy < 0.6 for point in curve_of(blind).points)


def test_test_pictures_measure_the_curve_and_change_no_fit(scene):
    X, labels, text = scene
    points = curve_of(fit(scene), X[::2], ["b"] * 9).points  # as if all were b
    head = create_head("tip-adapter").fit(X, labels, text=text)
    assert points[-1].accuracy == pytest.approx(np.mean(head.predict(X[::2]) == "b"))
    assert points[-1].shots_per_class == 6


def test_a_class_without_pictures_is_left_out_of_the_accuracy(scene):
    X, labels, text = scene
    # The name of the empty class is the first one's; by names alone, all pictures of both classes are taken for it.
    with_empty = TextFeatures([*text.labels, "empty"], [*text.embeddings, text.embeddings[0]], text.logit_scale)
    rows = [*range(12)]
    test = X, ["a"] * 6 + ["b"] * 6 + ["c"] * 6
    models = [fit((X, labels, each), rows) for each in (text, with_empty)]
    for measured_on in ((), test):
        accuracies = [[point.accuracy for point in curve_of(model, *measured_on).points] for model in models]
        assert accuracies[0] == pytest.approx(accuracies[1])
    assert models[0].held_out.accuracy == models[1].held_out.accuracy
    assert not any("empty" in doubt for doubt in models[1].doubts.values())


def test_held_out_pictures_need_two_of_a_class_and_the_forecast_four(scene):
    X, labels, _ = scene
    for count in (1, 3, 4):
        rows = [6 * k + i for k in range(3) for i in range(count)]
        model = fit(scene, rows)
        curve = curve_of(model)
        assert model.classifier is not None and (model.held_out is not None) == (count > 1)
        assert (curve.points[-1].shots_per_class == 0) == (count == 1)
        assert (curve.forecast is not None) == (count == 4) and (count == 1 or curve.forecast_shots == count + 10)
        assert not curve.shows_gain  # all is right already: more pictures bring no gain


def test_a_forecast_is_shown_only_above_the_last_point():
    curve = LearningCurve(
        (CurvePoint(1, 0.5, np.ones((1, 20))), CurvePoint(2, 0.8, np.ones((1, 20)))), forecast_shots=12
    )
    for value, rises in ((0.9, True), (0.9, False), (0.79, True)):
        shown = replace(curve, forecast=AccuracyForecast(value, 0.6, 0.95, rises))
        assert shown.shows_gain == (plot_curve(shown)["forecast"] is not None) == (value > 0.8 and rises)
