import os

import numpy as np
import pytest

from clipadapter.encoders import create_encoder
from clipadapter.errors import DataError
from clipadapter.features.collection import open_filesystem
from clipadapter.features.shards import (
    FeatureShards,
    ShardRow,
    make_plan,
    remove_abandoned_parts,
    write_plan,
    write_shard,
)

pytest.importorskip("pyarrow.parquet")


def write_rows(folder, rows):
    encoder, name = create_encoder("toy"), "0" * 32 + ".parquet"
    system, path = open_filesystem(folder)
    plan = make_plan("toy", encoder, [name])
    write_plan(system, path, plan)
    write_shard(system, f"{path}/{name}", rows, plan)


def row(i, split="all", **changes):
    feature = np.full(create_encoder("toy").info.dim, i, np.float32)
    return ShardRow(**({"path": str(i), "label": "a", "split": split, "digest": b"d", "feature": feature} | changes))


def test_a_row_with_a_feature_and_an_error_shifts_no_other_row(tmp_path):
    write_rows(tmp_path, [row(0, error="bad"), row(1), row(2, feature=None, digest=None), row(3)])
    shards = FeatureShards(tmp_path)
    with pytest.raises(DataError, match="row 0 has both a feature and an error"):
        shards.take(shards.rows())


def test_a_split_that_does_not_exist_is_refused(tmp_path):
    write_rows(tmp_path, [row(0), row(1, split="part 1")])
    with pytest.raises(DataError, match="a split is 'part 1', not one of all, test, train, val"):
        FeatureShards(tmp_path)


def test_a_file_that_can_not_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / ("0" * 32 + ".parquet") / "x").mkdir(parents=True)
    with pytest.raises(DataError, match="can't be written"):
        write_rows(tmp_path, [row(0)])
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
    write_rows(folder, [row(0)])
    path = folder / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(DataError, match="is a link"):
        FeatureShards(folder)
    with pytest.raises(DataError, match="is a link"):
        write_rows(folder, [row(1)])
    assert (tmp_path / "elsewhere").read_bytes() == before
