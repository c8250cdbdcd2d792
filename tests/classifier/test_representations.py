"""What the objects of the Python interface show of themselves in a terminal and in a notebook."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from clipadapter import FeatureSet, FewShotClassifier, create_head, load_dataset
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


def objects(model, folder):
    dataset = load_dataset(folder)
    return [dataset, model, model.support_, model.evaluate(dataset.paths[:2], [dataset.class_names[0]] * 2)]


def test_a_classifier_says_encoder_head_and_whether_it_is_fitted():
    assert repr(FewShotClassifier("toy")) == "<FewShotClassifier: encoder toy, head auto, not fitted>"
    head = create_head("linear-probe", C=5.0)
    assert repr(FewShotClassifier("toy", head)) == "<FewShotClassifier: encoder toy, head linear-probe, not fitted>"


def test_a_fitted_classifier_says_its_classes_and_shots(model):
    hostile = HOSTILE.replace("/", "\u2215")
    assert repr(model) == (
        "<FewShotClassifier: encoder toy, head linear-probe, "
        f"fitted to 2 classes ({hostile}, cat), 4 shots (2 per class)>"
    )


def test_of_many_classes_the_first_three_are_named():
    names = tuple(f"class {i:03}" for i in range(150))
    features = FeatureSet(np.ones((150, 4)), names, names)
    assert repr(features) == (
        "<FeatureSet: 150 pictures of 150 classes (class 000, class 001, class 002 and 147 more), 4 features each>"
    )
    assert "and 130 more" in features._repr_html_()


def test_the_accuracy_is_that_of_the_last_evaluation_until_the_model_changes(model, folder):
    assert "accuracy" not in repr(model)
    model.evaluate(folder)
    assert repr(model).endswith("accuracy 100.0 % on 2 pictures of pets>")
    model.add_examples(folder / "test")
    assert "accuracy" not in repr(model)


def test_a_loaded_model_says_the_accuracy_that_its_folder_records(model, folder, tmp_path):
    from clipadapter.bench import evaluate_model

    saved = model.save(tmp_path / "model")
    assert "accuracy" not in repr(FewShotClassifier.load(saved, cache=None))
    measured = evaluate_model(model, load_dataset(folder).split("test"), curve=False)
    record_evaluation(saved, measured.to_dict())
    assert repr(FewShotClassifier.load(saved, cache=None)).endswith("accuracy 100.0 % on 2 pictures of pets>")


def test_a_model_that_was_saved_without_shots_says_how_many_it_was_fitted_to(model, tmp_path):
    loaded = FewShotClassifier.load(model.save(tmp_path / "model", support=False), cache=None)
    assert "4 shots (2 per class)" in repr(loaded)


def test_a_dataset_says_its_pictures_classes_and_splits(folder):
    assert repr(load_dataset(folder)).endswith("cat); train 4, test 3>")
    assert repr(load_dataset(folder / "train")).endswith("cat)>")
    assert "of no class" in repr(load_dataset(folder / "train" / "cat"))


def test_html_for_notebooks_escapes_names_and_loads_no_other_file(model, folder):
    for shown in objects(model, folder):
        page = Page(shown._repr_html_())
        assert not {"script", "link", "style"} & set(page.tags)
        assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)


def test_a_notebook_shows_pictures_of_a_dataset_and_of_errors_without_unreadable_ones(model, folder):
    dataset, _, _, result = objects(model, folder)
    assert Page(dataset._repr_html_()).tags.count("img") == 6  # of 7 files, one of which is empty
    assert [true for _, true, _, _ in result.errors] == []
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
