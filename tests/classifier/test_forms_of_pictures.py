"""The forms in which `FewShotClassifier` takes pictures and labelled pictures."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from clipadapter import FewShotClassifier, load_dataset
from clipadapter.errors import DataError, ImageError, InputError

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pictures of each colour for training, and one for testing."""
    root = tmp_path_factory.mktemp("colours")
    for name, colour in COLOURS.items():
        for split, number in (("train", 0), ("train", 1), ("test", 2)):
            path = root / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((12, 12, 3), np.array(colour) + number, np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def model(folder):
    """Fitted to the folder itself."""
    return FewShotClassifier("toy", "linear-probe", cache=None).fit(folder)


BLUE = np.full((12, 12, 3), np.array(COLOURS["blue"]) + 2, np.uint8)
FORMS = {
    "str": str,
    "Path": lambda path: path,
    "folder": lambda path: path.parent,
    "PIL": lambda path: Image.fromarray(BLUE),
    "array": lambda path: BLUE,
    "array of one": lambda path: BLUE[None],
    "list": lambda path: [path],
    "generator": lambda path: iter([path]),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_one_picture_gives_one_row_in_every_form_and_method(model, folder, form):
    path = folder / "test" / "blue" / "2.png"
    assert model.predict(form(path)) == ["blue"]
    assert [answer.label for answer in model.classify(form(path))] == ["blue"]
    np.testing.assert_allclose(model.predict_proba(form(path)), model.predict_proba([path]), rtol=1e-5)
    assert model.logits(form(path)).shape == (1, 3)


def test_a_folder_gives_its_pictures_in_sorted_order_and_a_table_in_its_own(model, folder, tmp_path):
    assert model.predict(folder / "test") == ["blue", "green", "red"]
    assert model.predict(load_dataset(folder).split("test")) == ["blue", "green", "red"]
    table = tmp_path / "pictures.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["path"], *([folder / "test" / name / "2.png"] for name in ("red", "blue"))])
    assert model.predict(table) == ["red", "blue"]


def test_an_array_of_pictures_is_as_many_pictures_and_a_grey_one_is_one(model):
    pictures = np.stack([np.full((12, 12, 3), colour, np.uint8) for colour in COLOURS.values()])
    assert model.predict(pictures) == ["red", "green", "blue"]
    assert len(model.predict(pictures[..., 0])) == 3  # (m, h, w): grey pictures
    assert len(model.predict(pictures[0, ..., 0])) == 1


@pytest.mark.parametrize("features", [np.zeros((2, 512), np.float32), np.zeros(512), [0.5] * 512])
def test_features_in_place_of_pictures_are_refused(model, features):
    with pytest.raises(InputError, match=r"features go to head_\.predict") as refused:
        model.predict(features)
    assert len(str(refused.value)) < 200


def test_no_picture_gives_no_row(model):
    assert model.predict([]) == [] and model.classify([]) == []
    assert model.predict_proba([]).shape == model.logits([]).shape == (0, 3)


def test_features_are_evaluated_by_their_own_method(model, tmp_path):
    loaded = FewShotClassifier.load(model.save(tmp_path / "model"), cache=None)
    result = loaded.evaluate_features(loaded.support_)
    assert (result.n_test, result.among_shots, result.skipped) == (6, 6, ())
    with pytest.raises(InputError, match="go to fit_features or evaluate_features"):
        loaded.evaluate(loaded.support_)


def test_a_path_that_does_not_exist_and_a_folder_without_pictures_are_named(model, tmp_path):
    with pytest.raises(ImageError, match=r"no\.jpg: no such file"):
        model.predict(tmp_path / "no.jpg")
    with pytest.raises(DataError, match=f"there are no pictures in '{tmp_path}'"):
        model.predict(tmp_path)
    with pytest.raises(InputError, match="a picture can't be read from int"):
        model.predict(3)


def test_a_folder_is_fitted_by_its_training_split_and_evaluated_by_its_test_split(model, folder):
    assert model.class_names_ == ("blue", "green", "red")
    assert model.support_.counts == {"blue": 2, "green": 2, "red": 2}
    result = model.evaluate(folder)
    assert (result.data, result.n_test, result.among_shots, result.accuracy) == (folder.name, 3, 0, 1.0)
    assert model.evaluation_ is result


def test_score_is_the_accuracy_of_the_most_probable_classes(model, folder):
    paths = load_dataset(folder).split("test").paths
    assert model.score(folder / "test") == 1.0
    assert model.score(paths, ["blue", "green", "green"]) == pytest.approx(2 / 3)
    assert model.score(paths[0], "blue") == model.score(folder / "test" / "blue", ["blue"]) == 1.0


def test_a_folder_of_one_class_can_be_evaluated(model, folder, tmp_path):
    shutil.copytree(folder / "test" / "blue", tmp_path / "blue")
    assert model.score(tmp_path) == 1.0


def test_score_refuses_a_picture_that_cannot_be_read_and_evaluate_names_it(model, folder, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    paths, labels = [folder / "test" / "red" / "2.png", bad], ["red", "red"]
    assert model.evaluate(paths, labels).skipped == ((str(bad), "file is empty"),)
    with pytest.raises(ImageError, match=r"bad\.jpg: file is empty"):
        model.score(paths, labels)


def test_shots_among_the_evaluated_pictures_are_counted_and_said(model, folder):
    result = model.evaluate(folder / "train")
    assert result.among_shots == 6
    assert "6 of them are among the shots" in str(result)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (["a.jpg"], None, "labels are missing"),
        (["a.jpg", "b.jpg"], ["red"], "2 pictures but 1 label"),
        (["a.jpg"], ["mauve"], "no class of the model: mauve"),
        (["a.jpg"], [("red", "blue")], "several labels each, but the model gives one"),
    ],
)
def test_wrong_labels_are_refused_before_a_picture_is_opened(model, images, labels, message):
    with pytest.raises(InputError, match=message):
        model.evaluate(images, labels)


def test_an_evaluation_prints_what_the_command_prints_and_is_json(model, folder):
    paths = load_dataset(folder).split("test").paths
    result = model.evaluate(paths, ["blue", "green", "green"])
    lines = str(result).splitlines()
    assert lines[0] == "3 pictures"
    assert lines[2].split("  ")[:2] == ["accuracy %", "balanced accuracy %"]
    assert lines[3].split()[0] == "66.7"
    assert ["green", "2", "100.0", "50.0", "66.7"] in [line.split() for line in lines]
    assert lines[-1].split() == ["green", "red", "1"]
    facts = json.loads(json.dumps(result.to_dict()))
    assert facts["confusion"] == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert facts["accuracy"] == pytest.approx(2 / 3) and facts["confusions"] == [["green", "red", 1]]
    assert [one["name"] for one in facts["classes"]] == ["blue", "green", "red"]
    ((picture, true, predicted, probability),) = result.errors
    assert (picture, true, predicted) == (str(folder / "test" / "red" / "2.png"), "green", "red")
    assert probability == pytest.approx(model.predict_proba(picture)[0, 2])


def test_pictures_are_added_and_corrected_from_a_folder(folder, tmp_path):
    model = FewShotClassifier("toy", "linear-probe", cache=None).fit(folder)
    model.add_examples(folder / "test")
    assert model.support_.counts == {"blue": 3, "green": 3, "red": 3} and model.evaluation_ is None
    grey = tmp_path / "1.png"
    Image.fromarray(np.full((12, 12, 3), 128, np.uint8)).save(grey)
    assert model.add_class("grey", grey).support_.counts["grey"] == 1


def test_several_labels_are_evaluated_by_the_metrics_of_several_labels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (8, 12, 12, 3), dtype=np.uint8)
    labels = [("a",), ("b",), ("a", "b"), ()] * 2
    model = FewShotClassifier("toy", "linear-probe", cache=None).fit(images, labels)
    result = model.evaluate(images, labels)
    assert result.task == "multilabel" and result.confusion is None and result.errors == ()
    right = [set(said) == set(names) for said, names in zip(model.predict(images), labels, strict=True)]
    assert model.score(images, labels) == np.mean(right)
    assert "several labels each" in str(result) and "average precision" in result._repr_html_()
    with pytest.raises(InputError, match="the model gives several labels per picture"):
        model.evaluate(images, ["a"] * 8)
