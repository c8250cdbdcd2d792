import json

import pyarrow.parquet
import pytest


@pytest.fixture
def embed(tmp_path, run):
    """A function that embeds with the toy encoder into a cache of this test, and gives the JSON."""

    def call(*args, encoder="toy"):
        result = run("embed", *args, "--encoder", encoder, "--cache", tmp_path / "features.sqlite", "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return call


def test_a_second_run_computes_nothing(squares, embed):
    first, second = embed(squares), embed(squares)
    assert (first["pictures"], first["computed"], first["cached"]) == (12, 12, 0)
    assert (second["pictures"], second["computed"], second["cached"]) == (12, 0, 12)


def test_shards_together_cover_all_pictures(squares, embed):
    parts = [embed(squares, "--shard", f"{i}/5") for i in range(1, 6)]
    assert [part["computed"] for part in parts] == [3, 3, 2, 2, 2]
    assert embed(squares)["computed"] == 0


def test_views_are_counted_by_their_seed(squares, embed):
    assert embed(squares, "--views", 3)["computed"] == 36
    assert embed(squares, "--views", 3, "--seed", 1)["computed"] == 24
    assert embed(squares, "--views", 2, "--view-scale", 0.2, 0.3)["computed"] == 12


def test_views_of_another_crop_scale_are_computed_anew(squares, embed):
    first = embed(squares, "--views", 3, "--crop", "tip")
    assert (first["crop"], first["computed"]) == ("tip", 36)
    assert embed(squares, "--views", 3)["computed"] == 0
    other = embed(squares, "--views", 3, "--crop", "coop")
    assert (other["crop"], other["computed"], other["cached"]) == ("coop", 24, 12)  # the plain pictures are there


def test_table_of_features(squares, tmp_path, embed):
    path = tmp_path / "features.parquet"
    assert embed(squares, "--to", path)["table"] == str(path)
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == ["path", "label", "split", "feature", "feature:inner"]
    assert table["label"].to_pylist() == ["blue"] * 4 + ["green"] * 4 + ["red"] * 4
    assert embed(squares / "red", "--to", path)["pictures"] == 4  # a table of its own is written again
    assert len(pyarrow.parquet.read_table(path)) == 4


def test_named_blocks_are_those_that_are_stored(squares, tmp_path, embed):
    path = tmp_path / "features.parquet"
    assert embed(squares, "--to", path, encoder="toy[final,final@48]")["encoder"] == "toy[final,final@48]"
    assert pyarrow.parquet.read_table(path).column_names[3:] == ["feature", "feature:final@48"]


def test_one_part(tmp_path, write_squares, embed):
    write_squares(tmp_path / "data" / "train", count=3)
    write_squares(tmp_path / "data" / "test", count=1)
    assert embed(tmp_path / "data", "--split", "test")["pictures"] == 3
    assert embed(tmp_path / "data")["pictures"] == 12


def test_pictures_need_no_classes(squares, embed):
    assert embed(squares / "red")["pictures"] == 4


def test_what_is_skipped_has_a_reason(tmp_path, write_squares, run):
    data = write_squares(tmp_path / "data", classes=("red",))
    (data / "red" / "bad.jpg").write_text("no picture")
    result = run("embed", data, "--encoder", "toy", "--cache", tmp_path / "c")
    assert result.exit_code == 0
    assert "skipped    1" in result.stdout
    assert f"warning: skipped {data / 'red' / 'bad.jpg'}: not an image" in result.stderr
    strict = run("embed", data, "--encoder", "toy", "--cache", tmp_path / "c", "--strict")
    assert strict.exit_code == 1
    assert strict.stderr.splitlines()[-1] == f"error: {data / 'red' / 'bad.jpg'}: not an image"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--shard", "3/2"], "shard i/n needs"),
        (["--shard", "half"], "a shard is written i/n"),
        (["--to", "no/such/folder/x.parquet"], "there is no folder"),
        (["--to", "x.csv"], "a name that ends with .parquet, not 'x.csv'"),
        (["--to", "other.parquet"], "other.parquet exists and is no table that embed wrote: give another name, or"),
        (["--views", "2", "--view-scale", "0.9", "0.1"], "scale"),
        (["--views", "2", "--view-scale", "0.1", "1", "--crop", "tip"], "both set the area of the crops"),
        (["--split", "dev"], "has no split 'dev'"),
        (["--cache", "README.md/features"], "README.md/features"),
        (["--device", "warp"], "no device is called 'warp': give cpu, cuda, mps, xpu or auto"),
    ],
)
def test_wrong_input(args, words, squares, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").touch()
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.jpg"]}), "other.parquet")
    result = run("embed", squares, "--encoder", "toy", *args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert pyarrow.parquet.read_table("other.parquet").column_names == ["path"]
    assert words in result.stderr


def test_a_folder_of_nothing_readable_fails(tmp_path, run):
    (tmp_path / "x.jpg").touch()
    result = run("embed", tmp_path, "--encoder", "toy")
    assert result.exit_code == 1
    assert "the picture can't be read" in result.stderr
