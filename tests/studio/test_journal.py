import json

import pytest

from clipadapter.errors import InputError
from clipadapter.studio._journal import Journal


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    return tmp_path


def opened(root):
    return Journal(root, root / ".studio" / "journal.jsonl")


def lines(root):
    return [json.loads(line) for line in (root / ".studio" / "journal.jsonl").read_text().splitlines()]


def test_steps_are_undone_from_the_last_on_also_after_a_restart(root):
    journal = opened(root)
    journal.do("first", [("a", "x/a")], ["x"], {"x": "name"})
    journal.do("second", [("x/a", "y/a"), ("b", "y/b")])
    again = opened(root)
    assert again.names == {"x": "name"} and (root / "y" / "a").read_text() == "a"
    assert again.undo().what == "second"
    assert (root / "x" / "a").is_file() and (root / "b").is_file()
    again = opened(root)
    assert again.undo().what == "first"
    assert again.names == {} and (root / "a").is_file() and not (root / "x").exists()
    assert again.undo() is None


def test_a_step_that_was_cut_short_is_finished(root):
    journal = opened(root)
    journal._make = lambda step: (_ for _ in ()).throw(KeyboardInterrupt)  # killed after the line was written
    with pytest.raises(KeyboardInterrupt):
        journal.do("moving", [("a", "x/a"), ("b", "x/b")])
    (root / "x").mkdir()
    (root / "a").rename(root / "x" / "a")  # one of the moves was made
    again = opened(root)
    assert (root / "x" / "a").is_file() and (root / "x" / "b").is_file()
    assert again.undo().what == "moving" and (root / "a").is_file()


def test_an_undoing_that_was_cut_short_is_finished(root):
    journal = opened(root)
    journal.do("moving", [("a", "x/a"), ("b", "x/b")])
    journal._unmake = lambda step: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        journal.undo()
    again = opened(root)
    assert (root / "a").is_file() and (root / "b").is_file() and again.steps == []


def test_a_torn_line_is_dropped_and_the_next_one_is_whole(root):
    opened(root).do("moving", [("a", "x/a")])
    path = root / ".studio" / "journal.jsonl"
    with path.open("a") as file:
        file.write('{"step": 2, "wh')
    journal = opened(root)
    assert [step.what for step in journal.steps] == ["moving"]
    journal.do("again", [("b", "x/b")])
    assert [step.what for step in opened(root).steps] == ["moving", "again"]


@pytest.mark.parametrize("path", ["../outside", "/etc/hosts", "x/../../outside", "link/file"])
def test_no_step_leads_out_of_the_folder(root, path, tmp_path_factory):
    (root / "link").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ValueError, match="leads out"):
        opened(root).do("moving", [("a", path)])
    line = {"step": 1, "what": "", "moves": [["a", path]], "folders": [], "before": {}, "after": {}}
    (root / ".studio" / "journal.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match="leads out"):
        opened(root)
    assert (root / "a").is_file()


def test_what_somebody_else_put_there_is_not_overwritten(root):
    journal = opened(root)
    journal.do("moving", [("a", "x/a")])
    (root / "a").write_text("new")
    journal.undo()
    assert (root / "a").read_text() == "new" and (root / "x" / "a").read_text() == "a"


def test_a_line_of_something_else_is_told(root):
    opened(root)
    (root / ".studio" / "journal.jsonl").write_text('{"hello": 1}\n')
    with pytest.raises(InputError, match="line 1, is no step"):
        opened(root)


def test_a_step_is_on_disk_before_its_first_move(root):
    journal = opened(root)
    seen = []
    make = journal._make
    journal._make = lambda step: (seen.extend(lines(root)), make(step))
    journal.do("moving", [("a", "x/a")])
    assert [line["what"] for line in seen] == ["moving"] and lines(root)[-1] == {"done": 1}


def test_nothing_of_a_line_stays_that_could_not_be_written(root, monkeypatch):
    journal = opened(root)
    journal.do("first", [("a", "x/a")])

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("clipadapter.studio._journal.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            journal.do("second", [("b", "x/b")])
    assert (root / "b").is_file()
    journal.do("third", [("b", "y/b")])
    again = opened(root)
    assert [step.what for step in again.steps] == ["first", "third"] and (root / "y" / "b").is_file()


def test_what_cannot_be_finished_is_told(root):
    opened(root).do("moving a", [("a", "x/a")])
    (root / "x" / "a").rename(root / "a")
    (root / "x").rmdir()
    (root / "x").write_text("in the way")
    journal = root / ".studio" / "journal.jsonl"
    journal.write_text(journal.read_text().splitlines()[0] + "\n")  # killed before it was done
    with pytest.raises(InputError, match="moving a was cut short, and can't be finished"):
        opened(root)


def test_a_journal_that_is_none_is_told(root):
    place = root / ".studio" / "journal.jsonl"
    place.parent.mkdir()
    line = {"step": 1, "what": "", "moves": [], "folders": [], "before": {}, "after": {"a": ["no text"]}}
    place.write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match="a class name is no text"):
        opened(root)
    place.unlink()
    place.mkdir()
    with pytest.raises(InputError, match="can't read"):
        opened(root)
