"""A project: class folders on disk, and every change that a person can make to them.

Labelled pictures are in ordinary folders, one per class, and are on the disk before the page reports them. The folder
``.studio`` in the project has the rest: unlabelled pictures, the journal, and removed pictures. A project may come from
another person: no link in ``.studio`` is followed (`studio_path`).
"""

from __future__ import annotations

import json
import os
import re
import threading
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import ParamSpec

from clipadapter.data import read_class_names
from clipadapter.data.folders import list_images, safe_folder_name
from clipadapter.data.images import read_image
from clipadapter.errors import DataError, ImageError, InputError
from clipadapter.studio.journal import Journal, Move
from clipadapter.studio.pictures import (
    STUDIO_FOLDER,
    UNLABELLED_FOLDER,
    Contents,
    DuplicateFinder,
    PictureFile,
    Upload,
    list_picture_files,
    read_contents,
    stored_file_name,
)
from clipadapter.utils.files import (
    RANDOM_END,
    UNPRINTABLE,
    fold_name,
    folder_without_links,
    free_name,
    path_without_links,
    printable,
    remove_abandoned,
    write_atomically,
)
from clipadapter.utils.formatting import format_count
from clipadapter.utils.parsing import parse_json, read_text

INCOMING_FOLDER = f"{STUDIO_FOLDER}/incoming"
TRASH_FOLDER = f"{STUDIO_FOLDER}/trash"
EXPORT_FOLDER = "export"  # folder in ``.studio`` for the files that the page offers for download
UPLOADS_FOLDER = "uploads"  # folder in ``.studio`` for the temporary files of the page
UPLOAD_NAME = "[0-9a-f]{20}"  # pattern of the names of uploads in the folder of a step
UPLOAD_PATTERN = rf"[0-9a-f]{{40,64}}|tried{RANDOM_END}|tmp[a-z0-9_]{{8}}"
"""Names of what Gradio and the page write there."""
MAX_NAME_LETTERS = 120
MAX_SETTINGS_BYTES = 2**16  # a larger file of settings is ignored: the studio did not write it
P = ParamSpec("P")


def studio_path(root: Path, *names: str) -> Path:
    """The path of a file or folder in the studio's own folder of a project."""
    return path_without_links(root, STUDIO_FOLDER, *names)


def prepare_uploads(root: Path) -> Path:
    """The folder of the page's temporary files, without those of an earlier page."""
    folder = studio_path(root, UPLOADS_FOLDER)
    remove_abandoned(folder, UPLOAD_PATTERN, min_age=0)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass
class AddResult:
    """What happened to pictures that were added or labelled."""

    added: list[str] = field(default_factory=list)  # keys of the pictures that are there now
    duplicates: list[str] = field(default_factory=list)  # names of uploads that the class had before
    # Keys of equal pictures in another class, by class; they stay there
    in_other_classes: dict[str, list[str]] = field(default_factory=dict)
    # (name, reason) of files that are no pictures, or are test pictures
    rejected: list[tuple[str, str]] = field(default_factory=list)


class Project(AbstractContextManager["Project"]):
    """Class folders that are changed in steps. Every step can be undone, also after a restart.

    Thread-safe. One process at a time can open a project. A step that fails, as on a full disk, changes nothing.

    Args:
        root: the folder; made if missing.
        unlabelled: a folder of pictures to label, which is not changed.

    Attributes:
        contents: what is in the project.
        duplicates: finds files with equal bytes.

    Raises:
        InputError: if the path is not a folder, can't be written, has links in ``.studio``, or is open in another
            process.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Project(folder) as project:
    ...     project.add_class("tabby cat")
    ...     project.undo()
    'tabby cat'
    "adding the class 'tabby cat'"
    """

    def __init__(self, root: str | Path, unlabelled: str | Path | None = None) -> None:
        from filelock import FileLock, Timeout

        self.root = Path(root).absolute()
        self.external_folder = None if unlabelled is None else Path(unlabelled).absolute()
        self._guard = threading.RLock()
        self.duplicates = DuplicateFinder()
        if not self.root.name:
            raise InputError(f"{root} can't be a project, beside which its model is saved: give a folder in it")
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{root} is not a folder: give a folder with one folder of pictures per class")
        if self.external_folder is not None and not self.external_folder.is_dir():
            raise InputError(f"there is no folder {self.external_folder}: give the folder of the pictures to label")
        if self.external_folder is not None and self.external_folder.is_relative_to(self.root):
            raise InputError(
                f"{self.external_folder} is inside {self.root}, where every folder is a class: move it out of there"
            )
        own, lock_file = studio_path(self.root), studio_path(self.root, "lock")
        try:
            own.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(lock_file, timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise InputError(f"{root} is open in another studio: close that one, or use its page") from error
        except OSError as error:
            raise InputError(f"can't write into {root}: {error.strerror or error}") from error
        try:
            self._names_file = studio_path(self.root, "class_names.json")
            self._settings_file = studio_path(self.root, "settings.json")
            self._remove_unfinished_files()
            names = read_class_names(self._names_file) if self._names_file.is_file() else {}
            first = self._first_free_number()
            self._journal = Journal(self.root, own / "journal.jsonl", names, first, self._write_class_names)
            self.contents = Contents()
            self.refresh()
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Release the project, so that another process can open it."""
        self._lock.release()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def next_undo(self) -> str:
        """The step that `undo` would revert, in words; empty if there is none."""
        with self._guard:
            return self._journal.steps[-1].what if self._journal.steps else ""

    def refresh(self) -> None:
        """Read the project from the disk again."""
        with self._guard:
            paths = [] if self.external_folder is None else list_images(self.external_folder, follow_links=False)
            self._external = list_picture_files(path for path in paths if not path.is_relative_to(self.root))
            self._read()

    def save_setting(self, name: str, value: str) -> None:
        """Remember a setting of the page; this is no step, and `undo` does not change it."""
        with self._guard:
            settings = {**self.settings(), name: value}
            write_atomically(self._settings_file, json.dumps(settings, indent=1) + "\n")

    def settings(self) -> dict[str, str]:
        """The settings of the page; those that are no text are left out, so that a damaged file only loses choices."""
        try:
            settings = parse_json(read_text(self._settings_file, MAX_SETTINGS_BYTES), "the settings")
        except DataError:
            return {}
        pairs = settings.items() if isinstance(settings, dict) else ()
        return {name: value for name, value in pairs if isinstance(value, str)}

    def add_class(self, text: str) -> str:
        """Make a folder for a class. Return the name of the class as it is stored."""
        with self._guard:
            name = normalize_class_name(text, self.contents.classes)
            folder = safe_folder_name(name, _list_names(self.root / self.contents.class_root))
            path = self._class_path(folder)
            self._run(self._journal.perform, f"adding the class '{name}'", (), [path], {folder: name})
            return name

    def rename_class(self, old: str, text: str) -> str:
        """Rename a class and its folder. Return the new name as it is stored."""
        with self._guard:
            old_folder = self._folder_of(old)
            name = normalize_class_name(text, set(self.contents.classes) - {old})
            folder = safe_folder_name(name, _list_names(self.root / self.contents.class_root) - {old_folder})
            # A file system that ignores case takes the two folders for one, and the journal overwrites nothing.
            folder = old_folder if folder.casefold() == old_folder.casefold() else folder
            move = (self._class_path(old_folder), self._class_path(folder))
            if name != old:
                moves, names = [] if folder == old_folder else [move], {old_folder: "", folder: name}
                self._run(self._journal.perform, f"renaming the class '{old}' to '{name}'", moves, (), names)
            return name

    def remove_class(self, name: str) -> None:
        """Remove a class with its pictures."""
        with self._guard:
            folder = self._folder_of(name)
            move = (self._class_path(folder), f"{TRASH_FOLDER}/{self._journal.next_number}/{folder}")
            self._run(self._journal.perform, f"removing the class '{name}'", [move], (), {folder: ""})

    def add_pictures(self, class_name: str | None, uploads: Sequence[Upload]) -> AddResult:
        """Add pictures to a class, or without a label. A picture of another class stays there, and is reported."""
        with self._guard:
            target = "to be labelled" if class_name is None else f"to '{class_name}'"
            return self._add(class_name, uploads, [], "adding", target)

    def label_pictures(self, keys: Sequence[str], class_name: str) -> AddResult:
        """Move pictures into a class, from other classes or from the unlabelled ones; those outside are copied."""
        with self._guard:
            pictures = [self.contents.picture(key) for key in dict.fromkeys(keys)]
            external = [one for one in pictures if one.is_external]
            own = [one for one in pictures if not one.is_external and self.contents.label(one.key) != class_name]
            return self._add(class_name, external, own, "labelling", f"'{class_name}'")

    def remove_pictures(self, keys: Sequence[str]) -> int:
        """Remove pictures and return how many. Pictures outside the project are not removed."""
        with self._guard:
            pictures = [one for one in map(self.contents.picture, dict.fromkeys(keys)) if not one.is_external]
            if pictures:
                moves = _moves_into(self.root, pictures, f"{TRASH_FOLDER}/{self._journal.next_number}", set())
                self._run(self._journal.perform, f"removing {format_count(len(pictures), 'picture')}", moves)
            return len(pictures)

    def undo(self) -> str:
        """Undo the last step.

        Returns:
            What was undone, and which files could not be moved back; empty if there was no step.
        """
        with self._guard:
            text = self.next_undo
            if not text:
                return ""
            for old, new in self._journal.steps[-1].moves:
                if os.path.lexists(self.root / old) and os.path.lexists(self.root / new):
                    text += f", but there is a new '{printable(old)}': the old one stays in {printable(new)}"
            self._run(self._journal.undo)
            return text

    # ---- Steps ----

    def _add(
        self,
        class_name: str | None,
        uploads: Sequence[Upload | PictureFile],
        own: Sequence[PictureFile],
        verb: str,
        target: str,
    ) -> AddResult:
        """Add files from elsewhere to a class and move pictures of the project into it, in one step."""
        folder = UNLABELLED_FOLDER if class_name is None else self._class_path(self._folder_of(class_name))
        used = {fold_name(name) for name in _list_names(self.root / folder)}
        moves = _moves_into(self.root, own, folder, used)
        result, new_uploads = AddResult(), set[bytes]()
        for file in uploads:
            try:
                upload = Upload(file.name, file.data)
                read_image(Path(upload.name or "picture"), data=upload.data)
            except ImageError as error:
                result.rejected.append((file.name, error.reason))
                continue
            equal = self.duplicates.find(upload.data, self.contents.pictures())
            by_class = {self.contents.label(picture.key): picture for picture in equal}
            other = next((label for label in by_class if label not in (class_name, None)), None)
            if any(self.duplicates.find(upload.data, pictures) for pictures in self.contents.test.values()):
                result.rejected.append((upload.name, "it is one of the test pictures"))
            elif class_name in by_class or upload.data in new_uploads:
                result.duplicates.append(upload.name)
            elif other is not None:
                result.in_other_classes.setdefault(other, []).append(by_class[other].key)
            else:
                unlabelled = [picture for picture in equal if not picture.is_external]
                source = unlabelled[0].path_in(self.root) if unlabelled else self._store(upload.data)
                name = stored_file_name(upload, used)
                used.add(fold_name(name))
                new_uploads.add(upload.data)
                moves.append((source, f"{folder}/{name}"))
        result.added += [new for _, new in moves]
        if moves:
            self._run(self._journal.perform, f"{verb} {format_count(len(moves), 'picture')} {target}", moves)
        return result

    def _store(self, data: bytes) -> str:
        """Write the bytes of an upload to the disk, and return the path of the file, relative to the project."""
        # Each step has its own folder of uploads, so that its undo finds their old paths free.
        incoming = f"{INCOMING_FOLDER}/{self._journal.next_number}"
        digest = blake2b(data, digest_size=10).hexdigest()  # as UPLOAD_NAME says
        folder = path_without_links(self.root, *incoming.split("/"))
        return f"{incoming}/{write_atomically(folder / digest, data).name}"

    def _run(self, change: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Make a step, and read the project again. Report a disk that can't be written as an error of the library."""
        try:
            change(*args, **kwargs)
        except OSError as error:
            raise InputError(f"can't write into {self.root}: {error.strerror or error}; nothing was changed") from error
        finally:
            self._read()

    def _read(self) -> None:
        new = read_contents(self.root, self._journal.names, self._external, self.duplicates)
        if new != self.contents:
            self.contents = replace(new, revision=self.contents.revision + 1)

    # ---- Classes and their folders ----

    def _folder_of(self, class_name: str) -> str:
        if class_name not in self.contents.folders:
            raise InputError(f"there is no class '{class_name}': it was renamed or removed")
        return self.contents.folders[class_name]

    def _class_path(self, folder: str) -> str:
        """Path of a class folder, relative to the project."""
        return f"{self.contents.class_root}/{folder}" if self.contents.class_root else folder

    def _write_class_names(self, names: Mapping[str, str]) -> None:
        """Write the class names that differ from their folders, for ``--class-names``. The journal has them too."""
        text = json.dumps(names, indent=1) + "\n"
        if not names:
            self._names_file.unlink(missing_ok=True)
        elif not self._names_file.is_file() or self._names_file.read_bytes() != text.encode():
            write_atomically(self._names_file, text)

    # ---- Opening ----

    def _remove_unfinished_files(self) -> None:
        """Remove hidden temporary files that a killed process left; none of them was complete."""
        incoming = folder_without_links(self.root, *INCOMING_FOLDER.split("/"))
        remove_abandoned(studio_path(self.root), rf"\.(class_names|settings)\.json{RANDOM_END}", min_age=0)
        for folder in incoming.glob("*"):
            remove_abandoned(folder, rf"\.{UPLOAD_NAME}{RANDOM_END}", min_age=0)

    def _first_free_number(self) -> int:
        """One more than the number of any step whose files exist, for a project whose journal was moved away."""
        places = [path_without_links(self.root, *place.split("/")) for place in (INCOMING_FOLDER, TRASH_FOLDER)]
        folders = [path.name for place in places for path in place.glob("*")]
        return max((int(name) for name in folders if re.fullmatch("[0-9]{1,9}", name)), default=0) + 1


def _moves_into(root: Path, pictures: Sequence[PictureFile], folder: str, used: set[str]) -> list[Move]:
    """Return moves of pictures into a folder, to file names that are free there; adds these to the used ones."""
    moves: list[Move] = []
    for picture in pictures:
        name = free_name(picture.path.stem, picture.path.suffix, used)
        used.add(fold_name(name))
        moves.append((picture.path_in(root), f"{folder}/{name}"))
    return moves


def _list_names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


# ---- Names of classes and folders ----


def normalize_class_name(text: str, used: Collection[str] = ()) -> str:
    """Return a class name as it is stored: one line, without spaces around it, in composed letters (NFC)."""
    name = unicodedata.normalize("NFC", " ".join(UNPRINTABLE.sub(" ", text).split()))
    if not name:
        raise InputError("a class needs a name: type one, such as 'tabby cat'")
    if len(name) > MAX_NAME_LETTERS:
        raise InputError(f"a class name has at most {MAX_NAME_LETTERS} letters, this one has {len(name)}: shorten it")
    equal = [other for other in used if fold_name(other) == fold_name(name)]
    if equal:
        raise InputError(f"there is a class '{equal[0]}' already: choose another name")
    return name
