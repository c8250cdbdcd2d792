"""Pictures on their way into a folder: which are taken, which are not and why, and the moves that take them there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipadapter.data.images import image_bytes
from clipadapter.errors import ImageError
from clipadapter.files import printable
from clipadapter.studio._journal import Move
from clipadapter.studio._pictures import Equal, Picture, Upload, stored_name, why_not, write_picture
from clipadapter.studio._reading import Contents


@dataclass
class Added:
    """What became of pictures that were to be added.

    Args:
        keys: those that are there now.
        twice: names of those that were there before.
        elsewhere: keys of equal pictures in another class, and that class; they stay there.
        refused: names of those that are no pictures, or must not be learned from, and why.
    """

    keys: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    elsewhere: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


class Batch:
    """Some pictures for one folder; `moves` is what is to be done, `said` what is to be told.

    Args:
        root: the project.
        incoming: folder in it that bytes are written to before they are moved.
        contents: what is there.
        equal: finds files of equal bytes.
        target: the folder, from the project on.
        name: the class that the folder is of; None for those to label.
    """

    def __init__(
        self, root: Path, incoming: str, contents: Contents, equal: Equal, target: str, name: str | None
    ) -> None:
        self.moves: list[Move] = []
        self.said = Added()
        self._root, self._incoming, self._contents, self._equal = root, incoming, contents, equal
        self._target, self._name = target, name

    def take(self, upload: Upload) -> None:
        """Tell what is to become of a picture; if it is to be added, its bytes are on the disk after this.

        Raises:
            InputError: if the disk can't be written.
        """
        reason = why_not(upload) or self._of_test(upload)
        target = f"{self._target}/{stored_name(upload)}"
        same = [] if reason else self._equal.among(upload.data, self._contents.all())
        classes = {self._contents.label(one.key): one for one in same}
        others = [(label, one) for label, one in classes.items() if label not in (self._name, None)]
        if reason:
            self.said.refused.append((upload.name, reason))
        elif self._name in classes or target in self.said.keys:
            self.said.twice.append(upload.name)
        elif others:
            self.said.elsewhere.append((others[0][1].key, str(others[0][0])))
        else:
            waiting = [one for one in same if not one.outside]
            source = _place(self._root, waiting[0]) if waiting else f"{self._incoming}/{stored_name(upload)}"
            if not waiting:
                write_picture(self._root / self._incoming, upload)
            self.moves.append((source, target))
            self.said.keys.append(target)

    def take_there(self, found: Sequence[Picture]) -> None:
        """The same with pictures that are there: those of the project are moved, those outside are copied.

        Raises:
            InputError: if the disk can't be written.
        """
        inside = [one for one in found if not one.outside and self._contents.label(one.key) != self._name]
        self.moves += moves_into(self._root, inside, self._target)
        self.said.keys += [target for _, target in self.moves]
        for one in (one for one in found if one.outside):
            try:
                self.take(Upload(one.path.name, image_bytes(one.path)))
            except ImageError as error:
                self.said.refused.append((printable(one.path.name), error.reason))

    def _of_test(self, upload: Upload) -> str | None:
        test = [one for each in self._contents.test.values() for one in each]
        return "it is one of the test pictures" if self._equal.among(upload.data, test) else None


def moves_into(root: Path, found: Sequence[Picture], folder: str) -> list[Move]:
    """Moves into a folder, to names that are free there."""
    place = root / folder
    taken = {path.name.casefold() for path in place.iterdir()} if place.is_dir() else set()
    moves: list[Move] = []
    for one in found:
        name, number = one.path.name, 2
        while name.casefold() in taken:
            name, number = f"{one.path.stem}-{number}{one.path.suffix}", number + 1
        taken.add(name.casefold())
        moves.append((_place(root, one), f"{folder}/{name}"))
    return moves


def _place(root: Path, picture: Picture) -> str:
    """Where a picture of the project lies in truth: its key is text, but the name of a file need be none."""
    return picture.path.relative_to(root).as_posix()
