"""What the objects of the Python interface show of themselves in a terminal and in a notebook."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from clipadapter import FeatureSet, FewShotClassifier, create_head, load_dataset
from clipadapter.bench import evaluate_model
from clipadapter.persistence import record_evaluation

HOSTILE = "<script>alert(1)</script>"


def picture(colour, number):
    return np.full((12, 12, 3), np.array(colour) + number, np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes, one with a hostile name, in two splits; one file is no picture."""
    root = tmp_path_factory.mktemp("pictures") / "pets"
    for name, colour in ((HOSTILE.replace("/", "\u2215"), (220, 30, 30)), ("cat", (30, 30, 220))):
        for split, number in (("train", 0), ("train", 1), ("test", 2)):
            path = root / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(colour, number)).save(path)
    (root / "test" / "cat" / "bad.png").write_bytes(b"")
    return root


@pytest.fixture
def model(folder):
    return FewShotClassifier("toy", "linear-probe", cache=None).fit(folder)


class Page(HTMLParser):
    """The tags and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]


def test_a_classifier_says_encoder_head_classes_and_shots(model):
    assert repr(FewShotClassifier("toy")) == "<FewShotClassifier: encoder toy, head auto, not fitted>"
    first, classes = "<FewShotClassifier: encoder toy, head linear-probe, ", HOSTILE.replace("/", "\u2215") + ", cat"
    assert repr(FewShotClassifier("toy", create_head("linear-probe", C=5.0))) == f"{first}not fitted>"
    assert repr(model) == f"{first}fitted to 2 classes ({classes}), 4 shots (2 per class)>"


def test_of_many_classes_the_first_three_are_named():
    names = tuple(f"class {i:03}" for i in range(150))
    features = FeatureSet(np.ones((150, 4)), names, names)
    assert " of 150 classes (class 000, class 001, class 002 and 147 more), " in repr(features)
    assert "and 130 more" in features._repr_html_()


def test_the_accuracy_is_that_of_the_last_evaluation_or_of_its_folder_until_the_model_changes(model, folder, tmp_path):
    saved, accuracy = model.save(tmp_path / "model"), "accuracy 100.0 % on 2 pictures of pets>"
    assert "accuracy" not in repr(model) + repr(FewShotClassifier.load(saved, cache=None))
    measured = evaluate_model(model, load_dataset(folder).split("test"), curve=False)
    record_evaluation(saved, measured.to_dict())
    loaded = FewShotClassifier.load(saved, cache=None)
    assert repr(loaded).endswith(accuracy)
    loaded.support_.provenance["evaluation"]["model"] = 5  # as in a folder that somebody else made
    assert "accuracy" not in repr(loaded)
    model.evaluate(folder)
    assert repr(model).endswith(accuracy)
    bare = FewShotClassifier.load(model.save(tmp_path / "bare", support=False), cache=None)
    assert "4 shots (2 per class)" in repr(bare)
    model.add_examples(folder / "test")
    assert "accuracy" not in repr(model)


def test_a_dataset_says_its_pictures_classes_and_splits(folder):
    assert repr(load_dataset(folder)).endswith("cat); train 4, test 3>")
    assert repr(load_dataset(folder / "train")).endswith("cat)>")
    assert "of no class" in repr(load_dataset(folder / "train" / "cat"))


def test_html_for_notebooks_escapes_names_and_loads_no_other_file(model, folder):
    dataset = load_dataset(folder)
    result = model.evaluate(dataset.paths[:2], [dataset.class_names[0]] * 2)
    for shown in (dataset, model, model.support_, result):
        page = Page(shown._repr_html_())
        assert not {"script", "link", "style"} & set(page.tags)
        assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)


def test_a_notebook_shows_pictures_of_a_dataset_and_of_errors_without_unreadable_ones(model, folder):
    dataset = load_dataset(folder)
    assert Page(dataset._repr_html_()).tags.count("img") == 6  # of 7 files, one of which is empty
    wrong = model.evaluate(dataset.split("test").paths[:1], ["cat"])
    assert Page(wrong._repr_html_()).tags.count("img") == 1
    assert re.search(r"most confident errors.*cat", wrong._repr_html_())


def test_a_picture_that_was_moved_is_an_error_without_a_thumbnail(model, tmp_path):
    path = tmp_path / "moved.png"
    Image.fromarray(picture((220, 30, 30), 3)).save(path)
    result = model.evaluate([path], ["cat"])
    path.unlink()
    assert "img" not in Page(result._repr_html_()).tags and "moved.png" in result._repr_html_()


def test_feature_sets_say_width_views_and_encoder(model):
    assert repr(model.support_).endswith(f"{model.support_.X.shape[1]} features each, from the encoder toy>")
    views = FeatureSet(np.ones((2, 3, 4)), ("a", "b"), ("a", "b"))
    assert repr(views) == "<FeatureSet: 2 pictures in 3 views of 2 classes (a, b), 4 features each>"
