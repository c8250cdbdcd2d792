import json

import pytest

from clipadapter.data import scan
from clipadapter.errors import DataError


def test_scan_counts_names_and_warns(tmp_path, put):
    for part, label, count in (("train", "cat", 5), ("train", "dog", 1), ("test", "cat", 1)):
        for i in range(count):
            put(tmp_path / part / label / f"{i}.png", value=len(part) * 20 + len(label) * 10 + i + (label == "dog") * 9)
    same = (tmp_path / "train/cat/0.png").read_bytes()
    (tmp_path / "train/dog/0.png").write_bytes(same)
    (tmp_path / "test/cat/0.png").write_bytes(same)
    (tmp_path / "train/dog/cut.jpg").write_bytes(b"")
    (tmp_path / "train/dog/note.txt").write_text("x")
    report = scan(tmp_path)
    assert report.splits == ("train", "test")
    assert report.readable == 7 and report.unlabelled == 0
    assert report.classes == {"cat": {"train": 5, "test": 1}, "dog": {"train": 1, "test": 0}}
    assert report.imbalance == (1, 5)
    assert report.unreadable == (("train/dog/cut.jpg", "file is empty"),)
    assert report.left_out == (("train/dog/note.txt", "not an image file"),)
    [group] = report.duplicates
    assert group.paths == ("train/cat/0.png", "train/dog/0.png", "test/cat/0.png")
    assert group.labels == ("cat", "dog", "cat") and group.splits == ("train", "train", "test")
    assert report.warnings == (
        "1 of 8 pictures can't be read.",
        "The classes are unequal in train: 'dog' has 1 and 'cat' has 5 pictures.",
        "1 of 2 classes have no readable picture in test: dog.",
        "Equal files in more than one class: 1.",
        "Equal files in more than one of train, test: 1.",
    )
    assert json.loads(json.dumps(report.to_dict()))["classes"] == report.classes


def test_equal_files_of_one_class_and_part_are_no_finding_and_sets_that_load_refuses_are_reported(tmp_path, put):
    for name, value in (("cat/1.png", 1), ("cat/2.png", 1), ("dog/1.png", 2)):
        put(tmp_path / "equal" / name, value=value)
    report = scan(tmp_path / "equal")
    assert report.duplicates == () and report.warnings == ()
    for name, start in (
        ("empty", "There are no pictures."),
        ("flat", "No picture has a label"),
        ("one", "There is only one class, 'cat'"),
    ):
        (tmp_path / name).mkdir()
        if name != "empty":
            put(tmp_path / name / ("cat/1.png" if name == "one" else "1.png"))
        assert scan(tmp_path / name).warnings[0].startswith(start)
    with pytest.raises(DataError, match="there is no folder"):
        scan(tmp_path / "none")
