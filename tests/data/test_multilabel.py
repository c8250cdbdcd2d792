import json

import numpy as np
import pytest

from clipadapter.data import load_dataset
from clipadapter.data.splits import draw_multilabel_shots, label_matrix
from clipadapter.errors import DataError, InputError

SETS = [("cat", "dog"), (), ("dog",)]


@pytest.fixture
def folder(tmp_path, put):
    for i in range(3):
        put(tmp_path / f"{i}.jpg")
    return tmp_path


def test_every_format_gives_the_same_label_sets(folder):
    (folder / "a.csv").write_text("path,labels,split\n0.jpg,cat| dog,train\n1.jpg,,train\n2.jpg,dog,test\n", "utf-8")
    (folder / "a.tsv").write_text("labels\tpath\tsplit\ncat|dog|cat\t0.jpg\ttrain\n \t1.jpg\ttrain\ndog\t2.jpg\ttest\n")
    rows = [{"path": f"{i}.jpg", "labels": list(names), "split": "train"} for i, names in enumerate(SETS)]
    rows[0]["labels"], rows[2]["split"] = "cat|dog", "test"
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    for suffix in ("csv", "tsv", "jsonl"):
        dataset = load_dataset(folder / f"a.{suffix}")
        assert dataset.multilabel
        assert dataset.class_names == ("cat", "dog")
        assert dataset.label_sets == SETS
        assert dataset.split("test").label_sets == [("dog",)]
        assert dataset.split("test").class_names == ("cat", "dog")


def test_parquet_has_lists_or_texts(folder):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for labels in ([["cat", "dog"], [], ["dog"]], ["cat|dog", None, "dog"]):
        table = pa.table({"path": ["0.jpg", "1.jpg", "2.jpg"], "labels": labels})
        parquet.write_table(table, folder / "a.parquet")
        assert load_dataset(folder / "a.parquet").label_sets == SETS


def test_one_label_a_picture_is_as_it_was(folder):
    (folder / "a.csv").write_text("path,label\n0.jpg,cat|dog\n1.jpg,dog\n", "utf-8")
    dataset = load_dataset(folder / "a.csv")
    assert not dataset.multilabel
    assert dataset.labels == ["cat|dog", "dog"]
    assert dataset.label_sets == [("cat|dog",), ("dog",)]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "path,label,labels\n0.jpg,cat,cat\n", "line 2: there are both columns 'label' and 'labels'"),
        ("a.csv", "path,labels\n0.jpg,cat||dog\n", "line 2: the name among the labels is empty"),
        ("a.csv", "path,labels\n0.jpg,cat|\n", "the name among the labels is empty"),
        ("a.csv", "path,labels\n0.jpg,cat\n1.jpg,\n", "only one class, 'cat'"),
        ("a.jsonl", '{"path": "0.jpg", "labels": "cat|dog"}\n{"path": "1.jpg"}\n', "some rows have"),
    ],
)
def test_wrong_label_sets_are_named(folder, name, text, words):
    (folder / name).write_text(text, "utf-8")
    with pytest.raises(DataError, match=words):
        load_dataset(folder / name)


def test_classes_of_label_sets_are_renamed_and_are_not_one_label_each(folder):
    (folder / "a.csv").write_text("path,labels\n0.jpg,cat|dog\n1.jpg,\n2.jpg,dog\n", "utf-8")
    with pytest.raises(DataError, match="needs one label per picture"):
        _ = load_dataset(folder / "a.csv").labels
    renamed = load_dataset(folder / "a.csv").rename({"dog": "wolf"})
    assert renamed.class_names == ("cat", "wolf")
    assert renamed.label_sets == [("cat", "wolf"), (), ("wolf",)]


def test_the_matrix_refuses_unknown_labels():
    assert label_matrix(SETS, ["dog", "fox", "cat"]).tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 0]]
    with pytest.raises(DataError, match="picture 1 has labels that are no classes: wolf"):
        label_matrix([("cat",), ("wolf",)], ["cat", "dog"])
    with pytest.raises(DataError, match="are the string 'cat'"):
        label_matrix(["cat"], ["cat", "dog"])


@pytest.mark.parametrize("shots", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_every_class_has_its_shots_or_all_of_them(shots, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.random((60, 5)) < [0.02, 0.1, 0.2, 0.3, 0.4]
    matrix[:3] = np.eye(3, 5)
    sets = [tuple(np.array(list("abcde"))[row]) for row in matrix]
    rows = draw_multilabel_shots(sets, shots, seed)
    assert rows == sorted(set(rows)) == draw_multilabel_shots(sets, shots, seed)
    counts = matrix[rows].sum(axis=0)
    assert (counts >= np.minimum(shots, matrix.sum(axis=0))).all()
    labelled = [row for row in rows if sets[row]]
    assert len(labelled) <= 5 * shots
    empty = (~matrix.any(axis=1)).sum()
    assert len(rows) - len(labelled) == round(len(labelled) * empty / (60 - empty))


def test_shots_of_several_classes_are_drawn_once_and_those_that_can_not_be_drawn_are_named():
    with pytest.raises(InputError, match="at least 1, got 0"):
        draw_multilabel_shots(SETS, 0)
    with pytest.raises(InputError, match="no picture has a label"):
        draw_multilabel_shots([(), ()], 1)
    assert len(draw_multilabel_shots([("cat", "dog")] * 9, 2)) == 2
    assert len(draw_multilabel_shots([("cat", "dog")] * 2 + [("dog",)] * 9, 3)) == 3
