import json
import shutil

import pytest
from PIL import Image


@pytest.fixture
def mixed(tmp_path, write_squares):
    """Squares in two parts with an empty file, a text, and a file twice."""
    root = tmp_path / "mixed"
    write_squares(root / "train", count=3, classes=("blue", "red"))
    write_squares(root / "test", count=1, classes=("blue", "red"))
    (root / "train" / "red" / "empty.jpg").touch()
    (root / "train" / "red" / "notes.txt").write_text("hello")
    Image.new("RGB", (9, 9), "white").save(root / "train" / "red" / "white.png")
    shutil.copy(root / "train" / "red" / "white.png", root / "train" / "blue" / "white.png")
    return root


def test_table(mixed, run):
    result = run("scan", mixed)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:4] == ["class  train  test", "blue       4     1", "red        4     1", "total      8     2"]
    assert "  train/red/empty.jpg: file is empty" in lines
    assert "  train/red/notes.txt: not an image file" in lines
    assert "  train/blue/white.png = train/red/white.png" in lines
    assert "warning: 1 of 11 pictures can't be read." in result.stderr


def test_json_is_the_report(mixed, run):
    found = json.loads(run("scan", mixed, "--json").stdout)
    assert found["classes"] == {"blue": {"train": 4, "test": 1}, "red": {"train": 4, "test": 1}}
    assert found["unreadable"] == [["train/red/empty.jpg", "file is empty"]]


def test_strict_fails_after_the_report(mixed, squares, run):
    result = run("scan", mixed, "--strict")
    assert result.exit_code == 1
    assert "blue" in result.stdout
    assert result.stderr.splitlines()[-1] == "error: 1 picture can't be read"
    assert run("scan", squares, "--strict").exit_code == 0


def test_quiet_has_no_warnings(mixed, run):
    assert run("scan", mixed, "-q").stderr == ""


def test_an_empty_folder_and_one_class_are_reported(tmp_path, write_squares, run):
    (tmp_path / "empty").mkdir()
    assert "There are no pictures" in run("scan", tmp_path / "empty").stderr
    one = write_squares(tmp_path / "one", classes=("red",))
    assert "only one class, 'red'" in run("scan", one).stderr


def test_long_lists_are_cut_for_people_only(squares, tmp_path, run):
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    for i in range(15):
        (data / "red" / f"{i:02}.jpg").touch()
    assert "  and 5 more; --json has all" in run("scan", data).stdout.splitlines()
    assert len(json.loads(run("scan", data, "--json").stdout)["unreadable"]) == 15
