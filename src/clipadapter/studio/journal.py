"""A write-ahead log of steps that can be undone. A step is a list of moves of files within one folder.

The line of a step is on the disk before its first move; a second line follows its last move. The next opening finishes
a step that a killed process began. A step that fails, as on a full disk, is reverted at once. No file is deleted: what
a person removes is moved to a trash folder. ``docs/decisions/0031-two-undos.md`` says why models have another undo.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from clipadapter.errors import InputError
from clipadapter.persistence.format import describe_first_error
from clipadapter.utils.files import is_same_name, path_without_links, sync_folder

Move = tuple[str, str]  # old and new path, relative to the folder, with slashes


@dataclass(frozen=True)
class Step:
    """One change that a person made, with the fields of its line in the file."""

    step: int  # its number, which counts up
    what: str  # was done, in words; names the step that undo reverts
    moves: tuple[Move, ...]  # moves of files and folders, in this order
    folders: tuple[str, ...]  # folders that the step makes
    before: dict[str, str]  # class names by folder before the step
    after: dict[str, str]  # class names by folder after the step


class Journal:
    """The steps of a folder, in a file of JSON lines, which has a folder of its own in it.

    No step moves that folder, or files directly in it: they are the program's own, and would be a way to put links in
    their place.

    Attributes:
        names: class names by folder after the last step.
        next_number: of the next step.
        steps: steps that were not undone.
    """

    def __init__(
        self,
        root: Path,
        path: Path,
        names: Mapping[str, str] | None = None,
        first_number: int = 1,
        write_names: Callable[[Mapping[str, str]], None] = lambda names: None,
    ) -> None:
        self.root, self.path = Path(os.path.realpath(root)), path_without_links(root, *path.relative_to(root).parts)
        self.names, self._write_names = dict(names or {}), write_names
        self.steps: list[Step] = []
        self.next_number = first_number
        self._replay()

    def perform(
        self,
        description: str,
        moves: Sequence[Move] = (),
        folders: Sequence[str] = (),
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Log a step and make its moves; it is on the disk when this returns. If that fails, all is as it was.

        ``names`` are the class names that change, by folder: "" for a folder that is gone. One with the name of its
        folder is not kept.
        """
        new = names or {}
        kept = {folder: name for folder, name in self.names.items() if folder not in new}
        after = kept | {folder: name for folder, name in new.items() if name not in ("", folder)}
        self._run(Step(self.next_number, description, tuple(moves), tuple(folders), self.names, after), is_undo=False)

    def undo(self) -> None:
        """Undo the last step, of which there must be one. If that fails, all is as it was."""
        self._run(self.steps[-1], is_undo=True)

    def _run(self, step: Step, is_undo: bool) -> None:
        """Log a step or its undo, make its moves and write the class names. If that fails, reverse it.

        If reversing fails as well, the line stays, and the next opening finishes the step.
        """
        self._check_paths(step)
        before = list(self.steps), self.names
        length = self._append({"undo": step.step} if is_undo else vars(step), sync=True)
        try:
            self._list(step, is_undo)
            self._move_all(step, is_undo)
            self._write_names(self.names)
        except (OSError, InputError) as error:
            try:
                self._move_all(step, not is_undo)
                self._truncate(length)
            except (OSError, InputError):
                reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                raise InputError(
                    f"{step.what} was interrupted: {reason}; open the project again to finish it"
                ) from error
            self.steps, self.names = before
            raise
        self._log_done(step)

    def _list(self, step: Step, is_undo: bool) -> None:
        """Put a step on the list of those that can be undone, or take it off."""
        if is_undo:
            self.steps.pop()
            self.names = step.before
        else:
            self.steps.append(step)
            self.next_number, self.names = max(self.next_number, step.step + 1), step.after

    # ---- The file ----

    def _replay(self) -> None:
        """Read the steps that were not undone. Finish the last one if a killed process began it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise InputError(f"can't read {self.path}: {error.strerror or error}") from error
        complete = data[: data.rfind(b"\n") + 1]
        if len(complete) < len(data):  # killed while the line was written: none of its moves was made
            os.truncate(self.path, len(complete))
        unfinished: tuple[Step, bool] | None = None
        for number, line in enumerate(complete.splitlines(), start=1):
            try:
                unfinished = self._apply_line(json.loads(line))
            except (LookupError, ValueError, TypeError, RecursionError) as error:
                reason = describe_first_error(error) if isinstance(error, ValidationError) else error
                raise InputError(
                    f"{self.path}: line {number} is not a step of the studio ({reason}); move the file away to "
                    "continue without undo of earlier steps"
                ) from error
        if unfinished is not None:
            step, is_undo = unfinished
            try:
                self._move_all(step, is_undo)
            except OSError as error:
                raise InputError(
                    f"{step.what} was interrupted and can't be finished: {error.filename or self.root}: "
                    f"{error.strerror or error}; correct this, then open the project again"
                ) from error
            self._log_done(step)
        self._write_names(self.names)

    def _apply_line(self, line: dict[str, Any]) -> tuple[Step, bool] | None:
        """Apply a line to the list of steps. Return a step that has no line "done" yet, and whether it is an undo."""
        if "done" in line:
            return None
        is_undo = "undo" in line
        step = self.steps[-1] if is_undo else Step(**line)
        if is_undo and step.step != line["undo"]:
            raise ValueError("the undo is not of the last step")
        self._check_paths(step)
        self._list(step, is_undo)
        return step, is_undo

    def _append(self, line: Mapping[str, Any], sync: bool = False) -> int:
        """Append a line. Return the number of bytes before it.

        A line that can't be written, as on a full disk, is removed: the next line would be appended to its rest.
        """
        length = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        except OSError:
            if self.path.exists():
                self._truncate(length)
            raise
        return length

    def _truncate(self, length: int) -> None:
        """Shorten the file, on the disk too where that is possible."""
        os.truncate(self.path, length)
        with suppress(OSError), self.path.open("rb") as file:
            os.fsync(file.fileno())

    def _log_done(self, step: Step) -> None:
        """Log that all moves of the last line are made. Without this line, the next opening checks them again."""
        with suppress(OSError):
            self._append({"done": step.step})

    # ---- Moves ----

    def _check_paths(self, step: Step) -> None:
        """Refuse paths outside the folder: the journal may come from another person."""
        for path in [*step.folders, *(end for move in step.moves for end in move)]:
            self._resolve(path)

    def _resolve(self, path: str) -> Path:
        """The path of a file or folder of a step. It is checked again at each move: an earlier one may move a link."""
        if Path(path).is_absolute() or ".." in Path(path).parts:  # before the system looks for it
            raise InputError(f"'{path}' is outside the folder {self.root}")
        parent, own = Path(os.path.realpath((self.root / path).parent)), self.path.parent.name
        if not parent.is_relative_to(self.root):
            raise InputError(f"'{path}' is outside the folder {self.root}: links out of it are not followed")
        parts = (parent / Path(path).name).relative_to(self.root).parts
        is_own = is_same_name(parts[0], own)
        with suppress(OSError):  # a link to it, or the short name that Windows gives it
            is_own = is_own or (self.root / parts[0]).samefile(self.path.parent)
        if is_own and len(parts) < 3:
            raise InputError(f"'{path}' is the studio's own, which no step moves")
        return self.root / path

    def _move_all(self, step: Step, is_undo: bool) -> None:
        """Make the moves of a step, or reverse them."""
        if not is_undo:
            for folder in step.folders:
                self._resolve(folder).mkdir(parents=True, exist_ok=True)
            for old, new in step.moves:
                self._move(old, new)
            return
        for old, new in reversed(step.moves):
            self._move(new, old)
        for folder in reversed(step.folders):
            path = self._resolve(folder)
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def _move(self, source: str, target: str) -> None:
        """Move a file or folder that exists, unless the target exists: nothing is overwritten."""
        old, new = self._resolve(source), self._resolve(target)
        if not os.path.lexists(old) or os.path.lexists(new):
            return
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
        sync_folder(new.parent)
        sync_folder(old.parent)
