"""CoOp's split files, and the few-shot draws that others published for them.

A split file is a JSON object with ``train``, ``val`` and ``test``, each a list of ``[path, label, class name]``.
Its rows keep their order, since a published draw names rows by their number.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath

from clipadapter.data.dataset import Dataset, Sample, format_list
from clipadapter.errors import DataError
from clipadapter.files import printable
from clipadapter.parsing import read_json

PARTS = ("train", "val", "test")

_ROW = "[path, label, class name]"


def read_split(path: Path, pictures: Path) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """The rows of a split file as samples, and the class names in the order of their labels.

    Args:
        path: the file.
        pictures: folder in which its paths start; no row leads out of it. No picture is looked for.

    Raises:
        DataError: if the file can't be read, is damaged, or two classes share a label or a name.
    """
    found = read_json(path, "fetch the file again")
    where = printable(path)
    if not isinstance(found, dict) or not set(found) <= set(PARTS) or not {"train", "test"} <= set(found):
        came = ", ".join(map(str, list(found)[:5])) if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{where}: expected an object with train, val and test, got: {came or 'nothing'}")
    names: dict[int, str] = {}
    samples = []
    for part in (part for part in PARTS if part in found):
        if not isinstance(found[part], list) or (part != "val" and not found[part]):
            raise DataError(f"{where}: {part} must be a list of rows {_ROW}")
        for number, row in enumerate(found[part]):
            name, label, text = _row(row, f"{where}: row {number} of {part}")
            if names.setdefault(label, text) != text:
                said = f"calls label {label} '{text}', but a row before '{names[label]}'"
                raise DataError(f"{where}: row {number} of {part} {said}")
            samples.append(Sample(pictures / name, text, part))
    ordered = tuple(names[label] for label in sorted(names))
    if len(set(ordered)) < len(ordered):
        twice = sorted({name for name in ordered if ordered.count(name) > 1})
        raise DataError(f"{where}: two labels have the same class name: {format_list(twice)}")
    return tuple(samples), ordered


def read_draw(path: str | Path, dataset: Dataset) -> tuple[list[int], list[int]]:
    """The rows of a published few-shot draw, a file such as ``shot_1-seed_1.json``.

    Args:
        path: a JSON file ``{"train": {"indices": [...], "data": [{"impath", "label", "classname"}, ...]},
            "val": {...}}``.
        dataset: what the shots were drawn from, with the parts train and val.

    Returns:
        Row numbers in ``dataset.split("train")`` and in ``dataset.split("val")``; the second is empty if the file
        has no validation shots.

    Raises:
        DataError: if the file is damaged, or a row is another picture or class than the file says: then the draw
            is one from other data, or from another split file.
    """
    found = read_json(path)
    if not isinstance(found, dict) or "train" not in found or not set(found) <= {"train", "val"}:
        raise DataError(f"{printable(path)}: expected an object with train and val, each with data and indices")
    train, val = (list(_drawn(found.get(part), part, path, dataset)) for part in ("train", "val"))
    return train, val


def is_inside(name: str) -> bool:
    r"""Whether a relative path, of any system, stays in its folder.

    >>> [is_inside(name) for name in ("a/1.jpg", "/a/1.jpg", "a/../../1.jpg", "..\\1.jpg", "C:\\1.jpg", "")]
    [True, False, False, False, False, False]
    """
    path = PureWindowsPath(name)  # takes both slashes for what they are
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in name


def missing_pictures(paths: Iterable[Path], root: Path) -> list[Path]:
    """The paths at which there is no file; each folder is listed once.

    Args:
        paths: of pictures under `root`.
        root: a link in it that leads out of it counts as missing.
    """
    real = Path(os.path.realpath(root))
    listed: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        if path.parent not in listed:
            listed[path.parent] = set(_files(path.parent, real))
        if path.name not in listed[path.parent]:
            missing.append(path)
    return missing


def _files(folder: Path, real: Path) -> Iterator[str]:
    if not Path(os.path.realpath(folder)).is_relative_to(real):
        return
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                inside = not entry.is_symlink() or Path(os.path.realpath(entry)).is_relative_to(real)
                if inside and entry.is_file():
                    yield entry.name
    except OSError:
        return


def _row(row: object, where: str) -> tuple[str, int, str]:
    if not isinstance(row, list) or len(row) != 3:
        raise DataError(f"{where} must be {_ROW}, got {_brief(row)}")
    name, label, text = row
    if not isinstance(name, str) or not is_inside(name):
        raise DataError(f"{where}: the path must lie in the folder of the pictures, got {_brief(name)}")
    if type(label) is not int or label < 0:
        raise DataError(f"{where}: the label must be a whole number from 0, got {_brief(label)}")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: the class name must be a text, got {_brief(text)}")
    return name, label, text


def _drawn(found: object, part: str, path: str | Path, dataset: Dataset) -> Iterator[int]:
    if found is None:
        return
    where = f"{printable(path)}: {part}"
    rows, data = (found.get("indices"), found.get("data")) if isinstance(found, dict) else (None, None)
    if not isinstance(rows, list) or not isinstance(data, list) or len(rows) != len(data):
        raise DataError(f"{where} must have 'indices' and 'data', two lists of equal length")
    samples = dataset.split(part).samples
    for row, item in zip(rows, data, strict=True):
        if type(row) is not int or not 0 <= row < len(samples):
            raise DataError(f"{where}: row {_brief(row)} is none of the {len(samples)} of '{dataset.name}'")
        sample = samples[row]
        said = item if isinstance(item, dict) else {}
        there = (str(said.get("impath")).replace("\\", "/").rpartition("/")[2], said.get("classname"))
        if there != (sample.path.name, sample.label):
            ours = f"'{sample.path.name}' of class '{sample.label}' in '{dataset.name}'"
            raise DataError(f"{where}: row {row} is {ours}, but the draw has '{there[0]}' of class '{there[1]}' there")
        yield row


def _brief(value: object) -> str:
    text = printable(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
