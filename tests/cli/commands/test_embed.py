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
