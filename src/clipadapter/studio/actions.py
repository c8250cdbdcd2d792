"""The actions of a person on the page, by the names that the page sends.

Requests can come from anybody. They name classes and pictures that exist, and uploads by the place where the server
stored them; no text of a request becomes a path.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clipadapter.data.image_notes import ImageNotes, find_image_notes
from clipadapter.errors import ClipAdapterError, InputError
from clipadapter.studio.model import ExplainedPrediction
from clipadapter.studio.pictures import Upload, stored_file_name
from clipadapter.studio.project import AddResult
from clipadapter.studio.session import Session
from clipadapter.utils.files import encodable
from clipadapter.utils.formatting import format_count, format_list

Data = Mapping[str, Any]
MAX_FILE_NAME_LETTERS = 60  # letters of an uploaded file's name that are shown


@dataclass(frozen=True)
class Note:
    """The message about the last action."""

    text: str  # a sentence or two
    is_error: bool = False  # whether something went wrong
    # Buttons that move pictures: (text on the button, class, keys of the pictures)
    offers: tuple[tuple[str, str, tuple[str, ...]], ...] = ()

    @classmethod
    def of_error(cls, error: ClipAdapterError) -> Note:
        """The message about an action that failed."""
        return cls(to_sentence(str(error)), is_error=True)


@dataclass
class Tab:
    """State of one page that is open in a browser."""

    open_class: str = ""  # class of which all pictures are shown
    shows_unlabelled: bool = False  # whether all unlabelled pictures are shown, not only the next ones
    renamed_class: str = ""  # class whose new name is being typed
    open_picture: str = ""  # key of the picture that is shown large
    # Copy of the picture to predict. Gradio stores equal uploads in one file, and that of an upload into a class
    # is removed.
    tried_file: Path | None = None
    prediction: ExplainedPrediction | None = None  # its prediction
    predicted_by: int = 0  # number of the model that made it, which an idle tab does not keep
    note: Note = Note("")  # the last message
    note_count: int = 0  # number of messages so far
    upload_count: int = 0  # number of uploads so far, failed ones too
    rejected_name_count: int = 0  # number of names of new classes that were rejected
    # Version of the session's state and revision of the contents that the page shows
    rendered_versions: tuple[int, int] = (-1, -1)
    # Digests of the HTML of each panel. The HTML has the pictures in it: it is a megabyte, and tabs are many.
    panel_digests: dict[str, bytes] = field(default_factory=dict)

    def show(self, note: Note) -> None:
        """Show a message in place of the last one."""
        self.note, self.note_count = note, self.note_count + 1


class Actions:
    """Performs the actions of the page on a project. The action "add-class" is the method `_do_add_class`."""

    def __init__(self, session: Session, upload_folder: Callable[[], str]) -> None:
        self.session, self.project, self._upload_folder = session, session.project, upload_folder

    def perform(self, tab: Tab, data: Any) -> None:
        """Perform an action; its result becomes the note of the tab."""
        name = data.get("action") if isinstance(data, Mapping) else None
        action = getattr(self, f"_do_{str(name).replace('-', '_')}", None)
        if action is None:
            tab.show(Note("The page sent an unknown action: load the page again.", is_error=True))
            return
        revision = self.project.contents.revision
        tab.upload_count += name in ("upload", "upload-failed")
        try:
            tab.show(action(tab, data) or Note(""))
        except ClipAdapterError as error:
            tab.show(Note.of_error(error))
        if self.project.contents.revision != revision:
            self.session.notify_change()
        tab.rejected_name_count += tab.note.is_error and name == "add-class"

    def try_picture(self, tab: Tab, file: Path | None) -> None:
        """Predict the class of a picture; None if the page has no picture any more."""
        if tab.tried_file is not None:
            shutil.rmtree(tab.tried_file.parent, ignore_errors=True)
        tab.tried_file = None
        tab.show(Note(""))
        try:
            if file is not None:
                folder = Path(tempfile.mkdtemp(prefix="tried-", dir=self._upload_folder()))
                tab.tried_file = folder / stored_file_name(Upload(file.name, b""))
                shutil.copyfile(file, tab.tried_file)
            self._predict(tab)
        except ClipAdapterError as error:
            tab.show(Note.of_error(error))
        except OSError as error:
            tab.show(Note(f"The picture can't be copied: {error.strerror or error}.", is_error=True))

    def update_prediction(self, tab: Tab) -> None:
        """Predict the tried picture again if the model changed; the note stays."""
        if self.is_prediction_outdated(tab):
            with suppress(ClipAdapterError):  # reported when the picture was tried
                self._predict(tab)

    def is_prediction_outdated(self, tab: Tab) -> bool:
        """Whether the prediction of a tab is of an earlier model."""
        return tab.tried_file is not None and tab.predicted_by != self.session.state.fit_number

    def _predict(self, tab: Tab) -> None:
        tab.prediction, tab.predicted_by = None, self.session.state.fit_number
        if tab.tried_file is not None:
            tab.prediction = self.session.predict(tab.tried_file)

    def _do_add_class(self, tab: Tab, data: Data) -> Note:
        name = self.project.add_class(_get_text(data, "text"))
        return Note(f"Added the class '{name}'.")

    def _do_rename_class(self, tab: Tab, data: Data) -> Note:
        name = self.project.rename_class(_get_text(data, "class"), _get_text(data, "text"))
        tab.renamed_class = ""
        return Note(f"Renamed the class to '{name}'.")

    def _do_remove_class(self, tab: Tab, data: Data) -> Note:
        name = _get_text(data, "class")
        count = len(self.project.contents.classes.get(name, ()))
        self.project.remove_class(name)
        return Note(f"Removed the class '{name}' with {format_count(count, 'picture')}. Undo brings it back.")

    def _do_upload(self, tab: Tab, data: Data) -> Note:
        rejected: list[tuple[str, str]] = []
        uploads = []
        for file in (file for file in _get_list(data, "files") if isinstance(file, Mapping)):
            name = _get_text(file, "name")
            try:
                uploads.append(Upload(name, self._take_uploaded_bytes(_get_text(file, "path"))))
            except InputError as error:
                rejected.append((name, str(error)))
        class_name = _get_text(data, "class")
        result = self.project.add_pictures(class_name or None, uploads)
        notes = ImageNotes()
        for upload in uploads if result.added else ():
            notes.add(upload.name, find_image_notes(upload.data))
        result.rejected += rejected
        note = _describe_result(result, class_name)
        return replace(note, text=" ".join([note.text, *(to_sentence(str(one)) for one in notes.warnings())]))

    def _do_upload_failed(self, tab: Tab, data: Data) -> Note:
        return Note(f"Upload failed: {_get_text(data, 'text')[:200]}", is_error=True)

    def _do_label_picture(self, tab: Tab, data: Data) -> Note:
        name = _get_text(data, "class")
        return _describe_result(self.project.label_pictures([_get_text(data, "picture")], name), name, "Labelled")

    def _do_move_pictures(self, tab: Tab, data: Data) -> Note:
        keys, name = [str(key) for key in _get_list(data, "pictures")], _get_text(data, "class")
        tab.open_picture = ""
        return _describe_result(self.project.label_pictures(keys, name), name, "Moved")

    def _do_remove_pictures(self, tab: Tab, data: Data) -> Note:
        tab.open_picture = ""
        keys = [str(key) for key in _get_list(data, "pictures")]
        count = self.project.remove_pictures(keys)
        if count < len(set(keys)):
            stay = "Pictures in another folder than the project stay."
            return Note(f"Removed {format_count(count, 'picture')}. {stay}", is_error=True)
        return Note(f"Removed {format_count(count, 'picture')}. Undo brings {'it' if count == 1 else 'them'} back.")

    def _do_add_tried_picture(self, tab: Tab, data: Data) -> Note:
        if tab.tried_file is None or not tab.tried_file.is_file():
            raise InputError("the picture does not exist any more: choose it again")
        name = _get_text(data, "class")
        upload = Upload(tab.tried_file.name, tab.tried_file.read_bytes())
        return _describe_result(self.project.add_pictures(name, [upload]), name)

    def _do_skip_picture(self, tab: Tab, data: Data) -> None:
        self.session.skip_picture(_get_text(data, "picture"))

    def _do_set_quality(self, tab: Tab, data: Data) -> None:
        self.session.set_quality(_get_text(data, "quality"))

    def _do_learn_unlabelled(self, tab: Tab, data: Data) -> None:
        self.session.learn_unlabelled(bool(_get_text(data, "on")))

    def _do_undo(self, tab: Tab, data: Data) -> Note:
        undone = self.project.undo()
        return Note(f"Undone: {undone}." if undone else "There is nothing to undo.")

    def _do_open(self, tab: Tab, data: Data) -> None:
        """Open or close what only this tab shows."""
        if "picture" in data:
            tab.open_picture = _get_text(data, "picture")
        if "class" in data:
            tab.open_class = _get_text(data, "class")
        if "unlabelled" in data:
            tab.shows_unlabelled = bool(_get_text(data, "unlabelled"))
        if "renaming" in data:
            tab.renamed_class = _get_text(data, "renaming")

    def _take_uploaded_bytes(self, path: str) -> bytes:
        """Read an uploaded file and remove it."""
        file = Path(os.path.realpath(path.replace("\0", "")))
        if not file.is_relative_to(os.path.realpath(self._upload_folder())) or not file.is_file():
            raise InputError("was not uploaded")
        data = file.read_bytes()
        file.unlink(missing_ok=True)
        return data


def _get_text(data: Data, key: str) -> str:
    value = data.get(key, "")
    return encodable(value) if isinstance(value, str) else ""


def _get_list(data: Data, key: str) -> list[Any]:
    value = data.get(key)
    return value if isinstance(value, list) else []


def to_sentence(text: str) -> str:
    """Return the text of an error as a sentence."""
    return f"{text[:1].upper()}{text[1:]}.".replace("..", ".")


def _describe_result(result: AddResult, class_name: str, verb: str = "Added") -> Note:
    target = f"'{class_name}'" if class_name else "the unlabelled ones"
    preposition = "as" if verb == "Labelled" else "to"
    texts = [f"{verb} {format_count(len(result.added), 'picture')} {preposition} {target}."] if result.added else []
    if result.duplicates:
        texts.append(f"{format_count(len(result.duplicates), 'picture')} already there.")
    offers = []
    for other, keys in result.in_other_classes.items():
        texts.append(f"{format_count(len(keys), 'picture')} not added: already in '{other}'.")
        if class_name:
            offers.append((f"Move to '{class_name}'", class_name, tuple(keys)))
    if result.rejected:
        reasons = [f"{file[:MAX_FILE_NAME_LETTERS]} ({reason})" for file, reason in result.rejected]
        texts.append(f"Rejected: {format_list(reasons, 3)}.")
    has_errors = bool(result.rejected or result.in_other_classes)
    return Note(" ".join(texts) or "Nothing was added.", has_errors, tuple(offers))
