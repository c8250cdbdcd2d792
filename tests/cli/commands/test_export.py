import json

import pytest

from clipadapter.runtime import Predictor


@pytest.fixture(scope="module")
def written(squares, model, tmp_path_factory, run):
    """What the command said, and the file."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    result = run("export", model, "--out", path)
    assert result.exit_code == 0, result.stderr
    return result, path


def test_predict_takes_the_file(squares, written, run):
    result = run("predict", written[1], squares / "red" / "0.png", squares / "blue" / "1.png", "--json")
    assert [json.loads(line)["label"] for line in result.stdout.splitlines()] == ["red", "blue"]


def test_json(model, tmp_path, run):
    path = tmp_path / "other.xml"
    result = run("export", model, "--format", "openvino", "--input", "float", "--out", path, "--json", "-q")
    found = json.loads(result.stdout)
    assert (found["path"], found["format"], found["input"]) == (str(path), "openvino", "float")
    assert found["files"] == [str(path.with_suffix(".bin")), str(path)]
    assert (found["parity"]["agreement"], found["notes"], result.stderr) == (1.0, [], "")
    assert Predictor(path).metadata.input == "float"


@pytest.mark.parametrize(("kind", "name"), [("onnx", "mine.onnx"), ("openvino", "mine.xml")])
def test_the_default_file_is_beside_the_model(kind, name, squares, tmp_path, run):
    assert run("fit", squares, "--out", tmp_path / "mine", "--encoder", "toy", "--head", "prototype").exit_code == 0
    assert run("export", tmp_path / "mine", "--format", kind).exit_code == 0
    assert (tmp_path / name).is_file()


def test_pictures_of_a_folder(squares, model, tmp_path, run):
    result = run("export", model, "--out", tmp_path / "m.onnx", "--pictures", squares / "red", "--json")
    assert json.loads(result.stdout)["parity"]["pictures"] == "given"
    assert json.loads(result.stdout)["parity"]["n"] == 4


def test_missing_shots_are_reported(write_squares, tmp_path, run):
    shots = write_squares(tmp_path / "shots")
    assert run("fit", shots, "--out", tmp_path / "model", "--encoder", "toy").exit_code == 0
    for path in shots.rglob("*.png"):
        path.unlink()
    result = run("export", tmp_path / "model", "--out", tmp_path / "m.onnx")
    assert "compared on random pictures, since the shots of the model are not on this machine" in result.stderr
    result = run("export", tmp_path / "model", "--out", tmp_path / "m.onnx", "--precision", "int8")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--pictures FOLDER" in result.stderr


def test_sets_that_are_left_out_are_a_warning(noisy_squares, tmp_path, run):
    data, model = noisy_squares / "train", tmp_path / "model"
    options = ["--encoder", "toy", "--head", "prototype", "--coverage", 0.7, "--sets", "cv+"]
    assert run("fit", data, "--out", model, *options).exit_code == 0
    result = run("export", model, "--out", tmp_path / "m.onnx")
    assert "warning: the file gives no sets of classes" in result.stderr


def test_wrong_output_paths_are_refused(squares, model, tmp_path, run):
    for arguments, words in (
        (["--out", tmp_path], f"{tmp_path} is a folder: give a file, such as {tmp_path / 'model.onnx'}"),
        (["--out", tmp_path / "model.pt"], "give a name that ends with .onnx"),
        (
            ["--format", "openvino", "--out", tmp_path / "m.onnx"],
            "does not end with .xml: give --format onnx",
        ),
        (["--out", tmp_path / "m.onnx", "--pictures", tmp_path / "gone"], "no folder or file"),
        (["--out", squares / "red/0.png/m.onnx"], "0.png is not a folder that you may write to; give another name"),
    ):
        result = run("export", model, *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in result.stderr
    assert not list(tmp_path.iterdir())
    assert "holds no model" in run("export", tmp_path, "--out", tmp_path / "m.onnx").stderr


def test_a_head_that_cannot_be_exported_is_refused_with_a_reason(noisy_squares, tmp_path, run):
    model = tmp_path / "model"
    options = ["--encoder", "toy", "--head", "cocoop", "--set", "epochs=1", "--calibration", "none"]
    done = run("fit", noisy_squares / "train", "--out", model, *options)
    assert done.exit_code == 0, done.stderr
    result = run("export", model, "--out", tmp_path / "m.onnx")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "CoCoOp is no fixed function of features" in result.stderr
