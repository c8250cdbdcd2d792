"""Image classification sets of Hugging Face, by name; needs the extra ``hf``.

The rest of the library takes paths, so pictures that are kept inside a table are written to the cache folder as files,
byte by byte as they are, once. Pictures that are files already are used where they lie.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipadapter.cache import default_cache_dir
from clipadapter.data.dataset import SPLIT_ALIASES, Dataset, Listing, Sample
from clipadapter.data.split_file import missing_pictures
from clipadapter.errors import DataError, require
from clipadapter.files import printable, write_atomically

PREFIX = "hf:"

_WHOLE = "whole"  # an empty file, written when all pictures of a part are
_USUAL = ("label", "labels")


def read_hugging_face(name: str, cache: Path | None = None) -> Listing:
    """A set of Hugging Face's hub, or a folder that the package ``datasets`` reads.

    Args:
        name: ``NAME`` or ``NAME@CONFIG``; NAME is as on the hub, or a path.
        cache: folder for pictures; by default ``hf`` in the user's cache folder.

    Returns:
        The parts train, val and test; other parts are left out, unless there are no others.

    Raises:
        MissingExtraError: if the extra ``hf`` is not installed.
        DataError: if the set can't be had, or has not one column of pictures and one of labels.
    """
    package = require("datasets", "hf", "A data set of Hugging Face")
    tables = _open(package, name)
    known = {part: SPLIT_ALIASES[part.lower()] for part in tables if part.lower() in SPLIT_ALIASES}
    left_out = tuple((Path(part), "part beside train, val and test") for part in tables if known and part not in known)
    parts = known or dict.fromkeys(tables, "all")
    image, label = _columns(package, name, next(iter(tables.values())).features)
    class_names = tuple(next(iter(tables.values())).features[label].names)
    samples: list[Sample] = []
    for part, split in parts.items():
        table = tables[part]
        paths = _paths(package, table, image, (cache or default_cache_dir() / "hf") / _folder(name, part, table))
        labels = [class_names[row] if row is not None and row >= 0 else None for row in table[label]]
        samples += [Sample(path, text, split) for path, text in zip(paths, labels, strict=True)]
    return Listing(Dataset(f"{PREFIX}{name}", Path(), tuple(samples), class_names), left_out)


def _open(package: Any, name: str) -> Mapping[str, Any]:
    """Part to table."""
    what, _, config = name.partition("@")
    saved = any((Path(what) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        with _bars(package):
            found = package.load_from_disk(what) if saved else package.load_dataset(what, config or None)
    except Exception as error:  # the package's own errors have no common base, and differ by version
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"the Hugging Face data set '{printable(name)}' can't be loaded: {reason}") from error
    return found if isinstance(found, dict) else {"all": found}


@contextmanager
def _bars(package: Any) -> Iterator[None]:
    """Show the package's progress bars only if the hub's client shows its own."""
    hub: Any = importlib.import_module("huggingface_hub.utils")
    hide = hub.are_progress_bars_disabled() and not package.are_progress_bars_disabled()
    if hide:
        package.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            package.enable_progress_bars()


def _columns(package: Any, name: str, features: Mapping[str, Any]) -> tuple[str, str]:
    """The column of the pictures and the one of the labels."""
    images = [column for column, feature in features.items() if isinstance(feature, package.Image)]
    labels = [column for column, feature in features.items() if isinstance(feature, package.ClassLabel)]
    usual = [column for column in _USUAL if column in labels]
    if len(images) != 1 or not (usual or len(labels) == 1):
        found = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
        need = "one column of pictures (Image) and one of labels (ClassLabel), or one called label, are needed"
        raise DataError(f"the Hugging Face data set '{printable(name)}' has the columns {found}; {need}")
    return images[0], (usual or labels)[0]


def _folder(name: str, part: str, table: Any) -> Path:
    """Where the pictures of a part are kept: another version of the data has another fingerprint, so a new folder."""
    words = re.sub(r"[^\w.-]+", "-", name).strip("-.")[-60:]
    key = hashlib.blake2b(f"{name}\0{part}\0{table._fingerprint}".encode(), digest_size=8).hexdigest()
    return Path(f"{words}-{key}")


def _paths(package: Any, table: Any, image: str, folder: Path) -> list[Path]:
    """A file for each row, called by its number; what an interrupted run wrote is used again."""
    paths = [folder / str(number) for number in range(len(table))]
    if (folder / _WHOLE).is_file() and not missing_pictures(paths, folder):
        return paths
    rows = table.cast_column(image, package.Image(decode=False))
    found = [_path(row[image] or {}, path) for row, path in zip(rows, paths, strict=True)]
    if found and found == paths:
        write_atomically(folder / _WHOLE, b"", sync=False)
    return found


def _path(picture: Mapping[str, Any], path: Path) -> Path:
    """Where a row's picture lies: its own file, or the one at `path` with its bytes."""
    data, own = picture.get("bytes"), picture.get("path")
    if data is not None:
        if not path.is_file() or path.stat().st_size != len(data):
            write_atomically(path, data, sync=False)
        return path
    if own and Path(own).is_file():
        return Path(own)
    raise DataError(f"row {path.name} of the Hugging Face data set has no picture{f': {own} is gone' if own else ''}")
