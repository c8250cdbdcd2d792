import json
import os
import re
import sys

import numpy as np
import pytest

from clipadapter.data import Sample
from clipadapter.encoders import create_encoder
from clipadapter.errors import DataError, InputError, MissingExtraError, install_command
from clipadapter.features import (
    FeatureRow,
    FeatureStore,
    extract,
    extract_rows,
    open_feature_table,
    read_features,
    write_parquet,
)
from clipadapter.features.collection import open_filesystem
from clipadapter.features.ray_extract import make_plan, remove_abandoned_parts, write_plan, write_shard
from clipadapter.utils.blocks import MAX_BLOCK_WIDTH

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def samples(picture_folder):
    labels = ["cat", "dog", None, "cat"]
    return [Sample(path, label, "train") for path, label in zip(picture_folder(4), labels, strict=True)]


def rows_of(toy, n):
    return (FeatureRow(f"{i}.jpg", None, "all", np.full(toy.info.dim, i, np.float32)) for i in range(n))


def test_the_table_holds_path_label_split_and_feature(toy, samples, tmp_path):
    path = tmp_path / "features.parquet"
    with FeatureStore(":memory:") as store:
        assert write_parquet(path, extract_rows(toy, samples, store), toy.info) == 4
    table = parquet.read_table(path)
    assert table.column_names == ["path", "label", "split", "feature"]
    assert table["path"].to_pylist() == [str(sample.path) for sample in samples]
    assert table["label"].to_pylist() == ["cat", "dog", None, "cat"]
    assert table["split"].to_pylist() == ["train"] * 4
    assert str(table.schema.field("feature").type) == f"fixed_size_list<element: float>[{toy.info.dim}]"
    expected = extract(toy, [sample.path for sample in samples]).features[:, 0]
    np.testing.assert_array_equal(np.array(table["feature"].to_pylist(), np.float32), expected)
    assert table.schema.metadata[b"clipadapter.encoder"].decode() == toy.info.name
    assert table.schema.metadata[b"clipadapter.fingerprint"].decode() == toy.info.fingerprint
    samples[1].path.write_bytes(b"")  # one that can't be read is left out
    rows = list(extract_rows(toy, samples, None))
    assert [row.path for row in rows] == [str(samples[i].path) for i in (0, 2, 3)]


def test_rows_are_streamed_in_groups_and_none_give_an_empty_table(toy, tmp_path):
    assert write_parquet(tmp_path / "f.parquet", [], toy.info) == 0
    assert parquet.read_table(tmp_path / "f.parquet").num_rows == 0
    assert write_parquet(tmp_path / "f.parquet", rows_of(toy, 2500), toy.info) == 2500
    file = parquet.ParquetFile(tmp_path / "f.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [1024, 1024, 452]
    assert [row[0] for row in file.read()["feature"].to_pylist()] == list(range(2500))


def test_an_interrupted_export_leaves_the_older_file(toy, tmp_path):
    path = tmp_path / "f.parquet"
    path.write_text("older")

    def interrupted():
        yield from rows_of(toy, 1500)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_parquet(path, interrupted(), toy.info)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("f.parquet", "older")]


@pytest.mark.parametrize("name", ["file/f.parquet", "folder"])
def test_a_file_that_can_not_be_written_is_an_error(toy, tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="can't be written .* check that its folder has space"):
        write_parquet(tmp_path / name, rows_of(toy, 1), toy.info)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


def test_what_can_not_be_written_is_refused_and_no_link_is_followed(toy, tmp_path, monkeypatch):
    (tmp_path / "thesis").write_text("mine")
    path, partial = tmp_path / "f.parquet", tmp_path / f".f.parquet.{os.getpid()}.partial"
    partial.symlink_to(tmp_path / "thesis")
    with pytest.raises(DataError, match="is a link"):
        write_parquet(path, rows_of(toy, 1), toy.info)
    assert (tmp_path / "thesis").read_text() == "mine"
    partial.unlink()
    rows = [FeatureRow("a.jpg", None, "all", np.zeros(3, np.float32))]
    with pytest.raises(InputError, match=f"width 3 but the encoder's is {toy.info.dim}"):
        write_parquet(path, rows, toy.info)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command("parquet"))):
        write_parquet(path, [], toy.info)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis"]


def test_each_block_is_a_column_and_is_read_again(samples, tmp_path):
    path, labelled = tmp_path / "features.parquet", [sample for sample in samples if sample.label]
    encoder = create_encoder("toy[final,inner,final@48]")
    write_parquet(path, extract_rows(encoder, labelled, None), encoder.info)
    table = parquet.read_table(path)
    assert table.column_names[3:] == ["feature", "feature:inner", "feature:final@48"]
    alone = extract(create_encoder("toy"), [sample.path for sample in labelled]).features[:, 0]
    np.testing.assert_allclose(np.array(table["feature"].to_pylist(), np.float32), alone, rtol=1e-5, atol=1e-6)
    features = read_features(path)
    # toy computes row by row
    np.testing.assert_array_equal(features.X, extract(encoder, [s.path for s in labelled]).features[:, 0])
    assert (features.blocks, features.y) == (encoder.info.blocks, ("cat", "dog", "cat"))
    assert features.provenance["fingerprint"] == encoder.info.fingerprint
    with pytest.raises(DataError, match="has no features of the split"):
        read_features(path, "test")


@pytest.mark.parametrize(
    ("n_rows", "why"),
    [(4001, "4,001 rows or more, but at most 4,000"), (3000, "3,000 features of 1,048,576 numbers, but at most 8 GiB")],
)
def test_a_small_table_that_would_fill_the_memory_is_refused(tmp_path, n_rows, why, monkeypatch):
    monkeypatch.setattr("clipadapter.features.tables.MAX_ROWS", 4000)
    facts = {"clipadapter.blocks": json.dumps([["final", MAX_BLOCK_WIDTH]])}
    columns = {name: pa.nulls(n_rows, pa.string()).fill_null("all") for name in ("path", "label", "split")}
    table = pa.table(columns | {"feature": pa.nulls(n_rows, pa.list_(pa.float32()))})
    path = tmp_path / "f.parquet"
    parquet.write_table(table.replace_schema_metadata(facts), path, compression="zstd")
    assert path.stat().st_size < 2_000_000
    with pytest.raises(DataError, match=why):
        read_features(path)


def test_a_table_that_is_none_of_features_or_has_no_labels_is_refused(toy, tmp_path):
    write_parquet(tmp_path / "c.parquet", rows_of(toy, 2), toy.info)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    parquet.write_table(parquet.read_table(tmp_path / "c.parquet").select(["path"]), tmp_path / "b.parquet")
    whys = {"a": "its end is missing", "b": "there is no column 'feature'", "missing": "No such file"}
    for name, why in whys.items():
        with pytest.raises(DataError, match=f"is no table of features: .*{why}.*; give a file that 'clipadapter embed"):
            read_features(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match="2 of 2 pictures .* have no label"):
        read_features(tmp_path / "c.parquet")


def write_shards(folder, rows):
    encoder, name = create_encoder("toy"), "0" * 32 + ".parquet"
    system, path = open_filesystem(folder)
    plan = make_plan("toy", encoder, [name])
    write_plan(system, path, plan)
    write_shard(system, f"{path}/{name}", rows, plan)


def row(i, **changes):
    feature = np.full(create_encoder("toy").info.dim, i, np.float32)
    return FeatureRow(str(i), "a", "all", feature, digest=b"d")._replace(**changes)


def test_rows_are_read_in_any_order_and_unreadable_pictures_have_none(tmp_path, monkeypatch):
    monkeypatch.setattr("clipadapter.features.tables.ROWS_PER_GROUP", 3)
    monkeypatch.setattr("clipadapter.features.tables.ROWS_PER_BATCH", 2)
    bad = {4: row(4, error="bad"), 5: row(5, feature=None, digest=None, error="worse")}
    write_shards(tmp_path, [bad.get(i) or row(i, split="test" if i > 6 else "train") for i in range(9)])
    table = open_feature_table(tmp_path)
    assert (table.rows().tolist(), table.rows("test").tolist()) == ([0, 1, 2, 3, 6, 7, 8], [7, 8])
    assert table.splits == ("test", "train")
    features = table.take(np.array([8, 0, 6, 8]), with_sources=True)
    assert features.X[:, 0].tolist() == [8, 0, 6, 8]
    assert features.provenance["sources"] == ["8", "0", "6", "8"]
    with pytest.raises(DataError, match="row 4: bad"):
        table.take(np.array([4]))


def test_a_file_that_can_not_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / ("0" * 32 + ".parquet") / "x").mkdir(parents=True)
    with pytest.raises(DataError, match="can't be written"):
        write_shards(tmp_path, [row(0)])
    assert list(tmp_path.glob(".*")) == []


def test_partial_files_of_killed_workers_are_removed_after_a_day(tmp_path):
    new, old = (f".{letter * 32}.partial" for letter in "ab")
    for name in (new, old, "old.parquet", ".mine.partial"):
        (tmp_path / name).touch()
    for name in (old, "old.parquet", ".mine.partial"):
        os.utime(tmp_path / name, (0, 0))
    remove_abandoned_parts(*open_filesystem(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {new, "old.parquet", ".mine.partial"}


@pytest.mark.parametrize("name", ["shards.json", "0" * 32 + ".parquet"])
def test_links_among_shards_are_not_followed(name, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shards(folder, [row(0)])
    path = folder / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(DataError, match="is a link"):
        open_feature_table(folder)
    with pytest.raises(DataError, match="is a link"):
        write_shards(folder, [row(1)])
    assert (tmp_path / "elsewhere").read_bytes() == before
