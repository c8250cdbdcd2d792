import json
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from clipadapter.bench import FEATURES, cross_validate_model, few_shot, load_study, run_suite, write_report
from clipadapter.bench.bundle import Bundle, save_bundle
from clipadapter.bench.launcher import Launcher
from clipadapter.bench.suite import ALL
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import draw_shots
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads.prototype import Prototype
from clipadapter.testing import toy_features

from ..suite_text import parse_suite

SUITE = (
    'title = "t"\nprotocol = "cross-validation"\nheads = ["zero-shot", "prototype"]\nshots = [1, "all"]\nseeds = [1, 2]'
)


@pytest.fixture
def pictures():
    """Features of three classes that overlap, and their class text."""
    X, y, text = toy_features((6, 8, 7), noise=1.5)
    provenance = {"encoder": "toy", "fingerprint": "f", "data": "toys"}
    return FeatureSet(X, tuple(map(str, y)), tuple(text.labels), provenance), text


def predictions(features, text, shots, folds, seed):
    """The label of each picture by a head that was fitted to the other folds, in plain loops."""
    labels = np.array(features.y)
    answers = labels.copy()
    for others, fold in StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels):
        rows = [others[i] for i in draw_shots(labels[others].tolist(), shots, seed)]
        assert not set(rows) & set(fold)
        answers[fold] = Prototype().fit(features.X[rows], labels[rows], text=text).predict(features.X[fold])
    return answers


@pytest.mark.parametrize("shots", [2, ALL])
def test_each_picture_is_answered_by_a_head_fitted_to_the_other_folds(pictures, shots):
    features, text = pictures
    (run,) = few_shot({"p": Prototype()}, features, None, text, [shots], [3], folds=4)
    right = predictions(features, text, shots, 4, 3) == np.array(features.y)
    assert run.metrics.accuracy == pytest.approx(right.mean())
    assert (run.n_test, run.data.test, run.data.protocol) == (21, "4 folds", "folds")


def test_there_are_no_more_folds_than_pictures_of_the_smallest_class_which_needs_two(pictures):
    features, text = pictures
    (run,) = few_shot({"p": Prototype()}, features, None, text, [1], [1], folds=50)
    assert run.data.test == "6 folds"
    with pytest.raises(InputError, match="needs two pictures of each class, but has one of"):
        few_shot({"p": Prototype()}, features.take([*range(7), *range(14, 21)]), None, text, [1], [1], folds=5)


def test_a_suite_is_cross_validated(pictures, tmp_path):
    features, text = pictures
    source = FEATURES + str(save_bundle(Bundle(features, text), tmp_path / "toys"))
    suite = parse_suite("cv", SUITE + "\noptions = { folds = 3 }")
    launcher = Launcher(workers=1)
    with pytest.raises(InputError, match="folds must be 2 or more, but are 1"):
        run_suite(parse_suite("cv", SUITE + "\noptions = { folds = 1 }"), [source], {}, tmp_path / "out", launcher)
    assert run_suite(suite, [source], {}, tmp_path / "out", launcher).n_made == 8
    assert run_suite(suite, [source], {}, tmp_path / "out", launcher).n_existing == 8
    study = load_study(tmp_path / "out", "cv")
    run = next(run for run in study.runs if (run.method, run.shots, run.seed) == ("prototype", ALL, 2))
    right = predictions(features, text, ALL, 3, 2) == np.array(features.y)
    assert run.metrics.accuracy == pytest.approx(right.mean())
    page = write_report(study, tmp_path / "out")[0].read_text()
    assert "folds: cross-validation; each picture is predicted by a head fitted to shots of other folds" in page


def test_a_model_is_cross_validated_on_its_own_shots(colour_folder, tmp_path):
    folder = colour_folder("shots", 4)
    paths = sorted(folder.rglob("*.png"))
    model = FewShotClassifier("toy", "prototype", cache=None).fit(paths, [path.parent.name for path in paths])
    result = cross_validate_model(model, folds=2)
    assert (result.folds, result.n_test, list(result.baselines)) == (2, 12, ["zero-shot", "linear-probe"])
    expected = predictions(model.support_, model.text_, ALL, 2, 1) == np.array(model.support_.y)
    assert result.model.evaluation.metrics["accuracy"] == pytest.approx(expected.mean())
    files = result.write(tmp_path / "out")
    assert json.loads(files[0].read_text())["folds"] == 2


@pytest.mark.parametrize(
    "shots, tunes_encoder, multilabel, words",
    [
        ("ab", True, None, "that tunes the encoder can't be cross-validated on its shots: give test pictures"),
        ("ab", False, "thresholds", "that is multi-label can't be cross-validated on its shots: give test pictures"),
        ("", False, None, r"saved without its shots \(--no-support\): give test pictures"),
    ],
)
def test_a_model_that_can_not_be_fitted_again_is_not_cross_validated(shots, tunes_encoder, multilabel, words):
    head, uncertainty = SimpleNamespace(tunes_encoder=tunes_encoder), SimpleNamespace(multilabel=multilabel)
    with pytest.raises(InputError, match=words):
        cross_validate_model(SimpleNamespace(support_=shots, head_=head, uncertainty_=uncertainty))
