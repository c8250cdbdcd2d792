"""What happens to steps and to the page when the disk is full: a step is made whole, or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from clipadapter.errors import InputError
from clipadapter.studio import Project
from clipadapter.studio._acts import Acts
from clipadapter.studio._journal import Journal
from clipadapter.studio._session import Session
from clipadapter.studio._tab import Tab


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fails_at(number, real):
    """The same function, whose call of that number fails as on a full disk."""
    calls = []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            no_space()
        return real(*args, **kwargs)

    return call


@pytest.fixture
def root(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    return tmp_path


def opened(root):
    return Journal(root, root / ".studio" / "journal.jsonl")


def test_a_step_that_fails_in_the_middle_is_taken_back(root, monkeypatch):
    journal = opened(root)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails_at(2, Path.rename))
        with pytest.raises(OSError, match="No space"):
            journal.do("moving", [("a", "x/a"), ("b", "x/b")], ["x"], {"x": "name"})
    for each in (journal, opened(root)):
        assert (root / "a").is_file() and (root / "b").is_file() and not (root / "x").exists()
        assert each.steps == [] and each.names == {}


def test_an_undo_that_fails_in_the_middle_is_taken_back(root, monkeypatch):
    journal = opened(root)
    journal.do("moving", [("a", "x/a"), ("b", "x/b")], ["x"], {"x": "name"})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails_at(2, Path.rename))
        with pytest.raises(OSError, match="No space"):
            journal.undo()
    for each in (journal, opened(root)):
        assert (root / "x" / "a").is_file() and (root / "x" / "b").is_file()
        assert [step.what for step in each.steps] == ["moving"] and each.names == {"x": "name"}
    assert journal.do("next").number == 2


def test_a_step_whose_moves_are_made_is_made_even_if_that_can_not_be_noted(root, monkeypatch):
    journal = opened(root)
    append = Journal._append
    with monkeypatch.context() as patch:
        patch.setattr(
            Journal, "_append", lambda self, line, safe=False: no_space() if not safe else append(self, line, safe)
        )
        journal.do("moving", [("a", "x/a")])
    for each in (journal, opened(root)):
        assert (root / "x" / "a").is_file() and [step.what for step in each.steps] == ["moving"]


def test_a_step_that_can_not_be_taken_back_is_said_to_be_finished_later(root, monkeypatch):
    journal = opened(root)
    calls = []
    real = Path.rename

    def rename(self, target):
        calls.append(self)
        return real(self, target) if len(calls) == 1 else no_space()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(InputError, match="moving was cut short.*when the project is opened again"):
            journal.do("moving", [("a", "x/a"), ("b", "x/b")])
    assert [step.what for step in opened(root).steps] == ["moving"]
    assert (root / "x" / "a").is_file() and (root / "x" / "b").is_file()


def test_the_page_shows_what_is_there_when_class_names_can_not_be_written(tmp_path, monkeypatch):
    with Project(tmp_path / "p") as project:
        with monkeypatch.context() as patch:
            patch.setattr("clipadapter.files.tempfile.NamedTemporaryFile", no_space)
            assert project.add_class("a/b") == "a/b"
        assert list(project.contents.classes) == ["a/b"] and "class_names.json" in project.unwritten
        assert not (project.root / ".studio" / "class_names.json").exists()
        project.refresh()
        assert json.loads((project.root / ".studio" / "class_names.json").read_text()) == {"a_b": "a/b"}
        assert project.unwritten == ""


def test_the_note_says_that_class_names_are_not_written(tmp_path, monkeypatch):
    session = Session(Project(tmp_path / "p"), "toy", cache=None)
    try:
        monkeypatch.setattr("clipadapter.files.tempfile.NamedTemporaryFile", no_space)
        tab = Tab()
        Acts(session, lambda: str(tmp_path)).do(tab, {"do": "add-class", "text": "a/b"})
        assert tab.note.text.startswith("There is a class 'a/b' now. The file class_names.json can't be written")
    finally:
        session.close()


def test_class_names_are_written_at_the_next_opening_after_a_crash(tmp_path):
    names = tmp_path / "p" / ".studio" / "class_names.json"
    with Project(tmp_path / "p") as project:
        project.add_class("a/b")
    names.unlink()
    Project(tmp_path / "p").close()
    assert json.loads(names.read_text()) == {"a_b": "a/b"}


def test_what_a_killed_write_left_is_removed_at_the_next_opening(tmp_path, upload):
    with Project(tmp_path / "p") as project:
        project.add_class("cat")
        project.add("cat", [upload("red")])
    own = tmp_path / "p" / ".studio"
    left = [own / ".class_names.json-abcd", own / "incoming" / "7" / ".1234.png-abcd"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    (own / "trash" / "9").mkdir(parents=True)
    (own / "trash" / "9" / ".hidden").write_bytes(b"a person's")
    Project(tmp_path / "p").close()
    assert not any(path.exists() for path in left) and (own / "trash" / "9" / ".hidden").is_file()
