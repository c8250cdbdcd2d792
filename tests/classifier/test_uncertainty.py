"""`FewShotClassifier` with uncertainty: calibration, rejection, prediction sets and costs, also after saving."""

import functools
import sys

import numpy as np
import pytest
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.classifier.fitting import ShotFit
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures, create_head, out_of_fold
from clipadapter.persistence import read_config
from clipadapter.testing import toy_features
from clipadapter.uncertainty import UncertaintyOptions

from .squares import COLOURS
from .squares import squares as all_squares

squares = functools.partial(all_squares, each=6, noise=60)
GREYS = squares(each=4, seed=5, colours={"grey": (200, 200, 200)})[0]


@functools.cache
def fitted(**options):
    """A model of red, green and blue squares; no test changes it."""
    head = options.pop("head", "auto")
    model = FewShotClassifier(encoder="toy", cache=None, head=head, uncertainty=UncertaintyOptions(**options))
    return model.fit(*squares())


def test_a_rare_class_is_predicted_as_often_as_by_the_head_that_adjusts_its_logits():
    names, by_head, calibrated = tuple(f"c{k}" for k in range(5)), 0, 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        means = rng.normal(size=(5, 32))
        y, test_y = np.repeat(np.arange(5), [16, 16, 4, 4, 2]), np.repeat(np.arange(5), 60)
        X, test_X = (means[labels] + 2.2 * rng.normal(size=(len(labels), 32)) for labels in (y, test_y))
        support = FeatureSet(X.astype(np.float32), tuple(names[k] for k in y), names, {})
        text = TextFeatures(names, means + 2 * rng.normal(size=means.shape))
        options = UncertaintyOptions(calibration="vector")
        fit = ShotFit(support, text, options).fit(create_head("zs-lp", steps=50))
        logits = fit.head.logits(test_X)
        by_head += (logits.argmax(axis=1) == 4).sum()
        calibrated += (fit.uncertainty.probabilities(logits).argmax(axis=1) == 4).sum()
    assert calibrated > 0.9 * by_head


def test_out_of_distribution_pictures_are_rejected():
    model = fitted(reject=0.06)
    queries, truth = squares(seed=1)
    assert sum(found is not None for found in model.predict(queries)) >= 15
    assert model.predict(GREYS) == [None] * 4
    said = model.classify(GREYS[:1])[0]
    assert said.nearest in COLOURS
    assert said.reason
    assert said.error is None
    assert model.predict(GREYS, reject=None) == [said.nearest] * 4


def test_outliers_improve_rejection():
    plain = fitted(reject=0.06)
    images, labels = squares()
    model = FewShotClassifier(encoder="toy", cache=None, uncertainty=UncertaintyOptions(reject=0.06))
    model.fit(images, labels, outliers=GREYS)
    names, plain_names = ([part.name for part in one.uncertainty_.rejector.parts] for one in (model, plain))
    assert names != plain_names
    assert model.predict(GREYS) == [None] * 4


@pytest.mark.parametrize("sets", ["cross", "cv+", "split"])
def test_prediction_sets_contain_the_best_class_and_survive_saving(sets, tmp_path):
    model = fitted(coverage=0.8, sets=sets, head="linear-probe")
    queries, truth = squares(seed=1)
    before = model.classify(queries)
    assert all(said.label in said.labels for said in before)
    again = FewShotClassifier.load(model.save(tmp_path / "model"), cache=None)
    assert again.classify(queries) == before
    assert again.uncertainty_.conformal.method == sets
    assert ("folds" in read_config(tmp_path / "model").files) == (sets == "cv+")
    if sets == "split":  # it was fitted to half of the shots
        assert len(model.uncertainty_.conformal.scores) == 9


def test_costs_change_the_decision_not_the_probabilities():
    model = fitted()
    costs = 1.0 - np.eye(3)
    costs[:, 0] *= 1e30
    queries, _ = squares(seed=1)
    assert "blue" in model.predict(queries)
    assert "blue" not in model.predict(queries, costs=costs)


def test_without_calibration_probabilities_are_the_softmax():
    model = fitted(calibration="none")
    assert model.uncertainty_.calibrator.temperature == 1.0


def test_one_shot_per_class_is_calibrated_by_the_temperature_prior_of_the_head():
    images, labels = squares(each=1)
    model = FewShotClassifier(encoder="toy", cache=None).fit(images, labels)
    head = create_head("auto")
    assert model.uncertainty_.calibrator.temperature == pytest.approx(head.prior_temperature(1))
    assert model.uncertainty_.conformal is None
    with pytest.raises(InputError, match="two shots"):
        model.classify(images, coverage=0.9)


def test_decisions_that_no_model_can_make_are_refused():
    with pytest.raises(InputError, match="between 0 and 1"):
        fitted().classify(GREYS, reject=2.0)
    with pytest.raises(InputError, match="costs have 2 classes, but the model has 3"):
        fitted().predict(GREYS, costs=1 - np.eye(2))
    with pytest.raises(InputError, match="UncertaintyOptions"):
        FewShotClassifier(encoder="toy", cache=None, uncertainty={"reject": 0.1}).fit(*squares())


@pytest.mark.filterwarnings("ignore:the shots are left out")
def test_the_sources_of_the_shots_are_saved_with_them(tmp_path):
    images, labels = squares(each=2)
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    model = FewShotClassifier(encoder="toy", cache=None).fit(paths, labels)
    again = FewShotClassifier.load(model.save(tmp_path / "model"), cache=None)
    assert list(again.support_.provenance["sources"]) == [str(path) for path in paths]
    assert read_config(model.save(tmp_path / "bare", support=False)).sources == []


def test_of_very_many_shots_one_fold_is_held_out(monkeypatch):
    X, y, text = toy_features()
    head = create_head("linear-probe", C=10.0).fit(X, y, text=text)
    monkeypatch.setattr(sys.modules["clipadapter.heads.out_of_fold"], "MAX_MULTIPLICATIONS_OF_ALL_FOLDS", 10)
    assert len(out_of_fold(head, X, y, text).rows) == 3


def test_held_out_logits_are_those_of_fits_without_the_shot_in_the_scale_of_the_full_fit():
    """A probe on two shots is surer than one on one shot, by the spread over its own shots."""
    X, y, text = toy_features()
    rows = np.concatenate([np.flatnonzero(np.asarray(y) == name)[:2] for name in text.labels])
    X, y = np.asarray(X)[rows], np.asarray(y)[rows]
    head = create_head("linear-probe", C=1.0).fit(X, y, text=text)
    found, own = out_of_fold(head, X, y, text, keep_heads=True), []
    for fold, kept in enumerate(found.heads):
        held = found.rows[found.folds == fold]
        others = np.setdiff1d(np.arange(len(y)), held)
        again = create_head("linear-probe", C=1.0).fit(X[others], y[others], text=text)
        logits = found.logit_scale_ratio * again.logits(X[held])
        np.testing.assert_allclose(found.logits[found.folds == fold], logits, rtol=1e-5)
        np.testing.assert_allclose(kept.logits(X), again.logits(X), atol=1e-5)
        own.append(kept.logits(X[found.rows[found.folds != fold]]).std(axis=1).mean())
    assert found.logit_scale_ratio == pytest.approx(head.logits(X).std(axis=1).mean() / np.mean(own), rel=1e-5)
    assert found.logit_scale_ratio > 1.1


def test_logits_that_auto_held_out_are_near_to_those_of_its_own_refits():
    X, y, text = toy_features()
    head = create_head("auto").fit(X, y, text=text)
    own = out_of_fold(head, X, y, text, strategies=("own",))
    assert (own.logits.argmax(axis=1) == own.labels).mean() > 0.9
    assert own.logits.std() == pytest.approx(head.logits(X).std(), rel=0.5)


def test_with_text_of_other_classes_probabilities_are_hardly_worse_than_equal_ones():
    """Two classes whose text is exchanged: nearly all predictions of zero-shot are wrong, and it must not be sure."""
    X, y, text = toy_features((16, 16), noise=2.0, names=("cat", "dog"))
    wrong = TextFeatures(text.labels, text.embeddings[::-1], text.logit_scale)
    names = tuple(text.labels)
    model = FewShotClassifier("toy", "zero-shot", cache=None)
    model.fit_features(FeatureSet(X[::2], tuple(map(str, y[::2])), names), wrong)
    p = model.uncertainty_.probabilities(model.head_.logits(X[1::2]))
    true = p[np.arange(len(p)), [names.index(str(name)) for name in y[1::2]]]
    assert (p.argmax(axis=1) != [names.index(str(name)) for name in y[1::2]]).mean() > 0.7
    assert -np.log(true).mean() < np.log(2) + 0.1


def test_the_temperature_prior_is_interpolated_between_measured_shots():
    head = create_head("auto")
    low, high = sorted(head.temperature_prior[2:4])
    assert low <= head.prior_temperature(5.5) <= high
    assert head.prior_temperature(100) == head.temperature_prior[-1]


def test_without_held_out_shots_probabilities_are_mixed_as_with_two_of_each_class():
    """1 / (1 + n^2) of equal probabilities: n = 4 for two classes."""
    X, y, text = toy_features((1, 1), names=("a", "b"))
    model = FewShotClassifier("toy", cache=None).fit_features(FeatureSet(X, tuple(map(str, y)), text.labels), text)
    np.testing.assert_allclose(model.uncertainty_.probabilities([[999.0, 0.0]]), [[1 - 0.5 / 17, 0.5 / 17]])


def test_the_card_explains_the_probabilities(tmp_path):
    card = (fitted(reject=0.06).save(tmp_path / "model") / "README.md").read_text()
    assert "calibrated on 18 held-out shots" in card
    assert "Default decisions: reject 0.06." in card
    one = FewShotClassifier(encoder="toy", cache=None).fit(*squares(each=1))
    assert "no shot was held out" in (one.save(tmp_path / "one") / "README.md").read_text()


@pytest.mark.parametrize("outliers", [np.full((2, 32), np.nan), np.ones((2, 5))])
def test_outliers_of_a_wrong_shape_or_value_are_refused(outliers):
    X, y, text = toy_features(d=32)
    support = FeatureSet(X, tuple(y), text.labels)
    with pytest.raises(InputError, match="background"):
        FewShotClassifier("toy", cache=None).fit_features(support, text, None, None, outliers)


def test_the_default_decision_of_a_loaded_model_can_be_changed(tmp_path):
    folder = fitted(reject=0.06).save(tmp_path / "model")
    assert FewShotClassifier.load(folder, cache=None).uncertainty_.decisions.reject == 0.06
    model = FewShotClassifier.load(folder, cache=None, uncertainty=UncertaintyOptions(coverage=0.8))
    assert (model.uncertainty_.decisions.reject, model.uncertainty_.decisions.coverage) == (None, 0.8)
    assert model.classify(GREYS)[0].labels


def test_a_head_without_out_of_fold_logits_refuses_decisions_that_need_them():
    images, labels = squares()
    model = FewShotClassifier(encoder="toy", cache=None, head="transclip").fit(images, labels, unlabelled=images)
    with pytest.raises(InputError, match="not a transductive one"):
        model.classify(images, coverage=0.9)


def test_a_rejected_picture_may_be_none_of_the_classes():
    model = fitted(reject=0.06, coverage=0.8)
    assert [one.labels for one in model.classify(GREYS)] == [()] * 4


def test_a_class_without_a_shot_is_answered_by_its_text_in_what_auto_held_out():
    X, y, text = toy_features()
    X, y = np.asarray(X), np.asarray(y)
    some = y != text.labels[-1]
    head = create_head("auto").fit(X[some], y[some], text=text)
    found = out_of_fold(head, X[some], y[some], text, strategies=("own", "folds"))
    assert found.strategy == "own"
    full = head.logits(X[some])[found.rows]
    np.testing.assert_allclose(found.logits[:, -1] / found.logit_scale_ratio, full[:, -1], rtol=1e-4)
    assert np.abs(found.logits[:, 0] - full[:, 0]).max() > 1e-3


def test_decisions_that_need_more_than_one_shot_per_class_are_refused_by_fit():
    images, labels = squares(each=1)
    sets, rejecting = (
        FewShotClassifier("toy", "transclip", cache=None, uncertainty=UncertaintyOptions(**{asked: 0.5}))
        for asked in ("coverage", "reject")
    )
    with pytest.raises(InputError, match="two shots of each class"):
        sets.fit(images, labels, unlabelled=images)
    assert rejecting.fit(images, labels, unlabelled=images).uncertainty_.rejector is not None  # by text and distances


def test_held_out_shots_of_split_sets_are_not_among_the_pictures_without_labels():
    """Such a picture would be no new one: the head would have learned from it before the sets are calibrated on it."""
    images, labels = squares()
    pool, added = squares(each=5, seed=3)[0], squares(each=1, seed=4)
    options = UncertaintyOptions(sets="split")
    model = FewShotClassifier("toy", "auto", cache=None, uncertainty=options)
    model.fit(images, labels, unlabelled=[*pool, *images, *added[0]])
    assert len(model.head_.kept_pictures_) == len(pool) + len(added[0])
    model.add_examples(*added)
    assert len(model.head_.kept_pictures_) == len(pool)
    assert model.fit(images, labels, unlabelled=images).head_.kept_pictures_ is None
    with pytest.raises(InputError, match="learns from labelled pictures only"):
        FewShotClassifier("toy", "knn", cache=None, uncertainty=options).fit(images, labels, unlabelled=images)


def test_heads_of_folds_keep_no_pictures_without_labels():
    model = FewShotClassifier("toy", "auto", cache=None, uncertainty=UncertaintyOptions(sets="cv+"))
    model.fit(*squares(), unlabelled=squares(each=5, seed=3)[0])
    assert len(model.head_.kept_pictures_) == 15
    assert len(model.fold_heads_) > 1 and all(head.kept_pictures_ is None for head in model.fold_heads_)
