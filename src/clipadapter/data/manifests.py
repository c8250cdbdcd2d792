"""Manifests: tables with the columns ``path``, ``label`` and optionally ``split``.

Multi-label manifests have a column ``labels`` instead: names with ``|`` between them, or an empty field.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipadapter.data.dataset import SPLIT_ALIASES, Listing, Sample, make_dataset
from clipadapter.errors import DataError, require
from clipadapter.files import MANIFEST_SUFFIXES, describe_parquet_error, open_regular, open_text, printable
from clipadapter.formatting import format_list
from clipadapter.parsing import parse_json_lines

_NumberedRows = Iterator[tuple[int, Mapping[str, Any]]]
_PARQUET_ADVICE = "copy or write it again, or give a table that ends with .csv, .tsv or .jsonl"


def read_manifest(path: Path) -> Listing:
    """Read a CSV, TSV, JSONL or Parquet file of pictures. Paths are relative to the file's folder.

    Without a column ``label`` the pictures have no labels; that is an error if there is an unknown column, which may be
    a misspelt one. A column ``labels`` has all class names of a picture, such as ``cat|dog``, or is empty. In JSONL and
    Parquet it can also be a list.

    Raises:
        DataError: if the file can't be read, a column or value is missing, or no picture exists.
        MissingExtraError: if Parquet is read without the extra.
    """
    samples: list[Sample] = []
    try:
        for line, row in _READERS[path.suffix.lower()](path):
            samples.append(_parse_row(path, line, row))
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(path)}: the text is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{printable(path)} can't be opened: {error.strerror or error}") from error
    # Path.exists raises an error if a name is too long.
    if samples and not any(os.path.exists(sample.path) for sample in samples):  # noqa: PTH110
        where = f"paths are relative to {printable(path.parent.resolve())}"
        raise DataError(
            f"{printable(path)}: none of its {len(samples)} pictures exists, {where}: {format_list([samples[0].path])}"
        )
    if len({sample.label_set is None for sample in samples}) > 1:
        raise DataError(
            f"{printable(path)}: some rows have 'labels' and some do not; for none of the classes give an empty value"
        )
    if len({sample.split for sample in samples} - {"all"}) and any(sample.split == "all" for sample in samples):
        raise DataError(f"{printable(path)}: some rows have a split and some do not")
    return Listing(make_dataset(printable(path.stem), path.parent, samples))


def is_manifest(path: Path) -> bool:
    """Whether `read_manifest` reads files with this suffix."""
    return path.suffix.lower() in MANIFEST_SUFFIXES


def _parse_row(manifest: Path, line: int, row: Mapping[str, Any]) -> Sample:
    where = f"{printable(manifest)}, line {line}"
    other_columns = set(row) - {"path", "split", "labels"}
    if "label" in row and "labels" in row:
        raise DataError(f"{where}: there are both columns 'label' and 'labels'; keep 'labels' for multi-label data")
    for column in ("path", "label") if other_columns and "labels" not in row else ("path",):
        if column not in row:
            raise DataError(f"{where}: there is no column '{column}'; the columns are: {printable(', '.join(row))}")
    label = _parse_text(row["label"], "label", where) if "label" in row else None
    split = "all"
    if "split" in row:
        split_name = _parse_text(row["split"], "split", where)
        if split_name.lower() not in SPLIT_ALIASES:
            raise DataError(f"{where}: the split is '{split_name}' but must be train, val or test")
        split = SPLIT_ALIASES[split_name.lower()]
    labels = _parse_labels(row["labels"], where) if "labels" in row else None
    return Sample(manifest.parent / _parse_text(row["path"], "path", where), label, split, labels)


def _parse_labels(value: object, where: str) -> tuple[str, ...]:
    """The unique names of a field ``labels``. An empty name before, between or after bars is an error."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    names = value if isinstance(value, list) else _parse_text(value, "labels", where).split("|")
    return tuple(dict.fromkeys(_parse_text(part, "name among the labels", where) for part in names))


def _parse_text(value: object, column: str, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and value.strip():
        if not _is_encodable(value, column):
            raise DataError(f"{where}: the {column} has a lone surrogate (half of a character): {printable(value)}")
        return value.strip()
    problem = "is empty" if value is None or isinstance(value, str) else f"is {value!r}, not a string"
    raise DataError(f"{where}: the {column} {problem}")


def _is_encodable(text: str, column: str) -> bool:
    """Whether UTF-8, or for a path the file system, can encode a text."""
    try:
        os.fsencode(text) if column == "path" else text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_rows(path: Path, delimiter: str = ",") -> _NumberedRows:
    # open_text skips the byte order mark of spreadsheets, which would become part of the first column's name.
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


def _tsv_rows(path: Path) -> _NumberedRows:
    return _csv_rows(path, delimiter="\t")


def _jsonl_rows(path: Path) -> _NumberedRows:
    with open_text(path) as file:
        # File names have lone surrogates if their bytes are not UTF-8; `_parse_text` refuses them in other columns.
        for number, row in parse_json_lines(file, printable(path), surrogates=True):
            if not isinstance(row, dict):
                expected = 'expected an object such as {"path": "cat/1.jpg", "label": "cat"}'
                raise DataError(f"{printable(path)}, line {number}: {expected}")
            yield number, row


def _parquet_rows(path: Path) -> _NumberedRows:
    parquet = require("pyarrow.parquet", "parquet", "Reading a Parquet table")
    arrow = require("pyarrow", "parquet", "Reading a Parquet table")
    try:
        with open_regular(path) as file:
            # Threads of pyarrow that still read when the process ends because of an error would abort it.
            table = parquet.ParquetFile(file, pre_buffer=False).read(use_threads=False)
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of the file system; pyarrow's have no number
        reason = describe_parquet_error(error, path)
        raise DataError(f"{printable(path)} can't be read as a Parquet table: {reason}; {_PARQUET_ADVICE}") from error
    yield from enumerate(table.to_pylist(), 1)


_READERS: Mapping[str, Callable[[Path], _NumberedRows]] = dict(
    zip(MANIFEST_SUFFIXES, (_csv_rows, _tsv_rows, _jsonl_rows, _parquet_rows), strict=True)
)
