"""Image classification data sets of the Hugging Face hub, by name; needs the extra ``hf``.

The rest of the library takes paths. So pictures inside a table are written to the cache folder once, with their bytes
unchanged. Pictures that are files already are used in place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipadapter.data.dataset import SPLIT_ALIASES, Dataset, Listing, Sample
from clipadapter.data.sets.layouts import missing_pictures
from clipadapter.errors import DataError, require
from clipadapter.utils.files import default_cache_dir, printable, safe_file_name, write_atomically

PREFIX = "hf:"

_COMPLETE_MARKER = "whole"  # an empty file, written after all pictures of a split
_LABEL_COLUMNS = ("label", "labels")


def read_hugging_face(name: str) -> Listing:
    """Read ``NAME`` or ``NAME@CONFIG`` of the Hugging Face hub, or a folder that the package ``datasets`` reads."""
    # Other splits than train, val and test are left out, unless there are only others.
    package = require("datasets", "hf", "A data set of Hugging Face")
    tables = _load_tables(package, name)
    known_splits = {part: SPLIT_ALIASES[part.lower()] for part in tables if part.lower() in SPLIT_ALIASES}
    left_out = tuple(
        (Path(part), "not one of the splits train, val and test")
        for part in tables
        if known_splits and part not in known_splits
    )
    split_by_part = known_splits or dict.fromkeys(tables, "all")
    image, label = _find_columns(package, name, next(iter(tables.values())).features)
    class_names = tuple(next(iter(tables.values())).features[label].names)
    samples: list[Sample] = []
    for part, split in split_by_part.items():
        table = tables[part]
        # The fingerprint of a table changes with its data.
        key = hashlib.blake2b(f"{name}\0{part}\0{table._fingerprint}".encode(), digest_size=8).hexdigest()
        paths = _write_pictures(package, table, image, default_cache_dir() / "hf" / safe_file_name(f"{key}-{name}"))
        labels = [class_names[row] if row is not None and row >= 0 else None for row in table[label]]
        samples += [Sample(path, text, split) for path, text in zip(paths, labels, strict=True)]
    return Listing(Dataset(f"{PREFIX}{name}", Path(), tuple(samples), class_names), left_out)


def _load_tables(package: Any, name: str) -> Mapping[str, Any]:
    """Load the tables by split name."""
    path, _, config = name.partition("@")
    is_saved = any((Path(path) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        tables = package.load_from_disk(path) if is_saved else package.load_dataset(path, config or None)
    except Exception as error:  # the package's errors have no common base class and differ by version
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"the Hugging Face data set '{printable(name)}' can't be loaded: {reason}") from error
    return tables if isinstance(tables, dict) else {"all": tables}


def _find_columns(package: Any, name: str, features: Mapping[str, Any]) -> tuple[str, str]:
    """The names of the column of pictures and of the column of labels."""
    images = [column for column, feature in features.items() if isinstance(feature, package.Image)]
    labels = [column for column, feature in features.items() if isinstance(feature, package.ClassLabel)]
    usual_labels = [column for column in _LABEL_COLUMNS if column in labels]
    if len(images) != 1 or not (usual_labels or len(labels) == 1):
        description = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
        requirement = "it needs one column of pictures (Image) and one of labels (ClassLabel), or one called label"
        raise DataError(f"the Hugging Face data set '{printable(name)}' has the columns {description}; {requirement}")
    return images[0], (usual_labels or labels)[0]


def _write_pictures(package: Any, table: Any, image: str, folder: Path) -> list[Path]:
    """Write one file per row, named by row number. Files of an interrupted run are reused."""
    paths = [folder / str(number) for number in range(len(table))]
    if (folder / _COMPLETE_MARKER).is_file() and not missing_pictures(paths, folder):
        return paths
    rows = table.cast_column(image, package.Image(decode=False))
    written = [_write_picture(row[image] or {}, path) for row, path in zip(rows, paths, strict=True)]
    if written and written == paths:
        write_atomically(folder / _COMPLETE_MARKER, b"", sync=False)
    return written


def _write_picture(picture: Mapping[str, Any], path: Path) -> Path:
    """The path of a row's picture: its own file, or `path` after its bytes were written there."""
    data, own_path = picture.get("bytes"), picture.get("path")
    if data is not None:
        if not path.is_file() or path.stat().st_size != len(data):
            write_atomically(path, data, sync=False)
        return path
    if own_path and Path(own_path).is_file():
        return Path(own_path)
    raise DataError(
        f"row {path.name} of the Hugging Face data set has no picture{f': {own_path} is gone' if own_path else ''}"
    )
