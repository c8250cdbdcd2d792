"""On a full disk, a step is made completely or not at all, and the page reports it."""

import errno
import json
import os
from pathlib import Path

import pytest

from clipadapter.errors import InputError
from clipadapter.studio import Project
from clipadapter.studio.actions import Actions
from clipadapter.studio.journal import Journal
from clipadapter.studio.session import Session
from clipadapter.studio.tab import Tab


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


def test_a_step_that_fails_in_the_middle_is_reverted(root, monkeypatch):
    journal = opened(root)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails_at(2, Path.rename))
        with pytest.raises(OSError, match="No space"):
            journal.perform("moving", [("a", "x/a"), ("b", "x/b")], ["x"], {"x": "name"})
    for each in (journal, opened(root)):
        assert (root / "a").is_file() and (root / "b").is_file() and not (root / "x").exists()
        assert each.steps == [] and each.names == {}


def test_an_undo_that_fails_in_the_middle_is_reverted(root, monkeypatch):
    journal = opened(root)
    journal.perform("moving", [("a", "x/a"), ("b", "x/b")], ["x"], {"x": "name"})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails_at(2, Path.rename))
        with pytest.raises(OSError, match="No space"):
            journal.undo()
    for each in (journal, opened(root)):
        assert (root / "x" / "a").is_file() and (root / "x" / "b").is_file()
        assert [step.description for step in each.steps] == ["moving"] and each.names == {"x": "name"}
    assert journal.perform("next").number == 2


def test_a_step_counts_as_made_even_if_the_line_done_can_not_be_written(root, monkeypatch):
    journal = opened(root)
    append = Journal._append
    with monkeypatch.context() as patch:
        patch.setattr(
            Journal, "_append", lambda self, line, sync=False: no_space() if not sync else append(self, line, sync)
        )
        journal.perform("moving", [("a", "x/a")])
    for each in (journal, opened(root)):
        assert (root / "x" / "a").is_file() and [step.description for step in each.steps] == ["moving"]


def test_a_step_that_can_not_be_reverted_is_finished_at_the_next_opening(root, monkeypatch):
    journal = opened(root)
    calls = []
    real = Path.rename

    def rename(self, target):
        calls.append(self)
        return real(self, target) if len(calls) == 1 else no_space()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(InputError, match="moving was interrupted: .*; open the project again to finish it"):
            journal.perform("moving", [("a", "x/a"), ("b", "x/b")])
    assert [step.description for step in opened(root).steps] == ["moving"]
    assert (root / "x" / "a").is_file() and (root / "x" / "b").is_file()


def test_a_step_whose_class_names_can_not_be_written_is_undone(tmp_path, monkeypatch):
    session = Session(Project(tmp_path / "p"), "toy", cache=None)
    actions, tab = Actions(session, lambda: str(tmp_path)), Tab()
    try:
        for classes, step in ((["a/b"], {"action": "add-class", "text": "c/d"}), (["a/b", "c/d"], {"action": "undo"})):
            session.project.add_class(classes[-1])
            with monkeypatch.context() as patch:
                patch.setattr("clipadapter.utils.files.tempfile.NamedTemporaryFile", no_space)
                actions.perform(tab, step)
            assert tab.note.is_error and "class_names.json: No space left" in tab.note.text
            names = json.loads((tmp_path / "p" / ".studio" / "class_names.json").read_text())
            assert list(session.project.contents.classes) == list(names.values()) == classes
    finally:
        session.close()


def test_class_names_are_written_at_the_next_opening_after_a_crash(tmp_path):
    names = tmp_path / "p" / ".studio" / "class_names.json"
    with Project(tmp_path / "p") as project:
        project.add_class("a/b")
    names.unlink()
    Project(tmp_path / "p").close()
    assert json.loads(names.read_text()) == {"a_b": "a/b"}


def test_temporary_files_of_a_killed_write_are_removed_at_the_next_opening(tmp_path, upload):
    with Project(tmp_path / "p") as project:
        project.add_class("cat")
        project.add_pictures("cat", [upload("red")])
    own = tmp_path / "p" / ".studio"
    left = [own / ".class_names.json-abcd_123", own / "incoming" / "7" / f".{'0a' * 10}-abcdefgh"]
    others = [own / "trash" / "9" / ".hidden", own / "incoming" / "7" / ".hidden", own / ".settings.json-old"]
    for path in [*left, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    Project(tmp_path / "p").close()
    assert not any(path.exists() for path in left) and all(path.is_file() for path in others)
