import json

import pytest

from clipadapter.data import Dataset, draw_splits, read_draw
from clipadapter.data.split_file import missing_pictures, read_split
from clipadapter.errors import DataError

SPLIT = {
    "train": [["b/2.jpg", 1, "ant"], ["a/1.jpg", 0, "zebra"], ["a/0.jpg", 0, "zebra"]],
    "val": [["b/3.jpg", 1, "ant"]],
    "test": [["a/4.jpg", 0, "zebra"], ["c d/5.jpg", 2, "Big cat"]],
}
DRAW = {
    "train": {
        "indices": [2, 0],
        "data": [
            {"impath": "./data/set/a/0.jpg", "label": 0, "classname": "zebra"},
            {"impath": ".\\data\\set\\b\\2.jpg", "label": 1, "classname": "ant"},
        ],
    },
    "val": {"indices": [0], "data": [{"impath": "/x/b/3.jpg", "label": 1, "classname": "ant"}]},
}


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.fixture
def dataset(tmp_path):
    samples, names = read_split(written(tmp_path / "split.json", SPLIT), tmp_path)
    return Dataset("set", tmp_path, samples, names)


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


def test_a_published_draw_gives_its_rows(tmp_path, dataset):
    assert read_draw(written(tmp_path / "draw.json", DRAW), dataset) == ([2, 0], [0])
    assert read_draw(written(tmp_path / "draw.json", {"train": DRAW["train"]}), dataset) == ([2, 0], [])


def test_our_own_draw_written_as_published_comes_back(tmp_path, dataset):
    parts = {part: dataset.split(part) for part in ("train", "val")}
    rows = draw_splits(parts["train"].labels, parts["val"].labels, shots=1, seed=3)
    draw = {}
    for part, own in zip(parts, rows, strict=True):
        picked = [parts[part].samples[row] for row in own]
        data = [{"impath": f"./data/{s.path.name}", "label": 0, "classname": s.label} for s in picked]
        draw[part] = {"indices": own, "data": data}
    assert read_draw(written(tmp_path / "draw.json", draw), dataset) == rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": [2, 9]}, "train: row 9 is not one of the 3 rows of 'set'"),
        ({"indices": [2, -1]}, "train: row -1 is not one of the 3"),
        ({"indices": [2, True]}, "train: row True is not one of the 3"),
        ({"indices": [2]}, "two lists of equal length"),
        ({"indices": None}, "must have 'indices' and 'data'"),
        ({"data": [7, 7]}, "row 2 is '0.jpg' of class 'zebra' in 'set', but '"),
        (
            {"indices": [1, 0]},
            "row 1 is '1.jpg' of class 'zebra' in 'set', but '0.jpg' of class 'zebra' in the draw",
        ),
    ],
)
def test_a_draw_from_other_data_is_refused(tmp_path, dataset, change, message):
    path = written(tmp_path / "draw.json", {**DRAW, "train": {**DRAW["train"], **change}})
    with pytest.raises(DataError, match=message):
        read_draw(path, dataset)


def test_a_draw_of_another_form_is_refused(tmp_path, dataset):
    for content in ([], {"test": {}}, {"train": {}, "test": {}}):
        with pytest.raises(DataError, match="expected an object with train and val"):
            read_draw(written(tmp_path / "draw.json", content), dataset)


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
