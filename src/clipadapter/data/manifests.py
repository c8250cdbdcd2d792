"""Manifests: tables with the columns ``path`` and ``label``, and ``split`` if there are parts.

Pictures with several labels have a column ``labels`` instead: names with ``|`` between them, or nothing.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipadapter.data.dataset import SPLIT_ALIASES, Listing, Sample, format_list, make_dataset
from clipadapter.errors import DataError, require
from clipadapter.files import MANIFEST_SUFFIXES, open_regular, open_text, printable
from clipadapter.parsing import parse_json_lines

_Rows = Iterator[tuple[int, Mapping[str, Any]]]


def read_manifest(path: Path) -> Listing:
    """The pictures that a CSV, TSV, JSONL or Parquet file names; relative paths start at the file's folder.

    Without a column ``label`` the pictures have no labels, but only if no other column could have been meant. A column
    ``labels`` has all class names of a picture, such as ``cat|dog``, or none of them; JSONL and Parquet may also have
    lists there.

    Raises:
        DataError: if the file can't be read, a column or value is missing, or no picture exists.
        MissingExtraError: if Parquet is read without the extra.
    """
    samples: list[Sample] = []
    try:
        for line, row in _READERS[path.suffix.lower()](path):
            samples.append(_sample(path, line, row))
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(path)}: the text is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{printable(path)} can't be opened: {error.strerror or error}") from error
    # Not Path.exists, which raises if a name is longer than any can be.
    if samples and not any(os.path.exists(sample.path) for sample in samples):  # noqa: PTH110
        where = f"relative paths start at {printable(path.parent.resolve())}"
        raise DataError(
            f"{printable(path)}: none of its {len(samples)} pictures exists, {where}: {format_list([samples[0].path])}"
        )
    if len({sample.labels is None for sample in samples}) > 1:
        raise DataError(
            f"{printable(path)}: some rows have the key 'labels' and some have not; an empty one is none of them"
        )
    if len({sample.split for sample in samples} - {"all"}) and any(sample.split == "all" for sample in samples):
        raise DataError(f"{printable(path)}: some rows have a split and some have none")
    return Listing(make_dataset(printable(path.stem), path.parent, samples))


def is_manifest(path: Path) -> bool:
    """Whether the suffix is one that `read_manifest` reads."""
    return path.suffix.lower() in MANIFEST_SUFFIXES


def _sample(manifest: Path, line: int, row: Mapping[str, Any]) -> Sample:
    where = f"{printable(manifest)}, line {line}"
    extra = set(row) - {"path", "split", "labels"}
    if "label" in row and "labels" in row:
        raise DataError(f"{where}: there are columns 'label' and 'labels'; keep 'labels' if pictures have several")
    for column in ("path", "label") if extra and "labels" not in row else ("path",):
        if column not in row:
            raise DataError(f"{where}: there is no column '{column}'; the columns are: {printable(', '.join(row))}")
    label = _text(row["label"], "label", where) if "label" in row else None
    split = "all"
    if "split" in row:
        came = _text(row["split"], "split", where)
        if came.lower() not in SPLIT_ALIASES:
            raise DataError(f"{where}: the split is '{came}' but must be train, val or test")
        split = SPLIT_ALIASES[came.lower()]
    labels = _names(row["labels"], where) if "labels" in row else None
    return Sample(manifest.parent / _text(row["path"], "path", where), label, split, labels)


def _names(value: object, where: str) -> tuple[str, ...]:
    """The names of a field ``labels``, each once; nothing between the bars, or before or after, is a mistake."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    parts = value if isinstance(value, list) else _text(value, "labels", where).split("|")
    return tuple(dict.fromkeys(_text(part, "name among the labels", where) for part in parts))


def _text(value: object, column: str, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and value.strip():
        if not _can_be_written(value, column):
            raise DataError(f"{where}: the {column} has half of a letter (a lone surrogate): {printable(value)}")
        return value.strip()
    came = "is empty" if value is None or isinstance(value, str) else f"is {value!r}, not a text"
    raise DataError(f"{where}: the {column} {came}")


def _can_be_written(text: str, column: str) -> bool:
    """Whether a text is one that UTF-8, or in a path the file system, can hold."""
    try:
        os.fsencode(text) if column == "path" else text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_rows(path: Path, delimiter: str = ",") -> _Rows:
    # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first column's name
    with open_text(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if not header:
                raise DataError(f"{printable(path)} is empty: expected a first line such as path,label")
            for fields in reader:
                if len(fields) not in (0, len(header)):
                    counts = f"{len(fields)} fields but {len(header)} columns"
                    raise DataError(f"{printable(path)}, line {reader.line_num}: {counts} ({', '.join(header)})")
                if fields:
                    yield reader.line_num, dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise DataError(f"{printable(path)}, line {reader.line_num}: {error}") from error


def _tsv_rows(path: Path) -> _Rows:
    return _csv_rows(path, delimiter="\t")


def _jsonl_rows(path: Path) -> _Rows:
    with open_text(path) as file:
        # Names of files may have halves of letters, where their bytes are no UTF-8; `_text` refuses them elsewhere.
        for number, row in parse_json_lines(file, printable(path), surrogates=True):
            if not isinstance(row, dict):
                expected = 'expected an object such as {"path": "cat/1.jpg", "label": "cat"}'
                raise DataError(f"{printable(path)}, line {number}: {expected}")
            yield number, row


def _parquet_rows(path: Path) -> _Rows:
    parquet = require("pyarrow.parquet", "parquet", "Reading a Parquet manifest")
    arrow = require("pyarrow", "parquet", "Reading a Parquet manifest")
    try:
        with open_regular(path) as file:
            table = parquet.read_table(file)
    except arrow.ArrowInvalid as error:
        raise DataError(f"{printable(path)} is no Parquet file: {error}") from error
    yield from enumerate(table.to_pylist(), 1)


_READERS: Mapping[str, Callable[[Path], _Rows]] = dict(
    zip(MANIFEST_SUFFIXES, (_csv_rows, _tsv_rows, _jsonl_rows, _parquet_rows), strict=True)
)
