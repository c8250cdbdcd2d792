"""Pictures copied into one folder per class, for ``predict --sort-into``."""

from __future__ import annotations

import filecmp
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from clipadapter.cli.inputs import check_output_folder
from clipadapter.errors import InputError
from clipadapter.utils.formatting import format_count, table

NONE_OF_THESE = "none of these"
"""Name, and folder, of pictures without a class."""


def count_answers(answers: Counter[tuple[str | None, bool]]) -> str:
    """Format the number of pictures per answer as a table, the most frequent answer first.

    An answer is a label, or None, and whether it is marked as unlike every class. A further column counts the marked
    ones, if there are any.
    """
    totals: Counter[str | None] = Counter()
    for (label, _), n in answers.items():
        totals[label] += n
    rows = [(NONE_OF_THESE if label is None else label, n, answers[label, True]) for label, n in totals.most_common()]
    columns = ["class", "pictures", "unlike every class"][: 3 if any(row[2] for row in rows) else 2]
    return table(columns, [row[: len(columns)] for row in rows])


class PictureSorter:
    """Copies pictures into the folder of their class. Nothing is moved or overwritten, and no link is followed there.

    The root is made with the first picture. It must not be in a folder of the inputs: its copies would be read the next
    time.
    """

    def __init__(self, root: Path, inputs: Sequence[Path]) -> None:
        real = check_output_folder(root).resolve()
        if source := next((folder for folder in inputs if real.is_relative_to(folder.resolve())), None):
            raise InputError(f"--sort-into {root} is in {source}, whose pictures are read: give a folder elsewhere")
        self.root = root
        self.n_copied = self.n_present = 0
        self._folders: dict[str | None, str] = {}

    def _name_folders(self, class_names: Sequence[str]) -> None:
        from clipadapter.studio.project import safe_folder_name

        for name in (*class_names, None):
            self._folders[name] = safe_folder_name(NONE_OF_THESE if name is None else name, self._folders.values())

    def add(self, picture: Path, label: str | None, class_names: Sequence[str]) -> None:
        """Copy a picture; a name that another picture has gets a number. A picture that is there is left."""
        if not self._folders:
            self._name_folders(class_names)
        folder = self.root / self._folders[label]
        if folder.is_symlink():
            raise InputError(f"{folder} is a link: give a folder without links, or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            target = folder / (picture.name if number == 1 else f"{picture.stem}-{number}{picture.suffix}")
            try:
                with picture.open("rb") as source, target.open("xb") as copy:
                    try:
                        shutil.copyfileobj(source, copy)
                    except BaseException:  # Ctrl-C too: no part of a picture is left
                        target.unlink()
                        raise
            except FileExistsError:
                if target.is_file() and not target.is_symlink() and filecmp.cmp(picture, target, shallow=False):
                    self.n_present += 1
                    return
                continue
            shutil.copystat(picture, target)
            self.n_copied += 1
            return

    def describe(self) -> str:
        """Describe what was copied."""
        present = f"; {format_count(self.n_present, 'picture')} were there already" if self.n_present else ""
        return f"copied {format_count(self.n_copied, 'picture')} into {self.root}{present}"
