import json
import shutil

import pytest
from scipy.stats import binomtest


@pytest.fixture
def test_copy(tmp_path, noisy_squares):
    """The test part alone, to be changed."""
    return shutil.copytree(noisy_squares / "test", tmp_path / "new")


def test_without_test_pictures_the_head_is_cross_validated_on_the_shots_of_the_model(probe, tmp_path, run):
    result = run("eval", probe, "--out", tmp_path / "report", "--folds", 2)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("cross-validation over 2 folds of the 12 pictures that the model was fitted to")
    assert lines[3].split()[:3] == ["this", "head", "(linear-probe)"]
    evaluation = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert (evaluation["protocol"], evaluation["folds"], evaluation["n_pictures"]) == ("cross-validation", 2, 12)
    interval = binomtest(round(12 * evaluation["model"]["accuracy"]), 12).proportion_ci(method="wilson")
    assert evaluation["accuracy_interval"] == pytest.approx([interval.low, interval.high])
    ends = f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"
    assert f"accuracy of this head: {ends} (Wilson's 95 % interval for 12 pictures)" in lines
    # the model has 4 shots of each class
    assert any(line.startswith("below 8 shots per class these figures are pessimistic") for line in lines)


@pytest.mark.parametrize("option", [("--record",), ("--split", "test")])
def test_options_of_test_pictures_need_test_pictures(probe, tmp_path, run, option):
    result = run("eval", probe, "--out", tmp_path / "report", *option)
    assert result.exit_code == 2 and "need DATA" in result.stderr


def test_mistakes_are_listed(probe, test_copy, tmp_path, run):
    shutil.copytree(test_copy / "red", test_copy / "old")
    shutil.rmtree(test_copy / "red")
    (test_copy / "old").rename(test_copy / "green" / "nested")  # two red squares in the class green
    result = run("eval", probe, test_copy, "--out", tmp_path / "report", "--no-curve")
    assert result.exit_code == 0, result.stderr
    assert ["green", "red", "2"] in [line.split() for line in result.stdout.splitlines()]
    evaluation = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert evaluation["model"]["accuracy"] == 4 / 6
    assert evaluation["model"]["confusions"] == [["green", "red", 2]]
    assert not (tmp_path / "report" / "learning-curve.png").exists()


def test_the_default_report_folder_is_beside_the_model(probe, noisy_squares, run):
    assert run("eval", probe, noisy_squares, "--no-curve").exit_code == 0
    assert (probe.parent / "model-eval" / "metrics.json").is_file()


def test_test_pictures_among_the_shots_are_a_warning(probe, noisy_squares, tmp_path, run):
    result = run("eval", probe, noisy_squares, "--split", "train", "--out", tmp_path / "r", "--no-curve")
    assert "warning: 12 of 12 test pictures are among the shots" in result.stderr


def test_a_picture_that_cannot_be_read_is_named_and_not_counted(probe, test_copy, tmp_path, run):
    (test_copy / "red" / "0.png").write_bytes(b"")
    result = run("eval", probe, test_copy, "--out", tmp_path / "r", "--no-curve")
    assert result.exit_code == 0
    assert "0.png: file is empty" in result.stderr
    assert result.stdout.startswith("5 pictures of new")


def test_a_model_without_shots_is_compared_with_zero_shot_only(noisy_squares, tmp_path, run):
    run("fit", noisy_squares, "--out", tmp_path / "model", "--encoder", "toy", "--head", "zero-shot", "--no-support")
    result = run("eval", tmp_path / "model", noisy_squares)
    assert result.exit_code == 0, result.stderr
    assert "the model was saved without its shots (--no-support)" in result.stderr
    assert "linear-probe" not in result.stdout


def test_unknown_labels_are_refused(probe, test_copy, tmp_path, run):
    (test_copy / "red").rename(test_copy / "mauve")
    result = run("eval", probe, test_copy, "--out", tmp_path / "r")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the test pictures have a label that is no class of the model: mauve")
    assert not (tmp_path / "r").exists()


def test_folders_can_get_readable_class_names(probe, test_copy, tmp_path, run):
    (test_copy / "red").rename(test_copy / "n01")
    (tmp_path / "names.json").write_text('{"n01": "red"}')
    result = run(
        "eval", probe, test_copy, "--class-names", tmp_path / "names.json", "--out", tmp_path / "r", "--no-curve"
    )
    assert result.exit_code == 0, result.stderr


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(probe, noisy_squares, tmp_path, run):
    (tmp_path / "file").touch()
    result = run("eval", probe, noisy_squares, "--out", tmp_path / "file" / "report")
    assert result.exit_code == 1 and "is not a folder that you may write to" in result.stderr


def test_a_path_without_a_model_is_refused(noisy_squares, tmp_path, run):
    result = run("eval", tmp_path / "nothing", noisy_squares)
    assert result.exit_code == 1 and "there is no folder" in result.stderr
    (tmp_path / "model.onnx").touch()
    result = run("eval", tmp_path / "model.onnx", noisy_squares)
    assert result.exit_code == 1 and "model.onnx can't be opened by ONNX Runtime" in result.stderr


def test_record_writes_the_figures_into_the_model(probe, noisy_squares, tmp_path, run):
    model = shutil.copytree(probe, tmp_path / "model")
    result = run("eval", model, noisy_squares, "--out", tmp_path / "r", "--no-curve", "--record")
    assert result.exit_code == 0, result.stderr
    assert f"{model / 'README.md'}, {model / 'config.json'}" in result.stdout
    assert json.loads((model / "config.json").read_text())["provenance"]["evaluation"]["model"]["accuracy"] == 1.0
    assert "| this model (`linear-probe`) | 100.0 |" in (model / "README.md").read_text()
    (model / "README.md").write_text("# Mine")
    again = run("eval", model, noisy_squares, "--out", tmp_path / "r", "--no-curve", "--record")
    assert again.exit_code == 0 and "was written by a person and is not changed" in again.stderr
    assert "evaluation" not in json.loads((probe / "config.json").read_text())["provenance"]


@pytest.fixture
def exported(probe, tmp_path):
    """An exported file of the model."""
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.export import export_model

    return export_model(FewShotClassifier.load(probe), tmp_path / "probe.onnx").path


def test_an_exported_file_is_measured_as_its_model(exported, probe, noisy_squares, test_copy, tmp_path, run):
    (test_copy / "red" / "broken.png").write_text("no picture")
    model = json.loads(run("eval", probe, noisy_squares, "--no-curve", "--json", "--out", tmp_path / "one").stdout)
    result = run("eval", exported, test_copy, "--parity", probe, "--json", "--out", tmp_path / "two")
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["n_test"] == 6 and [skipped["path"][-10:] for skipped in figures["skipped"]] == ["broken.png"]
    for name in ("accuracy", "log_loss", "calibration_error"):
        assert figures[name] == pytest.approx(model["model"][name], abs=1e-5)
    assert figures["parity"]["agreement"] == 1.0 and figures["parity"]["cosine_least"] > 0.9999
    written = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert written == {name: value for name, value in figures.items() if name != "files"}
    text = run("eval", exported, noisy_squares, "--out", tmp_path / "three").stdout
    assert text.startswith("6 pictures of noisy") and "compared" not in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "is an exported file: give DATA"),
        (("DATA", "--record"), "leave out --record"),
        (("DATA", "--precision", "bf16"), "contains its encoder as it was exported"),
    ],
)
def test_what_an_exported_file_can_not_be_asked(options, words, exported, noisy_squares, tmp_path, run):
    arguments = [noisy_squares if option == "DATA" else option for option in options]
    result = run("eval", exported, *arguments, "--out", tmp_path / "report")
    assert result.exit_code != 0 and words in result.stderr


def test_parity_needs_an_exported_file_and_its_model(exported, probe, noisy_squares, model, tmp_path, run):
    result = run("eval", probe, noisy_squares, "--parity", probe, "--out", tmp_path / "report")
    assert result.exit_code == 2 and "--parity needs an exported file" in result.stderr
