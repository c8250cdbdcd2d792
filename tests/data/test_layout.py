"""Folders above the folders of classes are not learned as classes; nested folders of a class are."""

import warnings

import pytest

from clipadapter.data import load_dataset, scan
from clipadapter.data.load import load_labelled
from clipadapter.errors import DataWarning, LayoutError

NUMBERED = ("session1", "session2")
LEGITIMATE = {
    "flat classes": ["cat/1.jpg", "dog/1.jpg"],
    "sessions": [f"{name}/{session}/1.jpg" for name in ("cat", "dog") for session in NUMBERED],
    "days": [f"{name}/{day}/1.jpg" for name in ("cat", "dog") for day in ("2026-05-01", "2026-05-02")],
    "kinds of each class": ["cat/tabby/1.jpg", "cat/siamese/1.jpg", "dog/poodle/1.jpg", "dog/beagle/1.jpg"],
    "a class of vehicles": ["train/steam/1.jpg", "train/diesel/1.jpg", "car/sedan/1.jpg", "car/suv/1.jpg"],
    "sessions of a class of vehicles": [f"{name}/{s}/1.jpg" for name in ("train", "car") for s in NUMBERED],
    "a class called test": ["test/1.jpg", "cat/1.jpg"],
    "pictures and folders": ["shots/1.jpg", "shots/cat/1.jpg", "shots/dog/1.jpg", "other/1.jpg"],
    "one folder in each": ["shots/cat/1.jpg", "test/cat/1.jpg"],
    "a class called test in a split": ["train/test/1.jpg", "train/cat/1.jpg"],
    "splits": ["train/cat/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg", "test/dog/1.jpg"],
}
MISTAKES = {
    "shots and test": (["shots", "test"], "shots"),
    "test and shots of another spelling": (["Shots", "Test"], "Shots"),
    "images and labels of other programs": (["images", "data"], "data"),
    "shots beside pictures without classes": (["shots"], "shots"),
    "train beside folders with the same classes": (["train", "photos"], "train"),
}


def write(root, put, names):
    for name in names:
        put(root / name)
    return root


def both(*tops):
    """A picture of each of two classes in each of some folders."""
    return [f"{top}/{name}/1.jpg" for top in tops for name in ("cat", "dog")]


@pytest.mark.filterwarnings("ignore:classes with the name of a part of the data")
@pytest.mark.parametrize("case", LEGITIMATE)
def test_nested_folders_belong_to_their_class(tmp_path, put, case):
    names = LEGITIMATE[case]
    dataset = load_dataset(write(tmp_path, put, names))
    assert len(dataset.samples) == len(names)
    if "split" not in case:
        assert dataset.class_names == tuple(sorted({name.split("/")[0] for name in names}))


@pytest.mark.parametrize("case", MISTAKES)
def test_folders_of_class_folders_are_no_classes(tmp_path, put, case):
    tops, meant = MISTAKES[case]
    write(tmp_path, put, [*both(*tops), "new/1.jpg"])
    with pytest.raises(LayoutError, match=rf"hold.? only folders \(cat, dog\): give the folder .*/{meant}'") as caught:
        load_dataset(tmp_path)
    assert caught.value.folders[0] == tmp_path / meant
    assert len(load_dataset(tmp_path / meant).samples) == 2


def test_the_folder_that_is_meant_has_the_name_of_the_wanted_split_and_is_named_as_it_was_given(
    tmp_path, put, monkeypatch
):
    write(tmp_path, put, both("shots", "test"))
    for default, meant in ((None, "shots"), ("train", "shots"), ("test", "test")):
        with pytest.raises(LayoutError) as caught:
            load_labelled(tmp_path, default=default)
        assert caught.value.folders[0].name == meant
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = scan(tmp_path)  # does not fail
    assert any(text.endswith(f"Did you mean '{tmp_path / 'shots'}'?") for text in report.warnings)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LayoutError, match="^'shots' and 'test' are taken for classes, but hold only folders"):
        load_dataset(".")


@pytest.mark.parametrize(
    ("names", "meant", "words"),
    [
        (both("animals"), ["animals"], "give the folder that has the classes, '.*animals'"),
        (both("pets/photos"), ["pets/photos"], "give the folder"),  # a chain of folders counts as its last
        (both("Training/Training", "Testing/Testing"), ["Training/Training", "Testing/Testing"], "give the folder"),
        (both(".", "held out"), [], r"'.*held out' .* names of the classes beside it \(cat, dog\)\. Move it"),
    ],
    ids=["only", "chain", "chains", "beside"],
)
def test_the_folder_that_has_the_classes_is_named(tmp_path, put, names, meant, words):
    with pytest.raises(LayoutError, match=words) as caught:
        load_dataset(write(tmp_path, put, names))
    assert caught.value.folders == tuple(tmp_path / name for name in meant)
    if meant == ["animals"]:
        assert load_dataset(tmp_path, one_class=True).class_names == ("animals",)


@pytest.mark.parametrize(
    ("given", "inner", "beside"),
    [("data", "data/train/test", "data/test"), ("data/train", "data/train/val", "data/val"), ("a", "a/test", "a-test")],
)
def test_a_split_below_classes_is_refused_with_the_line_that_moves_it(tmp_path, put, given, inner, beside):
    above = inner.rpartition("/")[0]
    write(tmp_path, put, both(above, inner))
    with pytest.raises(LayoutError, match="is taken for a class") as caught:
        load_dataset(tmp_path / given)
    assert str(caught.value).endswith(f"Move it, and repeat the command: mv {tmp_path / inner} {tmp_path / beside}")
    (tmp_path / beside).mkdir()  # mv would move into it
    with pytest.raises(LayoutError, match="is taken for a class|holds the splits") as caught:
        load_dataset(tmp_path / given)
    assert f"mv {tmp_path / inner} {tmp_path / beside}-2" in str(caught.value)


def test_splits_inside_a_split_are_refused_with_the_folder_that_has_them(tmp_path, put):
    write(tmp_path, put, both("train/train", "train/test"))
    with pytest.raises(LayoutError, match=r"is a split, but holds the splits test, train: give the folder .*train'"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path / "train").class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "words", "told"),
    [
        (["Red cup", "dish", "glass", "red_cups"], "differ in case, spaces or plural only", ["Red cup and red_cups"]),
        (["Test", "cat", "dog"], "with the name of a part of the data", ["Test"]),
        (["train/Test", "train/cat", "train/dog"], "with the name of a part of the data", ["Test"]),
        (["photo/a", "photo/b", "sketch/a", "sketch/b"], "hold only folders of the same names", ["photo", "sketch"]),
    ],
    ids=["spelling", "split", "split in a split", "same folders"],
)
def test_names_that_may_be_a_mistake_are_classes_with_a_warning(tmp_path, put, names, words, told):
    write(tmp_path, put, [f"{name}/1.jpg" for name in names])
    with pytest.warns(DataWarning, match=words) as caught:
        found = load_dataset(tmp_path).class_names
    assert found == tuple(sorted({name.removeprefix("train/").split("/")[0] for name in names}))
    assert [name.removeprefix(f"{tmp_path}/") for name in caught[0].message.names] == told
