"""What a person can do on the page, each under the name that the page calls it by.

What comes from the page may come from anybody: it names classes and pictures that there are, and uploads by where the
server has put them; nothing of it becomes a path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipadapter.errors import ClipAdapterError, InputError
from clipadapter.files import printable
from clipadapter.studio._adding import Added
from clipadapter.studio._pictures import Upload
from clipadapter.studio._session import Session
from clipadapter.studio._tab import Note, Tab, told

Data = Mapping[str, Any]
NAMES = 60
"""Letters of a file's name that are shown."""


class Acts:
    """Does what the page asks for.

    Args:
        session: of the project.
        uploads: tells the folder that uploaded files are in.
    """

    def __init__(self, session: Session, uploads: Callable[[], str]) -> None:
        self.session, self.project, self._uploads = session, session.project, uploads
        self._known: dict[str, Callable[[Tab, Data], Note | None]] = {
            "add-class": self._add_class,
            "rename": self._rename,
            "remove-class": self._remove_class,
            "upload": self._upload,
            "label": self._label,
            "move": self._move,
            "remove": self._remove,
            "teach": self._teach,
            "skip": self._skip,
            "undo": self._undo,
            "show": self._show,
            "failed": self._failed,
        }

    def do(self, tab: Tab, data: Any) -> None:
        """Do it, and note in the tab what came of it."""
        act = self._known.get(str(data.get("do"))) if isinstance(data, Mapping) else None
        if act is None:
            tab.note = Note("The page asked for something that is not known: load it again.", bad=True)
            return
        before = self.project.contents.revision
        tab.uploads += data["do"] in ("upload", "failed")
        try:
            tab.note = act(tab, data) or Note("")
        except ClipAdapterError as error:
            tab.note = Note(_sentence(str(error)), bad=True)
        if self.project.unwritten:
            tab.note = replace(tab.note, text=f"{tab.note.text} {_sentence(self.project.unwritten)}".strip(), bad=True)
        if self.project.contents.revision != before:
            self.session.changed()
        tab.misnamed += tab.note.bad and data["do"] == "add-class"

    def ask(self, tab: Tab, tried: Path | None) -> None:
        """Ask what a picture is, and note in the tab what came of it; None if it was taken away."""
        tab.tried, tab.note = tried, Note("")
        try:
            self._ask(tab)
        except ClipAdapterError as error:
            tab.note = Note(str(error), bad=True)

    def ask_again(self, tab: Tab) -> None:
        """Ask what the tried picture is, if something else was learned since; the note stays."""
        if self.outdated(tab):
            with suppress(ClipAdapterError):  # told when it was tried
                self._ask(tab)

    def outdated(self, tab: Tab) -> bool:
        """Whether the answer that a tab shows is not of what is known now."""
        return tab.tried is not None and tab.asked != self.session.state.revision

    def _ask(self, tab: Tab) -> None:
        tab.answer, tab.asked = None, self.session.state.revision
        if tab.tried is not None:
            tab.answer = self.session.answer(tab.tried)

    def _add_class(self, tab: Tab, data: Data) -> Note:
        name = self.project.add_class(_text(data, "text"))
        return Note(f"There is a class '{name}' now.")

    def _rename(self, tab: Tab, data: Data) -> Note:
        name = self.project.rename_class(_text(data, "class"), _text(data, "text"))
        tab.renaming = ""
        return Note(f"It is called '{name}' now.")

    def _remove_class(self, tab: Tab, data: Data) -> Note:
        name = _text(data, "class")
        count = len(self.project.contents.classes.get(name, ()))
        self.project.remove_class(name)
        return Note(f"Removed the class '{name}' with {_count(count)}; Undo brings it back.")

    def _upload(self, tab: Tab, data: Data) -> Note:
        refused: list[tuple[str, str]] = []
        uploads = []
        for each in (each for each in _list(data, "files") if isinstance(each, Mapping)):
            name = _text(each, "name")[:NAMES]
            try:
                uploads.append(Upload(name, self._bytes(_text(each, "path"))))
            except InputError as error:
                refused.append((name, str(error)))
        name = _text(data, "class")
        said = self.project.add(name, uploads) if name else self.project.add_unlabelled(uploads)
        said.refused += refused
        return _added(said, name)

    def _label(self, tab: Tab, data: Data) -> Note:
        name = _text(data, "class")
        return _added(self.project.label([_text(data, "picture")], name), name, "Labelled")

    def _move(self, tab: Tab, data: Data) -> Note:
        keys, name = [str(key) for key in _list(data, "pictures")], _text(data, "class")
        tab.picked = ""
        return _added(self.project.label(keys, name), name, "Moved")

    def _remove(self, tab: Tab, data: Data) -> Note:
        tab.picked = ""
        return Note(f"Removed {_count(self.project.remove([_text(data, 'picture')]))}; Undo brings it back.")

    def _teach(self, tab: Tab, data: Data) -> Note:
        if tab.tried is None or not tab.tried.is_file():
            raise InputError("the picture is not there any more: choose it again")
        name = _text(data, "class")
        return _added(self.project.add(name, [Upload(tab.tried.name, tab.tried.read_bytes())]), name)

    def _skip(self, tab: Tab, data: Data) -> None:
        self.session.skip(_text(data, "picture"))

    def _undo(self, tab: Tab, data: Data) -> Note:
        what = self.project.undo()
        return Note(f"Undone: {what}." if what else "There is nothing to undo.")

    def _show(self, tab: Tab, data: Data) -> None:
        """Open or close what only this tab shows."""
        if "picture" in data:
            tab.picked = _text(data, "picture")
        if "class" in data:
            tab.opened = _text(data, "class")
        if "renaming" in data:
            tab.renaming = _text(data, "renaming")

    def _failed(self, tab: Tab, data: Data) -> Note:
        return Note(f"Could not be sent: {_text(data, 'text')[:200]}", bad=True)

    def _bytes(self, path: str) -> bytes:
        """Of an uploaded file, which is not kept.

        Raises:
            InputError: if it lies anywhere but where uploads do.
        """
        place = Path(os.path.realpath(path.replace("\0", "")))
        if not place.is_relative_to(os.path.realpath(self._uploads())) or not place.is_file():
            raise InputError("was not uploaded")
        data = place.read_bytes()
        place.unlink(missing_ok=True)
        return data


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}.".replace("..", ".")


def _text(data: Data, key: str) -> str:
    value = data.get(key, "")
    return printable(value) if isinstance(value, str) else ""


def _list(data: Data, key: str) -> list[Any]:
    value = data.get(key)
    return value if isinstance(value, list) else []


def _count(n: int) -> str:
    return "1 picture" if n == 1 else f"{n} pictures"


def _added(said: Added, name: str, done: str = "Added") -> Note:
    """What became of pictures, in words."""
    where = f"'{name}'" if name else "those to label"
    texts = [f"{done} {_count(len(said.keys))} {'as' if done == 'Labelled' else 'to'} {where}."] if said.keys else []
    if said.twice:
        texts.append(f"{_count(len(said.twice))} there already.")
    offers = []
    for other in dict.fromkeys(label for _, label in said.elsewhere):
        keys = tuple(key for key, label in said.elsewhere if label == other)
        texts.append(f"{_count(len(keys))} not added, but in '{other}' already.")
        if name:
            offers.append((f"Move to '{name}'", name, keys))
    if said.refused:
        texts.append(f"Not taken: {told([f'{file} ({reason})' for file, reason in said.refused])}.")
    return Note(" ".join(texts) or "Nothing was added.", bool(said.refused or said.elsewhere), tuple(offers))
