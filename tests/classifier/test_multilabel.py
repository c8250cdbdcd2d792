"""`FewShotClassifier` with multi-label pictures."""

import numpy as np
import pytest

from clipadapter import FewShotClassifier
from clipadapter.classifier.fitting import ShotFit
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import create_head, out_of_fold
from clipadapter.testing.heads import toy_multilabel
from clipadapter.uncertainty import UncertaintyOptions
from clipadapter.uncertainty.multilabel import DEFAULT_THRESHOLD, learn_multilabel

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220)}
SETS = [("red",), ("green",), ("blue",), ("red", "blue"), ("green", "red"), ("blue", "green"), ()]


def pictures(each=6, seed=0):
    """Grey pictures, with a quarter in each colour that they have."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for names in SETS * each:
        image = np.full((16, 16, 3), 128) + rng.integers(-30, 31, (16, 16, 3))
        for place, name in enumerate(names):
            image[:, 8 * place : 8 * place + 8] = np.array(COLOURS[name]) + rng.integers(-30, 31, (16, 8, 3))
        images.append(np.clip(image, 0, 255).astype(np.uint8))
        labels.append(names)
    return images, labels


def model(**params):
    return FewShotClassifier(**{"encoder": "toy", "cache": None, "head": "linear-probe", **params})


@pytest.fixture(scope="module")
def fitted():
    return model().fit(*pictures())


def test_all_labels_of_a_picture_are_predicted_and_one_of_no_class_has_no_label_and_a_reason(fitted):
    queries, truth = pictures(seed=1)
    said = fitted.classify(queries)
    right = [set(one.labels) == set(names) for one, names in zip(said, truth, strict=True)]
    assert sum(right) > 0.8 * len(truth)
    assert fitted.predict(queries) == [one.labels for one in said]
    assert fitted.predict_proba(queries).sum(axis=1).max() > 1.2
    nothing = [one for one, names in zip(said, truth, strict=True) if not names and not one.labels]
    assert len(nothing) >= 4
    assert nothing[0].label is None
    assert nothing[0].nearest in COLOURS
    assert "threshold" in nothing[0].reason
    both = next(one for one, names in zip(said, truth, strict=True) if names == ("red", "blue"))
    assert both.label in both.labels


def test_a_loaded_model_predicts_like_the_saved_one(tmp_path):
    fitted = model(head="auto").fit(*pictures(each=3))
    queries, _ = pictures(each=2, seed=1)
    again = FewShotClassifier.load(fitted.save(tmp_path / "model"), cache=None)
    assert again.predict(queries) == fitted.predict(queries)
    np.testing.assert_allclose(again.predict_proba(queries), fitted.predict_proba(queries), rtol=1e-5)
    np.testing.assert_array_equal(again.support_.targets, fitted.support_.targets)
    assert again.head_.task_ == "multilabel"


@pytest.mark.parametrize("support", [True, False])
def test_a_picture_with_several_labels_is_one_picture_in_the_history_and_the_description(fitted, tmp_path, support):
    images, labels = pictures()
    assert len(images) < sum(map(len, labels)) == sum(fitted.support_.counts.values())
    again = FewShotClassifier.load(fitted.save(tmp_path / "model", support=support), cache=None)
    for each in (fitted, again, FewShotClassifier.load(again.save(tmp_path / "copy", support=support), cache=None)):
        assert each.history_.changes[-1].pictures == len(images)
        assert f"{len(images)} shots" in repr(each)


@pytest.mark.parametrize("asked", [{"reject": 0.1}, {"coverage": 0.9}, {"costs": 1 - np.eye(3)}])
def test_single_label_options_are_refused(asked, fitted):
    with pytest.raises(InputError, match=f"class by class: leave {next(iter(asked))} out"):
        model(uncertainty=UncertaintyOptions(**asked)).fit(*pictures(each=2))
    with pytest.raises(InputError, match="each class separately"):
        fitted.classify(pictures(each=1)[0], **asked)


def test_heads_and_options_for_single_labels_are_refused():
    with pytest.raises(InputError, match="auto"):
        model(head="knn").fit(*pictures(each=2))
    with pytest.raises(InputError, match="leave outliers, calibration out"):
        model(uncertainty=UncertaintyOptions(calibration="vector")).fit(*pictures(each=2), outliers=pictures(each=1)[0])


def test_thresholds_are_learned_from_out_of_fold_logits():
    X, Y, text = toy_multilabel()
    found = out_of_fold(create_head("linear-probe", C=1.0), X, Y, text, folds=4)
    expected = learn_multilabel(found.logits, found.labels)
    head = create_head("linear-probe", C=1.0).fit(X, Y, text=text)
    support = FeatureSet(X, (), text.labels, targets=np.asarray(Y))
    rule = ShotFit(support, text, UncertaintyOptions()).learn(head).uncertainty.multilabel
    np.testing.assert_array_equal(rule.thresholds, expected.thresholds)
    assert rule.n == len(X)


@pytest.mark.parametrize("Y", [np.eye(3, dtype=int), np.zeros((3, 3), int), np.eye(3, dtype=int)[:1]])
def test_one_shot_per_class_gives_the_default_thresholds(Y):
    X, _, text = toy_multilabel()
    support = FeatureSet(X[: len(Y)], (), text.labels, targets=Y)
    rule = ShotFit(support, text, UncertaintyOptions()).learn(create_head("zero-shot")).uncertainty.multilabel
    assert rule.thresholds.tolist() == [DEFAULT_THRESHOLD] * 3
