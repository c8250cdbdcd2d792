import json

import pytest
from PIL import Image

from clipadapter.bench import cross_validate_model, evaluate_model
from clipadapter.bench.run import Metrics
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import load_dataset
from clipadapter.errors import InputError
from clipadapter.heads.auto.head import Auto


@pytest.fixture
def fitted(colour_folder):
    """Function that fits a linear probe to n squares of each colour."""

    def fit(n, head="linear-probe"):
        shots = load_dataset(colour_folder("shots", n))
        params = {"C": 5.0} if head == "linear-probe" else {"steps": 20}
        model = FewShotClassifier("toy", head, cache=None, head_params=params)
        return model.fit(shots.paths, shots.labels)

    return fit


@pytest.fixture
def test_data(colour_folder):
    return load_dataset(colour_folder("new", 3, seed=1))


def test_the_curve_takes_powers_of_two_and_ends_at_the_measured_model_and_baselines(fitted, test_data):
    evaluation = evaluate_model(fitted(5), test_data, seeds=(1, 2))
    assert list(evaluation.scores) == ["this model (linear-probe)", "zero-shot", "linear-probe"]
    assert evaluation.model.evaluation.metrics["accuracy"] == 1.0
    assert (evaluation.n_test, evaluation.among_shots) == (9, 0)
    assert sorted({run.shots for run in evaluation.curve}) == [1, 2, 4, 5]
    assert {run.params["C"] for run in evaluation.curve if run.head == "linear-probe"} == {5.0}
    last = [run for run in evaluation.curve if run.shots == 5]
    assert {run.head: run.metrics for run in last} == {
        "linear-probe": Metrics.of_score(evaluation.model),
        "zero-shot": Metrics.of_score(evaluation.baselines["zero-shot"]),
    }
    assert len(last) == 2  # one measurement, no draws


def test_a_trained_head_is_not_fitted_again_for_the_end_of_its_curve(fitted, test_data):
    evaluation = evaluate_model(fitted(2, "clip-adapter"), test_data, seeds=(1,))
    last = {run.head: run.metrics for run in evaluation.curve if run.shots == 2}
    assert last["clip-adapter"] == Metrics.of_score(evaluation.model) and len(last) == 3


def test_there_is_no_curve_without_its_wish_and_of_one_shot(fitted, test_data, tmp_path):
    model = fitted(1)
    assert evaluate_model(model, test_data).curve == []
    own = evaluate_model(model, load_dataset(tmp_path / "shots"), curve=False)
    assert (own.curve, own.among_shots) == ([], 3)


def test_a_model_without_its_shots_has_zero_shot_as_only_baseline(fitted, test_data, tmp_path):
    fitted(2).save(tmp_path / "model", support=False)
    evaluation = evaluate_model(FewShotClassifier.load(tmp_path / "model", cache=None), test_data)
    accuracies = {name: one.evaluation.metrics["accuracy"] for name, one in evaluation.baselines.items()}
    assert (accuracies, evaluation.curve, evaluation.among_shots) == ({"zero-shot": 1.0}, [], 0)


def test_unreadable_pictures_are_left_out_and_unknown_labels_refused(fitted, test_data):
    model, bad = fitted(1), test_data.root / "red" / "00.png"
    bad.write_bytes(b"")
    evaluation = evaluate_model(model, test_data)
    assert evaluation.skipped == [(str(bad), "file is empty")] and evaluation.n_test == 8
    with pytest.raises(InputError, match="no class of the model: mauve"):
        evaluate_model(model, test_data.rename({"red": "mauve"}))


def test_what_is_written_can_be_read(fitted, test_data, tmp_path):
    evaluation = evaluate_model(fitted(2), test_data, seeds=[1])
    files = evaluation.write(tmp_path / "report")
    assert [path.name for path in files] == ["metrics.json", "confusion.png", "learning-curve.png"]
    facts = json.loads(files[0].read_text())
    assert facts["model"]["accuracy"] == 1.0 and facts["shots"] == {"blue": 2, "green": 2, "red": 2}
    assert facts["baselines"].keys() == {"zero-shot", "linear-probe"} and len(facts["curve"]) == 4
    for path in files[1:]:
        with Image.open(path) as image:
            assert image.format == "PNG"


def test_the_baselines_of_a_pair_are_those_of_its_first_encoder(colour_folder, fitted, test_data):
    shots = load_dataset(colour_folder("pair-shots", 2))
    model = FewShotClassifier("toy[final,toy/final]", "svl-adapter", cache=None).fit(shots.paths, shots.labels)
    pair_evaluation, alone = evaluate_model(model, test_data), evaluate_model(fitted(2), test_data)
    zero_shot = pair_evaluation.baselines["zero-shot"].evaluation.metrics
    assert zero_shot == alone.baselines["zero-shot"].evaluation.metrics
    assert {run.head for run in pair_evaluation.curve} == {"zero-shot", "linear-probe", "svl-adapter"}
    assert [run.error for run in pair_evaluation.curve if run.error] == []


def test_fits_on_fewer_shots_get_the_pictures_without_labels_of_the_model(colour_folder, test_data, monkeypatch):
    shots, pool = load_dataset(colour_folder("shots", 2)), load_dataset(colour_folder("pool", 3, seed=2))
    model = FewShotClassifier("toy", "auto", cache=None).fit(shots.paths, shots.labels, unlabelled=pool.paths)
    counts, fit = [], Auto._fit

    def count(self, support):
        counts.append((len(support.labels), 0 if support.unlabelled is None else len(support.unlabelled)))
        fit(self, support)

    monkeypatch.setattr(Auto, "_fit", count)
    cross_validate_model(model, folds=2)
    assert counts == [(3, 9)] * 2
    counts.clear()
    curve = evaluate_model(model, test_data, seeds=(1,)).curve
    assert counts == [(3, 9)] and not any(run.error for run in curve)
