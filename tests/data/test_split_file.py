import json

import pytest

from clipadapter.data.sets.layouts import missing_pictures, read_split
from clipadapter.errors import DataError

SPLIT = {
    "train": [["b/2.jpg", 1, "ant"], ["a/1.jpg", 0, "zebra"], ["a/0.jpg", 0, "zebra"]],
    "val": [["b/3.jpg", 1, "ant"]],
    "test": [["a/4.jpg", 0, "zebra"], ["c d/5.jpg", 2, "Big cat"]],
}


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_rows_keep_their_order_and_classes_the_order_of_their_labels(tmp_path):
    samples, names = read_split(written(tmp_path / "split.json", SPLIT), tmp_path / "images")
    assert names == ("zebra", "ant", "Big cat")
    assert [(s.path.relative_to(tmp_path / "images").as_posix(), s.label, s.split) for s in samples] == [
        ("b/2.jpg", "ant", "train"),
        ("a/1.jpg", "zebra", "train"),
        ("a/0.jpg", "zebra", "train"),
        ("b/3.jpg", "ant", "val"),
        ("a/4.jpg", "zebra", "test"),
        ("c d/5.jpg", "Big cat", "test"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"train": [["a/1.jpg", 0, "a"],', r"line 1, character \d+: not JSON .*; download the file again"),
        (b"caf\xe9", r"not UTF-8 \(byte 3\)"),
        (b"[" * 100_000, "nested more than 100 deep"),
        ([], "expected an object with train, val and test, got: list"),
        ({"train": [], "dev": []}, "expected an object with train, val and test, got: train, dev"),
        ({"train": [["a.jpg", 0, "a"]]}, "expected an object with train, val and test, got: train"),
        ({"train": SPLIT["train"], "test": []}, "test must be a list of rows"),
        ({"train": {"a": 1}, "test": []}, "train must be a list of rows"),
        (
            {"train": [["a.jpg", 0]], "test": []},
            r"row 0 of train must be \[path, label, class name\], got \['a.jpg', 0\]",
        ),
        (
            {"train": [["/etc/a.jpg", 0, "a"]], "test": []},
            "row 0 of train: the path must be inside the folder.*'/etc/a.jpg'",
        ),
        ({"train": [["a/../../b.jpg", 0, "a"]], "test": []}, "the path must be inside the folder"),
        ({"train": [["..\\b.jpg", 0, "a"]], "test": []}, "the path must be inside the folder"),
        ({"train": [["C:\\b.jpg", 0, "a"]], "test": []}, "the path must be inside the folder"),
        ({"train": [["b.jpg\0", 0, "a"]], "test": []}, "the path must be inside the folder"),
        ({"train": [[7, 0, "a"]], "test": []}, "the path must be inside the folder of the pictures, got 7"),
        ({"train": [["a.jpg", True, "a"]], "test": []}, "the label must be an integer of at least 0, got True"),
        ({"train": [["a.jpg", -1, "a"]], "test": []}, "the label must be an integer of at least 0, got -1"),
        ({"train": [["a.jpg", 0, " "]], "test": []}, "the class name must be a string that is not empty, got ' '"),
        (
            {"train": [["a.jpg", 0, "a"]], "test": [["b.jpg", 0, "b"]]},
            "row 0 of test gives label 0 the name 'b', but an earlier row 'a'",
        ),
        ({"train": [["a.jpg", 0, "a"]], "test": [["b.jpg", 1, "a"]]}, "two labels have the same class name: a"),
    ],
)
def test_a_damaged_split_file_says_where(tmp_path, content, message):
    with pytest.raises(DataError, match=r"split\.json.*" + message):
        read_split(written(tmp_path / "split.json", content), tmp_path)


def test_a_missing_or_too_large_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.json can't be opened: No such file"):
        read_split(tmp_path / "none.json", tmp_path)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(DataError, match="has 300 MiB, but at most 256 MiB are read"):
        read_split(tmp_path / "large.json", tmp_path)


def test_a_link_that_leads_out_is_no_picture(tmp_path, put):
    root = tmp_path / "pictures"
    there, outside = put(root / "a/1.jpg"), put(tmp_path / "secret/2.jpg")
    (root / "out.jpg").symlink_to(outside)
    (root / "in.jpg").symlink_to(there)
    (root / "out").symlink_to(outside.parent)
    paths = [there, root / "in.jpg", root / "out.jpg", root / "out/2.jpg", root / "a", root / "none/3.jpg"]
    assert missing_pictures(paths, root) == paths[2:]


def test_the_folder_of_the_pictures_may_be_a_link_itself(tmp_path, put):
    put(tmp_path / "disk/a/1.jpg")
    (tmp_path / "images").symlink_to(tmp_path / "disk")
    assert missing_pictures([tmp_path / "images/a/1.jpg"], tmp_path / "images") == []
