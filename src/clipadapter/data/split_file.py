"""CoOp's split files.

A split file is a JSON object with ``train``, ``val`` and ``test``, each a list of ``[path, label, class name]``.
Its rows keep their order, since the draw of the shots refers to rows by number.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath

from clipadapter.data.dataset import Sample
from clipadapter.errors import DataError
from clipadapter.utils.files import printable
from clipadapter.utils.formatting import format_list
from clipadapter.utils.parsing import read_json

SPLITS = ("train", "val", "test")

_ROW_FORMAT = "[path, label, class name]"


def read_split(path: Path, image_folder: Path) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Read a split file: its rows as samples, and the class names in the order of their labels.

    Its paths are relative to `image_folder`. Those that leave it are refused. Pictures need not exist.
    """
    content = read_json(path, "download the file again")
    where = printable(path)
    if not isinstance(content, dict) or not {"train", "test"} <= set(content) <= set(SPLITS):
        actual = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{where}: expected an object with train, val and test, got: {actual or 'nothing'}")
    names: dict[int, str] = {}
    samples = []
    for split in (split for split in SPLITS if split in content):
        if not isinstance(content[split], list) or (split != "val" and not content[split]):
            raise DataError(f"{where}: {split} must be a list of rows {_ROW_FORMAT}")
        for number, row in enumerate(content[split]):
            row_path, label, class_name = _parse_row(row, f"{where}: row {number} of {split}")
            if names.setdefault(label, class_name) != class_name:
                conflict = f"gives label {label} the name '{class_name}', but an earlier row '{names[label]}'"
                raise DataError(f"{where}: row {number} of {split} {conflict}")
            samples.append(Sample(image_folder / row_path, class_name, split))
    class_names = tuple(names[label] for label in sorted(names))
    duplicates = sorted({name for name in class_names if class_names.count(name) > 1})
    if duplicates:
        raise DataError(f"{where}: two labels have the same class name: {format_list(duplicates)}")
    return tuple(samples), class_names


def is_inside(name: str) -> bool:
    r"""Whether a relative path of any operating system stays in its folder.

    >>> [is_inside(name) for name in ("a/1.jpg", "/a/1.jpg", "a/../../1.jpg", "..\\1.jpg", "C:\\1.jpg", "")]
    [True, False, False, False, False, False]
    """
    path = PureWindowsPath(name)  # accepts both kinds of slashes
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in name


def missing_pictures(paths: Iterable[Path], root: Path) -> list[Path]:
    """The paths without a file. Each folder is listed once; a link that leads out of the root counts as missing."""
    real_root = Path(os.path.realpath(root))
    names_by_folder: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        if path.parent not in names_by_folder:
            names_by_folder[path.parent] = set(_list_files(path.parent, real_root))
        if path.name not in names_by_folder[path.parent]:
            missing.append(path)
    return missing


def _list_files(folder: Path, real_root: Path) -> Iterator[str]:
    if not Path(os.path.realpath(folder)).is_relative_to(real_root):
        return
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_within_root = not entry.is_symlink() or Path(os.path.realpath(entry)).is_relative_to(real_root)
                if is_within_root and entry.is_file():
                    yield entry.name
    except OSError:
        return


def _parse_row(row: object, where: str) -> tuple[str, int, str]:
    if not isinstance(row, list) or len(row) != 3:
        raise DataError(f"{where} must be {_ROW_FORMAT}, got {_shorten(row)}")
    path, label, class_name = row
    if not isinstance(path, str) or not is_inside(path):
        raise DataError(f"{where}: the path must be inside the folder of the pictures, got {_shorten(path)}")
    if type(label) is not int or label < 0:
        raise DataError(f"{where}: the label must be an integer of at least 0, got {_shorten(label)}")
    if not isinstance(class_name, str) or not class_name.strip():
        raise DataError(f"{where}: the class name must be a string that is not empty, got {_shorten(class_name)}")
    return path, label, class_name


def _shorten(value: object) -> str:
    text = printable(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
