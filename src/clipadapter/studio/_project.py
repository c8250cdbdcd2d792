"""A project: class folders on disk, and all that a person may do to them.

What is labelled lies in ordinary folders, one a class, and is there before anybody is told so. What the studio needs
besides lies in ``.studio`` within: pictures without a label, the journal, and what was removed.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from typing_extensions import Self

from clipadapter.data.folders import list_images
from clipadapter.errors import InputError
from clipadapter.files import printable, write_atomically
from clipadapter.studio._adding import Added, Batch, moves_into
from clipadapter.studio._journal import Journal
from clipadapter.studio._names import checked_name, folder_name
from clipadapter.studio._pictures import Equal, Upload, pictures
from clipadapter.studio._reading import Contents, read_contents

OWN = ".studio"
"""The studio's folder within a project."""
INCOMING, POOL, TRASH = f"{OWN}/incoming", f"{OWN}/unlabelled", f"{OWN}/trash"


class Project:
    """Class folders that are changed step by step; every step can be undone, also after a restart.

    Safe to call from threads. One process at a time has a project open. A step that fails, as on a full disk, leaves
    everything as it was.

    Args:
        root: the folder; made if missing.
        unlabelled: a folder of pictures to label, which stays as it is.

    Attributes:
        contents: what is there.
        unwritten: why the file of class names is not what the classes are called, as on a full disk; empty if it is.
            It is written again at the next step, reading or opening.

    Raises:
        InputError: if the folder is none, can't be written, or is open elsewhere.

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
        self.outside = None if unlabelled is None else Path(unlabelled).absolute()
        self._guard = threading.RLock()
        self._equal = Equal()
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{root} is no folder: the studio opens a folder with one folder of pictures a class")
        try:
            (self.root / OWN).mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.root / OWN / "lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise InputError(f"{root} is open in another studio: close that one, or use its page") from error
        except OSError as error:
            raise InputError(f"can't write into {root}: {error.strerror or error}") from error
        try:
            self._check_outside()
            self._names_file = self.root / OWN / "class_names.json"
            self._clean()
            place = self.root / OWN / "journal.jsonl"
            self._journal = Journal(self.root, place, self._read_names(), self._first_number())
            self.contents = Contents()
            self.unwritten = ""
            self.refresh()
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Let others open it."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def undoable(self) -> str:
        """What `undo` would take back, in words; empty if there is nothing."""
        with self._guard:
            return self._journal.steps[-1].what if self._journal.steps else ""

    def refresh(self) -> Contents:
        """Read again what is on disk."""
        with self._guard:
            found = [] if self.outside is None else list_images(self.outside)
            self._outside = pictures(path for path in found if not path.is_relative_to(self.root))
            self._write_names()
            return self._read()

    def add_class(self, text: str) -> str:
        """Make a folder for a class; its name as it is kept.

        Raises:
            InputError: if the name is empty, too long, or taken.
        """
        with self._guard:
            name = checked_name(text, self.contents.classes)
            folder = folder_name(name, self._taken())
            with self._changed():
                self._journal.do(f"adding the class '{name}'", (), [self._place(folder)], self._named(folder, name))
            return name

    def rename_class(self, old: str, text: str) -> str:
        """Call a class otherwise, and its folder too; the name as it is kept.

        Raises:
            InputError: if there is no such class, or the name is empty, too long, or taken.
        """
        with self._guard:
            before = self._folder(old)
            name = checked_name(text, set(self.contents.classes) - {old})
            folder = folder_name(name, self._taken() - {before})
            # Where capitals don't count, the folder would be in its own way.
            folder = before if folder.casefold() == before.casefold() else folder
            moves = [] if folder == before else [(self._place(before), self._place(folder))]
            if name != old:
                names = self._named(folder, name, gone=before)
                with self._changed():
                    self._journal.do(f"renaming the class '{old}' to '{name}'", moves, (), names)
            return name

    def remove_class(self, name: str) -> None:
        """Take a class away, with its pictures.

        Raises:
            InputError: if there is no such class.
        """
        with self._guard:
            folder = self._folder(name)
            names = {key: value for key, value in self._journal.names.items() if key != folder}
            move = (self._place(folder), f"{self._trash()}/{folder}")
            with self._changed():
                self._journal.do(f"removing the class '{name}'", [move], (), names)

    def add(self, name: str, uploads: Sequence[Upload]) -> Added:
        """Put pictures into a class. One that lies in another class stays there, and is told.

        Raises:
            InputError: if there is no such class, or the disk can't be written.
        """
        with self._guard:
            return self._add(uploads, self._batch(self._place(self._folder(name)), name), f"to '{name}'")

    def add_unlabelled(self, uploads: Sequence[Upload]) -> Added:
        """Keep pictures to be labelled; those that lie in a class are told as elsewhere.

        Raises:
            InputError: if the disk can't be written.
        """
        with self._guard:
            return self._add(uploads, self._batch(POOL, None), "to be labelled")

    def label(self, keys: Sequence[str], name: str) -> Added:
        """Put pictures, of other classes or without a label, into a class.

        Raises:
            InputError: if there is no such class or picture.
        """
        with self._guard:
            batch = self._batch(self._place(self._folder(name)), name)
            batch.take_there([self.contents.picture(key) for key in dict.fromkeys(keys)])
            if batch.moves:
                with self._changed():
                    self._journal.do(f"labelling {_count(len(batch.moves))} '{name}'", batch.moves)
            return batch.said

    def remove(self, keys: Sequence[str]) -> int:
        """Take pictures away; how many. Those that lie outside stay.

        Raises:
            InputError: if there is no such picture.
        """
        with self._guard:
            found = [one for one in map(self.contents.picture, dict.fromkeys(keys)) if not one.outside]
            if found:
                with self._changed():
                    self._journal.do(f"removing {_count(len(found))}", moves_into(self.root, found, self._trash()))
            return len(found)

    def undo(self) -> str:
        """Take the last step back; what it was, and what of it could not be taken back; empty if there was none."""
        with self._guard:
            if not self._journal.steps:
                return ""
            kept = self._journal.in_the_way()
            with self._changed():
                step = self._journal.undo()
            texts = [step.what if step is not None else ""]
            texts += [
                f"but '{printable(place)}' is there anew: the old one stays in {printable(now)}" for place, now in kept
            ]
            return ", ".join(texts)

    def _batch(self, folder: str, name: str | None) -> Batch:
        # A folder of its own for each step: undone, every step finds the place free that its pictures came from.
        incoming = f"{INCOMING}/{self._journal.number}"
        return Batch(self.root, incoming, self.contents, self._equal, folder, name)

    def _add(self, uploads: Sequence[Upload], batch: Batch, where: str) -> Added:
        for upload in uploads:
            batch.take(upload)
        if batch.moves:
            with self._changed():
                self._journal.do(f"adding {_count(len(batch.moves))} {where}", batch.moves)
        return batch.said

    @contextmanager
    def _changed(self) -> Iterator[None]:
        """Read anew what was changed; a disk that can't be written is told as such."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"can't write into {self.root}: {error.strerror or error}; everything is as it was"
            ) from error
        finally:
            self._write_names()
            self._read()

    def _write_names(self) -> None:
        """The class names that are not their folders', for ``--class-names``.

        The journal has them too: a step is made whether or not this file can be written.
        """
        names = self._journal.names
        text = json.dumps(names, indent=1) + "\n"
        self.unwritten = ""
        try:
            if not names:
                self._names_file.unlink(missing_ok=True)
            elif not self._names_file.is_file() or self._names_file.read_bytes() != text.encode():
                write_atomically(self._names_file, text)
        except (InputError, OSError) as error:
            why = getattr(error.__cause__ or error, "strerror", None) or error
            self.unwritten = f"the file {self._names_file.name} can't be written ({why}); the next step tries again"

    def _clean(self) -> None:
        """Remove the hidden files that a killed process left of what it was writing: none of them was whole."""
        incoming = self.root / INCOMING
        left = [*(self.root / OWN).glob(".class_names.json-*"), *incoming.glob(".*"), *incoming.glob("*/.*")]
        for path in left:
            with suppress(OSError):
                path.unlink()

    def _first_number(self) -> int:
        """More than any step had whose files are still here, where the journal itself was moved away."""
        folders = [path.name for place in (INCOMING, TRASH) for path in (self.root / place).glob("*")]
        return max((int(name) for name in folders if re.fullmatch("[0-9]{1,9}", name)), default=0) + 1

    def _read(self) -> Contents:
        found = read_contents(self.root, self._journal.names, POOL, self._outside, self._equal)
        if found != self.contents:
            self.contents = found.numbered(self.contents.revision + 1)
        return self.contents

    def _folder(self, name: str) -> str:
        if name not in self.contents.folders:
            raise InputError(f"there is no class '{name}' any more: it was renamed or removed")
        return self.contents.folders[name]

    def _place(self, folder: str) -> str:
        """Where a class folder lies, from the project on."""
        return f"{self.contents.home}/{folder}" if self.contents.home else folder

    def _trash(self) -> str:
        return f"{TRASH}/{self._journal.number}"

    def _taken(self) -> set[str]:
        place = self.root / self.contents.home
        return {path.name for path in place.iterdir()} if place.is_dir() else set()

    def _named(self, folder: str, name: str, gone: str = "") -> dict[str, str]:
        names = {key: value for key, value in self._journal.names.items() if key not in (folder, gone)}
        return names if folder == name else {**names, folder: name}

    def _read_names(self) -> Mapping[str, str]:
        from clipadapter.data import read_class_names

        return read_class_names(self._names_file) if self._names_file.is_file() else {}

    def _check_outside(self) -> None:
        if self.outside is None:
            return
        if not self.outside.is_dir():
            raise InputError(f"there is no folder {self.outside}: give the folder of the pictures to label")
        if self.outside.is_relative_to(self.root):
            raise InputError(f"{self.outside} lies in {self.root}, where folders are classes: move it out of there")


def _count(n: int) -> str:
    return "1 picture" if n == 1 else f"{n} pictures"
