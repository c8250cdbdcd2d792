import numpy as np
import pytest

from clipadapter.classifier import FewShotClassifier
from clipadapter.encoders import create_encoder
from clipadapter.heads import TextFeatures, create_head
from clipadapter.studio._learning import class_mean, curve, learn


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


def learned(scene, rows=None):
    X, labels, text = scene
    rows = np.arange(len(X)) if rows is None else np.array(rows, int)
    model = FewShotClassifier(create_encoder("toy"), cache=None)
    return learn(model, text, [f"{i}.png" for i in rows], X[rows], [labels[i] for i in rows])


def test_before_a_shot_the_names_alone_answer(scene):
    X, _, text = scene
    found = learned(scene, [])
    assert found.model is None and found.shots == 0 and found.by_names is None and found.held_out is None
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    best = (unit @ text.embeddings.T).argmax(axis=1)
    p = found.probabilities(X)
    np.testing.assert_array_equal(p.argmax(axis=1), best)
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_figures_count_each_class_alike(scene):
    X, labels, text = scene
    rows = [*range(12), 12, 13]  # six of a and b, two of c
    found = learned(scene, rows)
    unit = X[rows] / np.linalg.norm(X[rows], axis=1, keepdims=True)
    called = np.array(text.labels)[(unit @ text.embeddings.T).argmax(axis=1)]
    shares = [np.mean([c == t for c, t in zip(called, np.array(labels)[rows], strict=True) if t == n]) for n in "abc"]
    assert found.by_names == pytest.approx(np.mean(shares))
    assert found.held_out == pytest.approx(1.0) and found.shots == 14


def test_a_wrong_label_is_doubted(scene):
    X, labels, text = scene
    wrong = ["b", *labels[1:]]
    model = FewShotClassifier(create_encoder("toy"), cache=None)
    found = learn(model, text, [str(i) for i in range(18)], X, wrong)
    assert found.doubtful == {"0": "a"}


def test_classes_in_an_order_that_is_not_sorted_keep_their_columns(scene):
    X, labels, text = scene
    order = [2, 0, 1]
    turned = TextFeatures([text.labels[i] for i in order], text.embeddings[order], text.logit_scale)
    for rows in ([], None):
        found, expected = learned((X, labels, turned), rows), learned(scene, rows)
        assert found.names == ("c", "a", "b")
        p, wanted = found.probabilities(X), expected.probabilities(X)[:, order]
        np.testing.assert_array_equal(p.argmax(axis=1), wanted.argmax(axis=1))
    assert found.by_names == expected.by_names and found.held_out == expected.held_out
    assert min(point.accuracy for point in curve(found, X, labels)) > 0.9


def test_one_shot_a_class_cannot_be_measured(scene):
    found = learned(scene, [0, 6, 12])
    assert found.held_out is None and found.model is not None
    assert [point.shots for point in curve(found, scene[0][[0, 6, 12]], ["a", "b", "c"])] == [0]


def test_a_class_without_a_shot_is_known_by_its_name(scene):
    X, labels, _ = scene
    found = learned(scene, [0, 1, 12, 13])
    assert found.names == ("a", "b", "c")
    p = found.probabilities(X[6:12])
    assert p.shape == (6, 3) and (p.argmax(axis=1) == 1).all()


def test_the_curve_is_measured_on_what_each_fit_did_not_see(scene):
    X, labels, text = scene
    points = list(curve(learned(scene), X, labels))
    assert [point.shots for point in points[:3]] == [0, 1, 2]
    assert points[0].accuracy == learned(scene).by_names and points[-1].accuracy == learned(scene).held_out
    assert all(0 <= point.low <= point.accuracy <= point.high <= 1 for point in points)
    # Noise that no fit can know: right on what it saw, by chance on all else.
    noise = np.random.default_rng(1).standard_normal((60, 32)).astype(np.float32)
    names = ["a", "b", "c"] * 20
    model = FewShotClassifier(create_encoder("toy"), "knn", cache=None)
    blind = learn(model, text, [str(i) for i in range(60)], noise, names)
    assert class_mean(blind.probabilities(noise).argmax(axis=1), np.array([0, 1, 2] * 20)) > 0.9
    assert all(point.accuracy < 0.6 for point in curve(blind, noise, names))


def test_test_pictures_judge_and_teach_nothing(scene):
    X, labels, text = scene
    test = (X[::2], ["b"] * 9)  # as if all were b
    points = list(curve(learned(scene), X, labels, test))
    head = create_head("auto").fit(X, labels, text=text)
    assert points[-1].accuracy == pytest.approx(np.mean(head.predict(X[::2]) == "b")) and points[-1].shots == 6
