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


def test_the_baselines_are_measured_with_the_model(fitted, test_data):
    evaluation = evaluate_model(fitted(2), test_data, curve=False)
    assert list(evaluation.scores) == ["this model (linear-probe)", "zero-shot", "linear-probe"]
    assert evaluation.model.evaluation.metrics["accuracy"] == 1.0
    assert evaluation.n_test == 9 and evaluation.among_shots == 0 and evaluation.curve == []


def test_the_curve_takes_powers_of_two_and_all_shots(fitted, test_data):
    evaluation = evaluate_model(fitted(5), test_data, seeds=(1, 2))
    assert sorted({run.shots for run in evaluation.curve}) == [1, 2, 4, 5]
    assert {run.head for run in evaluation.curve} == {"zero-shot", "linear-probe"}
    assert {run.params["C"] for run in evaluation.curve if run.head == "linear-probe"} == {5.0}


@pytest.mark.parametrize("head", ["linear-probe", "clip-adapter"])
def test_the_end_of_the_curve_is_the_measured_model(fitted, test_data, head):
    evaluation = evaluate_model(fitted(4, head), test_data)
    last = {run.head: run for run in evaluation.curve if run.shots == 4}
    assert len([run for run in evaluation.curve if run.shots == 4]) == len(last)  # one measurement, no draws
    assert last[head].metrics == Metrics.of_score(evaluation.model)
    for name in set(last) - {head}:
        assert last[name].metrics == Metrics.of_score(evaluation.baselines[name])


def test_one_shot_a_class_has_no_curve(fitted, test_data):
    assert evaluate_model(fitted(1), test_data).curve == []


def test_a_model_without_its_shots_has_zero_shot_as_only_baseline(fitted, test_data, tmp_path):
    fitted(2).save(tmp_path / "model", support=False)
    evaluation = evaluate_model(FewShotClassifier.load(tmp_path / "model", cache=None), test_data)
    assert (
        list(evaluation.baselines) == ["zero-shot"]
        and evaluation.baselines["zero-shot"].evaluation.metrics["accuracy"] == 1.0
    )
    assert evaluation.curve == [] and evaluation.among_shots == 0


def test_shots_among_the_test_pictures_are_counted(fitted, tmp_path):
    model = fitted(2)
    assert evaluate_model(model, load_dataset(tmp_path / "shots"), curve=False).among_shots == 6


def test_a_picture_that_cannot_be_read_is_left_out_and_named(fitted, test_data):
    bad = test_data.root / "red" / "00.png"
    bad.write_bytes(b"")
    evaluation = evaluate_model(fitted(1), test_data)
    assert evaluation.skipped == [(str(bad), "file is empty")] and evaluation.n_test == 8


def test_a_label_that_is_no_class_of_the_model_is_refused(fitted, test_data):
    with pytest.raises(InputError, match="no class of the model: mauve"):
        evaluate_model(fitted(1), test_data.rename({"red": "mauve"}))


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
    shots, pool = load_dataset(colour_folder("shots", 4)), load_dataset(colour_folder("pool", 3, seed=2))
    model = FewShotClassifier("toy", "auto", cache=None).fit(shots.paths, shots.labels, unlabelled=pool.paths)
    counts, fit = [], Auto._fit

    def count(self, support):
        counts.append((len(support.labels), 0 if support.unlabelled is None else len(support.unlabelled)))
        fit(self, support)

    monkeypatch.setattr(Auto, "_fit", count)
    cross_validate_model(model, folds=2)
    assert counts == [(6, 9)] * 2
    counts.clear()
    curve = evaluate_model(model, test_data, seeds=(1,)).curve
    assert counts == [(3, 9), (6, 9)] and not any(run.error for run in curve)
