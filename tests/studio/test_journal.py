import json
import os
import sys

import pytest

from clipadapter.errors import InputError
from clipadapter.studio.journal import Journal


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    return tmp_path


def opened(root):
    return Journal(root, root / ".studio" / "journal.jsonl")


def write(root, **changes):
    """A journal of one step, as another person may have written it."""
    line = {"step": 1, "what": "", "moves": [], "folders": [], "before": {}, "after": {}, **changes}
    (root / ".studio").mkdir(exist_ok=True)
    (root / ".studio" / "journal.jsonl").write_text(json.dumps(line) + "\n")


def lines(root):
    return [json.loads(line) for line in (root / ".studio" / "journal.jsonl").read_text().splitlines()]


def test_steps_are_undone_in_reverse_order_also_after_a_restart(root):
    journal = opened(root)
    journal.perform("first", [("a", "x/a")], ["x"], {"x": "name"})
    journal.perform("second", [("x/a", "y/a"), ("b", "y/b")])
    again = opened(root)
    assert again.names == {"x": "name"} and (root / "y" / "a").read_text() == "a"
    assert again.steps[-1].what == "second"
    again.undo()
    assert (root / "x" / "a").is_file() and (root / "b").is_file()
    again = opened(root)
    again.undo()
    assert again.names == {} and (root / "a").is_file() and not (root / "x").exists()
    assert again.steps == []


@pytest.mark.parametrize("path", ["../outside", "/etc/hosts", "x/../../outside", "link/file"])
def test_no_path_of_a_step_is_outside_the_folder(root, path, tmp_path_factory):
    (root / "link").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ValueError, match="is outside the folder"):
        opened(root).perform("moving", [("a", path)])
    write(root, moves=[["a", path]])
    with pytest.raises(InputError, match="is outside the folder"):
        opened(root)
    assert (root / "a").is_file()


def test_no_step_leaves_the_folder_through_a_link_that_it_moved_itself(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "link").symlink_to(elsewhere)
    write(root, moves=[["link", "x"], ["a", "x/a"]])
    with pytest.raises(InputError, match="'x/a' is outside the folder"):
        opened(root)
    assert (root / "a").is_file() and not any(elsewhere.iterdir())


def test_an_undo_through_a_link_is_refused_and_the_journal_stays(root, tmp_path_factory):
    opened(root).perform("moving", [("a", "x/a"), ("b", "y/b")])
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    journal, before = opened(root), (root / ".studio" / "journal.jsonl").read_bytes()
    (root / "x").rename(root / "old")
    (root / "x").symlink_to(elsewhere)
    with pytest.raises(InputError, match="is outside the folder"):
        journal.undo()
    assert (root / ".studio" / "journal.jsonl").read_bytes() == before and (root / "y" / "b").is_file()


@pytest.mark.parametrize(
    "path",
    [".studio", ".studio/class_names.json", ".STUDIO/lock", "inside", "inside/settings.json"]
    + [".studio.", ".Studio /lock", ".studio. ./lock", ".studio::$INDEX_ALLOCATION/lock"],  # of Windows
)
def test_no_step_moves_the_files_of_the_studio(root, path):
    (root / ".studio").mkdir()
    (root / "inside").symlink_to(root / ".studio")
    with pytest.raises(InputError, match="the studio's own"):
        opened(root).perform("moving", [("a", path)])
    assert (root / "a").is_file()


def test_undo_overwrites_no_file_of_another_program(root):
    journal = opened(root)
    journal.perform("moving", [("a", "x/a")])
    (root / "a").write_text("new")
    journal.undo()
    assert (root / "a").read_text() == "new" and (root / "x" / "a").read_text() == "a"


def test_a_step_is_on_disk_before_its_first_move(root):
    journal = opened(root)
    logged = []
    make = journal._move_all
    journal._move_all = lambda *args: (logged.extend(lines(root)), make(*args))
    journal.perform("moving", [("a", "x/a")])
    assert [line["what"] for line in logged] == ["moving"] and lines(root)[-1] == {"done": 1}


def test_an_interrupted_step_that_can_not_be_finished_is_an_error(root):
    opened(root).perform("moving a", [("a", "x/a")])
    (root / "x" / "a").rename(root / "a")
    (root / "x").rmdir()
    (root / "x").write_text("in the way")
    journal = root / ".studio" / "journal.jsonl"
    journal.write_text(journal.read_text().splitlines()[0] + "\n")  # killed before it was done
    with pytest.raises(InputError, match="moving a was interrupted and can't be finished"):
        opened(root)


def test_a_damaged_journal_is_an_error(root):
    write(root, after={"a": ["no text"]})
    with pytest.raises(InputError, match=r"after\.a\S*: Input should be a valid string"):
        opened(root)
    place = root / ".studio" / "journal.jsonl"
    place.write_text('{"hello": 1}\n')
    with pytest.raises(InputError, match="line 1 is not a step"):
        opened(root)
    place.unlink()
    place.mkdir()
    with pytest.raises(InputError, match="can't read"):
        opened(root)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8 are of Linux")
def test_a_name_that_is_no_text_is_moved_and_comes_back(root):
    name = os.fsdecode(b"caf\xe9.jpg")
    (root / name).write_text("picture")
    opened(root).perform("moving", [(name, "x/photo.jpg")], ["x"])
    journal = opened(root)
    assert (root / ".studio" / "journal.jsonl").read_bytes().isascii() and not (root / name).exists()
    journal.undo()
    assert (root / name).read_text() == "picture"
