"""Steps that can be undone: moves of files within one folder, written down before they are made.

A line is on disk before the first of its moves, and another one after the last: what was killed between them is
finished when the journal is opened again. What fails between them, as on a full disk, is taken back at once. Nothing is
ever deleted; what is removed was moved to where it can be had back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipadapter.errors import InputError

Move = tuple[str, str]
"""From where to where, relative to the folder, with slashes."""


@dataclass(frozen=True)
class Step:
    """One thing that a person did.

    Args:
        number: counts up.
        what: in words, to say what would be undone.
        moves: files and folders, in this order.
        folders: that were made for it.
        before: class names by folder, before it.
        after: and after it.
    """

    number: int
    what: str
    moves: tuple[Move, ...]
    folders: tuple[str, ...]
    before: Mapping[str, str]
    after: Mapping[str, str]


class Journal:
    """The steps of a folder, in a file of JSON lines.

    Args:
        root: the folder; every path of a step lies in it.
        path: the file; made if missing.
        names: class names by folder, to begin with; what the file says counts more.
        first: number of the next step; at least one more than the file has.

    Raises:
        InputError: if the file is none of ours, or a step leads out of the folder.
    """

    def __init__(self, root: Path, path: Path, names: Mapping[str, str] | None = None, first: int = 1) -> None:
        self.root, self.path = Path(os.path.realpath(root)), path
        self.names = dict(names or {})
        self.steps: list[Step] = []
        self._next = first
        self._read()

    @property
    def number(self) -> int:
        """Of the step that comes next."""
        return self._next

    def do(
        self,
        what: str,
        moves: Sequence[Move] = (),
        folders: Sequence[str] = (),
        names: Mapping[str, str] | None = None,
    ) -> Step:
        """Write a step down and make it; it is on disk when this returns.

        Args:
            what: in words.
            moves: in this order.
            folders: to make before.
            names: class names by folder from now on; as they are if not given.

        Raises:
            InputError: if a path leads out of the folder, or a step that fails can't be taken back.
            OSError: if it fails; the folder and the journal are as they were.
        """
        after = self.names if names is None else dict(names)
        step = Step(self._next, what, tuple(moves), tuple(folders), self.names, after)
        self._check(step)
        line = {"step": step.number, **{k: v for k, v in vars(step).items() if k != "number"}}
        length = self._append(line, safe=True)
        self._take(step)
        try:
            self._make(step)
        except OSError as error:
            self._restore(step, self._unmake, length, error)
            self._give_back()
            raise
        self._note_done(step)
        return step

    def in_the_way(self) -> list[Move]:
        """Moves that `undo` would leave out, as something else is by now where they came from."""
        moves = self.steps[-1].moves if self.steps else ()
        there = os.path.lexists
        return [(old, new) for old, new in moves if there(self.root / old) and there(self.root / new)]

    def undo(self) -> Step | None:
        """Take the last step back; None if there is none.

        Raises:
            InputError: if an undoing that fails can't be taken back.
            OSError: if it fails; the folder and the journal are as they were.
        """
        if not self.steps:
            return None
        length = self._append({"undo": self.steps[-1].number}, safe=True)
        step = self._give_back()
        try:
            self._unmake(step)
        except OSError as error:
            self._restore(step, self._make, length, error)
            self._take(step)
            raise
        self._note_done(step)
        return step

    def _restore(self, step: Step, reverse: Callable[[Step], None], length: int, error: OSError) -> None:
        """Take back what was made of a step that failed, then its line.

        Args:
            step: it.
            reverse: makes what was made undone.
            length: bytes of the file before the line.
            error: why it failed.

        Raises:
            InputError: if that fails as well: then the line stays, and is carried out when the file is opened again.
        """
        try:
            reverse(step)
            self._cut(length)
        except OSError:
            raise InputError(
                f"{step.what} was cut short: {error.strerror or error}; it is finished when the project is opened again"
            ) from error

    def _note_done(self, step: Step) -> None:
        """Say that all moves of the last line are made; without this they are looked at again at the next opening."""
        with suppress(OSError):
            self._append({"done": step.number})

    def _read(self) -> None:
        """The steps that were not undone; the last one is finished if it was cut short."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            text = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise InputError(f"can't read {self.path}: {error.strerror or error}") from error
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):  # killed while writing: nothing was moved for such a line
            os.truncate(self.path, len(whole))
        pending: tuple[str, Step] | None = None
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                pending = self._follow(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
                raise InputError(
                    f"{self.path}, line {number}, is no step of the studio ({error}): move the file away to go on "
                    "without undoing what was done before"
                ) from error
        if pending is not None:
            way, step = pending
            try:
                (self._make if way == "step" else self._unmake)(step)
            except OSError as error:
                raise InputError(
                    f"{step.what} was cut short, and can't be finished: {error.filename or self.root}: "
                    f"{error.strerror or error}; see to that, then open the project again"
                ) from error
            self._note_done(step)

    def _follow(self, line: dict[str, Any]) -> tuple[str, Step] | None:
        """Take over a line; a step or undoing that is not known to be done is returned."""
        if "done" in line:
            return None
        if "undo" in line:
            if self.steps[-1].number != line["undo"]:
                raise ValueError("undone out of order")
            return "undo", self._give_back()
        moves = tuple((str(source), str(target)) for source, target in line["moves"])
        names = dict(line["before"]), dict(line["after"])
        if not all(isinstance(text, str) for each in names for text in each.values()):
            raise TypeError("a class name is no text")
        step = Step(int(line["step"]), str(line["what"]), moves, tuple(line["folders"]), *names)
        self._check(step)
        self._take(step)
        return "step", step

    def _take(self, step: Step) -> None:
        self.steps.append(step)
        self._next, self.names = max(self._next, step.number + 1), dict(step.after)

    def _give_back(self) -> Step:
        step = self.steps.pop()
        self.names = dict(step.before)
        return step

    def _check(self, step: Step) -> None:
        """Refuse a path that leads out of the folder: the journal may come from somebody else."""
        for path in [*step.folders, *(end for move in step.moves for end in move)]:
            if Path(path).is_absolute() or ".." in Path(path).parts or not self._inside(self.root / path):
                raise InputError(f"'{path}' leads out of the folder {self.root}: links to elsewhere are not followed")

    def _inside(self, path: Path) -> bool:
        """Whether the folder that holds a path lies in ours, links followed."""
        return Path(os.path.realpath(path.parent)).is_relative_to(self.root)

    def _make(self, step: Step) -> None:
        for folder in step.folders:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for source, target in step.moves:
            self._move(source, target)

    def _unmake(self, step: Step) -> None:
        for source, target in reversed(step.moves):
            self._move(target, source)
        for folder in reversed(step.folders):
            place = self.root / folder
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()

    def _move(self, source: str, target: str) -> None:
        """Move what is there, unless something is in its place: what somebody else put there is not overwritten."""
        old, new = self.root / source, self.root / target
        if not os.path.lexists(old) or os.path.lexists(new):
            return
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
        sync_folder(new.parent)
        sync_folder(old.parent)

    def _append(self, line: Mapping[str, Any], safe: bool = False) -> int:
        """Add a line; the number of bytes before it. ``safe`` has it on the disk before anything else happens.

        Of a line that could not be written, as on a full disk, nothing may stay: the next one would be added to it.
        """
        length = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")
                file.flush()
                if safe:
                    os.fsync(file.fileno())
        except OSError:
            if self.path.exists():
                self._cut(length)
            raise
        return length

    def _cut(self, length: int) -> None:
        """Shorten the file, on the disk too where that is possible."""
        os.truncate(self.path, length)
        with suppress(OSError), self.path.open("rb") as file:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have a folder's entries on the disk; systems that can't do that for folders do it by themselves."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
