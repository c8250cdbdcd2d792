"""Commands that change a model: each writes its next version, and says what it did."""

import getpass
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.cli.commands.edit import describe_change


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, noisy_squares, run):
    folder = tmp_path_factory.mktemp("changed") / "model"
    result = run("fit", noisy_squares, "--out", folder, "--encoder", "toy", "--head", "prototype", "--no-cache")
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def model(fitted, tmp_path):
    return shutil.copytree(fitted, tmp_path / "model")


@pytest.fixture
def yellow(tmp_path):
    """A folder with three yellow squares, no two alike, and a file that is no picture."""
    rng = np.random.default_rng(1)
    (tmp_path / "yellow").mkdir()
    for i in range(3):
        pixels = np.array([200, 200, 0]) + rng.integers(0, 40, (12, 12, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "yellow" / f"{i}.png")
    (tmp_path / "yellow" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "yellow"


def names(folder):
    return FewShotClassifier.load(folder, cache=None).class_names_


def test_an_added_class_is_predicted(model, yellow, run):
    result = run("add-class", model, "yellow", yellow, "--no-cache")
    assert result.exit_code == 0, result.stderr
    assert "broken.png" in result.stderr
    assert "version 2" in result.stdout
    assert "3 new pictures" in result.stdout and "of 15 held-out pictures" in result.stdout
    assert f"clipadapter undo {model}" in result.stdout
    assert run("predict", model, yellow / "0.png", "--no-cache").stdout.startswith("yellow")


@pytest.mark.parametrize(
    ("action", "details", "text"),
    [
        (
            "add-examples",
            {"pictures": 1, "relabelled": 1, "known": 1},
            "1 new picture, 1 shot relabelled, 1 already known",
        ),
        ("add-examples", {"pictures": 2, "relabelled": 3}, "2 new pictures, 3 shots relabelled"),
        ("remove-class", {"class": "cat", "pictures": 1}, "'cat' and its 1 shot"),
        ("remove-class", {"class": "cat", "pictures": 2}, "'cat' and its 2 shots"),
    ],
)
def test_one_picture_is_a_picture_and_two_are_pictures(action, details, text):
    assert describe_change(SimpleNamespace(action=action, facts=details)).endswith(text)


def test_class_names_rename_folders_as_in_fit(noisy_squares, yellow, tmp_path, run):
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"red": "ruby", "blue": "sea"}))
    fit = ("fit", noisy_squares, "--out", tmp_path / "m", "--encoder", "toy", "--head", "prototype", "--no-cache")
    assert run(*fit, "--class-names", names).exit_code == 0
    shutil.copytree(yellow, tmp_path / "more" / "red")
    refused = run("add-examples", tmp_path / "m", tmp_path / "more", "--no-cache")
    assert refused.exit_code == 1 and "no class is called 'red'" in refused.stderr
    result = run("add-examples", tmp_path / "m", tmp_path / "more", "--class-names", names, "--no-cache", "--json")
    assert json.loads(result.stdout)["shots"] == {"sea": 4, "green": 4, "ruby": 7}
    both = run("add-examples", tmp_path / "m", yellow, "--class-names", names, "--label", "ruby")
    assert both.exit_code == 1 and "leave one out" in both.stderr


@pytest.mark.parametrize("inside", ["", "0.png"])
def test_pictures_without_a_class_are_refused_with_what_to_do(model, yellow, inside, run):
    result = run("add-examples", model, yellow / inside, "--no-cache")
    assert result.exit_code == 1
    assert "give --label NAME, or one folder per class" in result.stderr


def test_json_has_the_facts_and_who_did_it(model, yellow, run):
    found = json.loads(run("add-class", model, "yellow", yellow, "--by", "ada", "--json", "--no-cache").stdout)
    assert found["changed"] is True
    assert found["version"] == 2
    assert found["pictures"] == 3
    assert found["shots"] == {"blue": 4, "green": 4, "red": 4, "yellow": 3}
    assert found["accuracy"]["shots"] == 15
    history = FewShotClassifier.load(model, cache=None).history_.changes
    assert [change.by for change in history] == ["", "ada"]
    run("rename-class", model, "yellow", "gold", "--no-cache")
    assert FewShotClassifier.load(model, cache=None).history_.changes[-1].by == getpass.getuser()


def test_known_pictures_of_a_growing_folder_are_left_out(model, noisy_squares, yellow, tmp_path, run):
    data = shutil.copytree(noisy_squares, tmp_path / "data")
    again = run("add-examples", model, data, "--no-cache")
    assert again.exit_code == 0, again.stderr
    assert "nothing changed" in again.stdout
    shutil.copy(yellow / "0.png", data / "train" / "red" / "new.png")
    found = json.loads(run("add-examples", model, data, "--json", "--no-cache").stdout)
    assert (found["pictures"], found["known"]) == (1, 12)
    assert found["shots"]["red"] == 5


def test_pictures_alone_are_added_with_a_label(model, yellow, run):
    refused = run("add-examples", model, yellow / "0.png", "--no-cache")
    assert refused.exit_code == 1
    assert "--label" in refused.stderr
    found = json.loads(run("add-examples", model, yellow / "0.png", "--label", "red", "--json", "--no-cache").stdout)
    assert found["shots"]["red"] == 5


def test_a_shot_is_corrected_although_its_file_was_moved(model, noisy_squares, tmp_path, run):
    shutil.copy(noisy_squares / "train" / "red" / "0.png", tmp_path / "moved.png")
    found = json.loads(run("correct", model, tmp_path / "moved.png", "--label", "blue", "--json", "--no-cache").stdout)
    assert found["relabelled"] == 1
    assert found["shots"] == {"blue": 5, "green": 4, "red": 3}


def test_a_class_whose_shots_all_moved_is_a_warning(model, noisy_squares, run):
    moved = run("add-class", model, "redd", noisy_squares / "train" / "red", "--no-cache")
    cure = f"undo the change, or remove the class with: clipadapter remove-class {model} red"
    assert f"class 'red' has no shots left: {cure}" in moved.stderr
    assert "no shots left" not in run("remove-class", model, "red", "--no-cache").stderr


def test_classes_are_renamed_and_removed(model, run):
    assert run("rename-class", model, "red", "crimson", "--no-cache").exit_code == 0
    result = run("remove-class", model, "blue", "--no-cache")
    assert "remove-class 'blue' and its 4 shots" in result.stdout
    assert names(model) == ("green", "crimson")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["add-class", "MODEL", "red", "YELLOW"], "there is a class 'red' already"),
        (["add-class", "MODEL", "gold", "nowhere"], "nowhere does not exist: give pictures"),
        (["add-class", "MODEL", "gold", "yelow"], "yelow does not exist. Did you mean 'yellow'? Give pictures"),
        (["add-class", "nowhere", "gold", "YELLOW"], "nowhere"),
        (["add-class", "MODEL", "gold", "YELLOW", "--strict"], "broken.png"),
        (["add-examples", "MODEL", "YELLOW", "--label", "rad"], "Did you mean 'red'"),
        (["correct", "MODEL", "YELLOW", "--label", "red", "--label", "blue"], "one class in this model"),
        (["remove-class", "MODEL", "pink"], "no class is called 'pink'"),
        (["rename-class", "MODEL", "red", "blue"], "there is a class 'blue' already"),
    ],
)
def test_what_can_not_be_is_one_line_and_leaves_the_model(args, words, model, yellow, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = (model / "config.json").read_bytes()
    result = run(*({"MODEL": model, "YELLOW": yellow}.get(arg, arg) for arg in args), "--no-cache")
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert (model / "config.json").read_bytes() == before


def test_a_model_whose_head_can_not_be_edited_is_refused_before_a_picture_is_read(
    squares, yellow, tmp_path, run, monkeypatch
):
    folder, common = tmp_path / "zlap", ("--encoder", "toy", "--no-cache", "--head", "zlap")
    assert run("fit", squares, "--out", folder, *common, "--unlabelled", yellow).exit_code == 0
    monkeypatch.setattr("clipadapter.features.extraction.read_image_shrunk", None)
    for args in (("add-class", folder, "gold", yellow), ("correct", folder, yellow, "--label", "red")):
        result = run(*args)
        assert result.exit_code == 1
        words = f"error: {folder} can't be changed: its head zlap needs pictures without labels for every change, and"
        assert result.stderr.startswith(words)


def test_a_model_without_shots_is_refused_before_a_picture_is_read(squares, yellow, tmp_path, run, monkeypatch):
    folder = tmp_path / "bare"
    common = ("--encoder", "toy", "--no-cache", "--head", "tip-adapter-f", "--set", "epochs=1")
    assert run("fit", squares, "--out", folder, *common, "--no-support").exit_code == 0
    monkeypatch.setattr("clipadapter.features.extraction.read_image_shrunk", None)
    result = run("add-class", folder, "gold", yellow)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "this model was saved without its shots (fit --no-support), so it can't be changed" in result.stderr


def test_an_exported_file_can_not_learn(tmp_path, yellow, run):
    (tmp_path / "model.onnx").write_bytes(b"")
    result = run("add-class", tmp_path / "model.onnx", "gold", yellow)
    assert result.exit_code == 1
    assert "can't be changed" in result.stderr
