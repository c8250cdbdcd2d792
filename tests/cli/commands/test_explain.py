import json

from PIL import Image


def test_a_picture_is_written(squares, model, tmp_path, run):
    target = tmp_path / "new" / "why.png"
    result = run("explain", model, squares / "red" / "0.png", "--out", target)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith(f"wrote {target}\n")
    with Image.open(target) as image:
        assert image.format == "PNG"
    found = json.loads(run("explain", model, squares / "red" / "0.png", "--out", target, "--json").stdout)
    assert found["files"] == [str(target)]


def test_an_unknown_class_gets_a_suggestion(squares, model, run):
    result = run("explain", model, squares / "red" / "0.png", "--class", "bleu")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Did you mean 'blue'?" in result.stderr


def test_a_picture_that_cant_be_read(model, tmp_path, run):
    result = run("explain", model, tmp_path / "gone.png")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("gone.png: no such file\n")
    (tmp_path / "photo.png").touch()
    meant = tmp_path / "photo.png"
    assert f": no such file. Did you mean '{meant}'?\n" in run("explain", model, tmp_path / "phot.png").stderr


def test_a_path_that_is_no_model_is_refused(squares, tmp_path, run):
    assert "holds no model" in run("explain", tmp_path, squares / "red" / "0.png").stderr
