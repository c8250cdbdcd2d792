import json
from pathlib import Path

from PIL import Image


def test_the_text_has_the_leading_class_and_the_nearest_shots(squares, model, tmp_path, run):
    path = squares / "red" / "0.png"
    result = run("explain", model, path)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == str(path)
    assert lines[1].startswith("It is classified as 'red'")
    assert lines[2].startswith("'red' leads '")
    assert lines[3].startswith("Of that, class text gives +")
    assert "nearest shot" in result.stdout
    assert "heat map" not in result.stderr  # none is drawn
    drawn = run("explain", model, path, "--out", tmp_path / "why.png")
    assert "no heat map: toy has no features of parts of a picture" in drawn.stderr


def test_json(squares, model, run):
    result = run("explain", model, squares / "green" / "1.png", "--json", "--neighbours", 2, "-q")
    found = json.loads(result.stdout)
    assert (found["prediction"]["label"], found["explained"], len(found["nearest_shots"])) == ("green", "green", 2)
    near = found["nearest_shots"][0]
    assert (near["label"], Path(near["source"]).parent) == ("green", squares / "green")
    assert "files" not in found
    assert result.stderr == ""


def test_a_picture_is_written(squares, model, tmp_path, run):
    target = tmp_path / "new" / "why.png"
    result = run("explain", model, squares / "red" / "0.png", "--out", target)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith(f"wrote {target}\n")
    with Image.open(target) as image:
        assert image.format == "PNG"
    found = json.loads(run("explain", model, squares / "red" / "0.png", "--out", target, "--json").stdout)
    assert found["files"] == [str(target)]


def test_another_class(squares, model, run):
    result = run("explain", model, squares / "red" / "0.png", "--class", "blue")
    assert "'blue' is behind 'red'" in result.stdout


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
