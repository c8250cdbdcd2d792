import pytest

from clipadapter.data import load_dataset
from clipadapter.errors import DataError

ROWS = [("b/1.jpg", "dog", "train"), ("2 ü.jpg", "cat", "val"), ("b/3.jpg", "cat, small", "test")]


@pytest.fixture
def folder(tmp_path, put):
    for name, _, _ in ROWS:
        put(tmp_path / "pictures" / name)
    return tmp_path / "pictures"


def write_parquet(path, rows):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), path)


def test_every_format_gives_the_same(folder):
    (folder / "a.csv").write_text(
        'path,label,split\nb/1.jpg,dog,train\n2 ü.jpg,cat,validation\n\n"b/3.jpg","cat, small",test\n', "utf-8"
    )
    (folder / "a.tsv").write_text(
        "\ufeffsplit\tpath\tlabel\tnote\r\n"
        "train\tb/1.jpg\tdog\t\r\nVAL\t2 ü.jpg\tcat\tx\r\ntest\tb/3.jpg\tcat, small\t\r\n",
        "utf-8",
    )
    (folder / "a.jsonl").write_text(
        '{"path": "b/1.jpg", "label": "dog", "split": "train"}\n\n'
        '{"path": "2 ü.jpg", "label": "cat", "split": "val"}\n'
        '{"path": "b/3.jpg", "label": "cat, small", "split": "test"}\n',
        "utf-8",
    )
    keys = ("path", "label", "split")
    write_parquet(folder / "a.parquet", [dict(zip(keys, row, strict=True)) for row in ROWS])
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        dataset = load_dataset(folder / f"a.{suffix}")
        assert (dataset.name, dataset.root) == ("a", folder)
        assert dataset.class_names == ("cat", "cat, small", "dog")
        assert dataset.splits == ("train", "val", "test")
        assert [(s.path, s.label, s.split) for s in dataset.samples] == [
            (folder / name, label, split) for name, label, split in ROWS
        ]


def test_without_split_all_is_one_part_and_absolute_paths_stay(folder, tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(f"path,label\n{folder}/b/1.jpg,1\npictures/b/3.jpg,0\n", "utf-8")
    dataset = load_dataset(path)
    assert dataset.splits == ("all",)
    assert dataset.paths == [folder / "b/1.jpg", folder / "b/3.jpg"]
    assert dataset.labels == ["1", "0"]


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("a.jsonl", '{"path": "b/1.jpg", "label": 1}\n{"path": "b/3.jpg", "label": 0}\n', ["1", "0"]),
        ("a.csv", "path\nb/1.jpg\nb/3.jpg\n", [None, None]),
        ("a.csv", "path,label\nb/1.jpg,dog\nb/none.jpg,cat\n", ["dog", "cat"]),  # one missing: left to the reader
    ],
)
def test_labels_may_be_numbers_or_missing_and_so_may_a_picture(folder, name, text, labels):
    (folder / name).write_text(text)
    assert [sample.label for sample in load_dataset(folder / name).samples] == labels


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", r"a\.csv is empty: expected a first line such as path,label"),
        ("a.csv", "path,label\n", "there are no pictures"),
        ("a.csv", "path,lable\nb/1.jpg,x\n", "no column 'label'; the columns are: path, lable"),
        ("a.csv", "path;label\nb/1.jpg;x\n", "no column 'path'; the columns are: path;label"),
        ("a.csv", "path,label\nb/1.jpg,x\nb/3.jpg\n", r"line 3: 1 fields but 2 columns \(path, label\)"),
        ("a.csv", "path,label\nb/1.jpg,a, b\n", "line 2: 3 fields but 2 columns"),
        ("a.csv", "path,label\nb/1.jpg,x\nb/3.jpg, \n", "line 3: the label is empty"),
        ("a.csv", "path,label\n,x\n", "line 2: the path is empty"),
        ("a.csv", "path,label,split\nb/1.jpg,x,dev\n", "line 2: the split is 'dev' but must be train, val or test"),
        ("a.csv", 'path,label\n"b/1.jpg,x\n', r"a\.csv, line \d+: "),
        ("a.csv", "path,label\nno/1.jpg,x\nno/2.jpg,y\n", "none of its 2 pictures exists, paths are relative to"),
        ("a.csv", "path,label\nb/1.jpg,x\nb/3.jpg,x\n", "only one class, 'x'"),
        ("a.csv", b"path,label\nb/1.jpg,caf\xe9\n", r"not UTF-8 \(byte"),
        ("a.jsonl", '{"path": "b/1.jpg", "label": "x"}\n{oops}\n', r"line 2, character 2: not JSON"),
        ("a.jsonl", '["b/1.jpg", "x"]\n', "line 1: expected an object such as"),
        ("a.jsonl", '{"path": "b/1.jpg", "label": null}\n', "line 1: the label is empty"),
        ("a.jsonl", '{"path": "b/1.jpg", "label": 0.5}\n', "line 1: the label is 0.5, not a string"),
        (
            "a.jsonl",
            '{"path": "b/1.jpg", "label": "x", "split": "test"}\n{"path": "b/3.jpg", "label": "y"}\n',
            "some rows have a split and some do not",
        ),
        ("a.parquet", "no parquet", r"a\.parquet can't be read as a Parquet table: it is not in the format Parquet"),
        ("a.parquet", "", "a Parquet table: it is empty"),
        ("a.parquet", b"PAR1\x15\x04", "a Parquet table: it is not complete, its end is missing; copy or write"),
        ("a.parquet", b"PAR1" + bytes(40) + b"\x08\0\0\0PAR1", "a Parquet table: its data are damaged"),
        ("a.json", "{}", "neither a folder nor a table"),
    ],
)
def test_errors_say_where_and_what(folder, name, text, message):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        load_dataset(folder / name)


def equal_texts(text, count):
    """A column that takes a few bytes in a file, however long it is."""
    pa = pytest.importorskip("pyarrow")
    places = pa.array([0], pa.int32()).take(pa.array([0] * count))
    return pa.DictionaryArray.from_arrays(places, [text]).cast(pa.string())


def a_row_with_many_labels():
    pa = pytest.importorskip("pyarrow")
    return {"path": ["b/1.jpg"], "labels": pa.ListArray.from_arrays([0, 1001], equal_texts("x", 1001))}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (lambda: {"path": equal_texts("b/1.jpg", 1001)}, "has 1,001 rows or more, but at most 1,000 are"),
        (a_row_with_many_labels, "has 1,001 labels or more, but at most 1,000 are read"),
        (lambda: {"path": equal_texts("x" * 8193, 900)}, "8,193 characters in a name or more, but at most 8,192"),
        (lambda: {"path": equal_texts("x" * 8000, 900)}, "characters or more, but at most 1,048,576 are read"),
        (lambda: {"path": ["b/1.jpg"], **{f"c{i}": [0] for i in range(1000)}}, "has 1,001 columns or more, but"),
    ],
    ids=["rows", "labels", "name", "all names", "columns"],
)
def test_a_small_parquet_table_that_would_fill_the_memory_is_refused(columns, message, folder, monkeypatch):
    monkeypatch.setattr("clipadapter.data.manifests.MAX_ROWS", 1000)
    monkeypatch.setattr("clipadapter.data.manifests.MAX_TABLE_CHARACTERS", 1 << 20)
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table(columns()), folder / "a.parquet", compression="zstd")
    assert (folder / "a.parquet").stat().st_size < 1 << 20
    with pytest.raises(DataError, match=message):
        load_dataset(folder / "a.parquet")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path" + ",c" * 1000, "has 1,001 columns or more, but at most 1,000 are read"),
        ("a.csv", "path" + ",c" * 10**6, "a line has more than 1,048,576 characters, the most that are read"),
        ("a.tsv", "path\n" + "a\n" * 101, "has 101 rows or more, but at most 100 are read"),
        ("a.jsonl", "[" + "[]," * 10**6 + "[]]", "a line has more than 1,048,576 characters"),
    ],
    ids=["columns", "header", "rows", "line"],
)
def test_a_table_of_text_that_would_fill_the_memory_is_refused(name, text, message, folder, monkeypatch):
    monkeypatch.setattr("clipadapter.data.manifests.MAX_ROWS", 100)
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset(folder / name)
