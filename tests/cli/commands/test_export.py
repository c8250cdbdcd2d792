import pytest


@pytest.mark.parametrize(("kind", "name"), [("onnx", "mine.onnx"), ("openvino", "mine.xml")])
def test_the_default_file_is_beside_the_model(kind, name, squares, tmp_path, run):
    assert run("fit", squares, "--out", tmp_path / "mine", "--encoder", "toy", "--head", "prototype").exit_code == 0
    assert run("export", tmp_path / "mine", "--format", kind).exit_code == 0
    assert (tmp_path / name).is_file()


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


def test_a_head_that_cannot_be_exported_is_refused_with_a_reason(noisy_squares, tmp_path, run):
    model = tmp_path / "model"
    options = ["--encoder", "toy", "--head", "cocoop", "--set", "epochs=1", "--calibration", "none"]
    done = run("fit", noisy_squares / "train", "--out", model, *options)
    assert done.exit_code == 0, done.stderr
    result = run("export", model, "--out", tmp_path / "m.onnx")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "CoCoOp is no fixed function of features" in result.stderr
