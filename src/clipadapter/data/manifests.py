"""Manifests: tables with the columns ``path``, ``label`` and optionally ``split``.

Multi-label manifests have a column ``labels`` instead: names with ``|`` between them, or an empty field.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from clipadapter.data.dataset import SPLIT_ALIASES, Listing, Sample, make_dataset
from clipadapter.errors import DataError, require
from clipadapter.utils.files import MANIFEST_SUFFIXES, describe_parquet_error, open_regular, open_text, printable
from clipadapter.utils.formatting import format_list
from clipadapter.utils.parsing import parse_json_lines, read_lines

_NumberedRows = Iterator[tuple[int, Mapping[str, Any]]]
MAX_ROWS = 4_000_000  # rows of a table, and names in its column ``labels``: each takes 0.7 kB, so all of them 3 GB
MAX_COLUMNS = 1000
MAX_TABLE_CHARACTERS = 1 << 29  # characters of all paths and labels of a table
MAX_NAME_CHARACTERS = 8192
"""Characters of a path or a label of a Parquet table; those of other tables are shorter than a line."""
_PARQUET_ROWS = 1024  # rows that become Python objects at a time
_READ_COLUMNS = ("path", "label", "labels", "split")
_PARQUET_ADVICE = "copy or write it again, or give a table that ends with .csv, .tsv or .jsonl"


def read_manifest(path: Path) -> Listing:
    """Read a CSV, TSV, JSONL or Parquet file of pictures. Paths are relative to the file's folder.

    Without a column ``label`` the pictures have no labels; that is an error if there is an unknown column, which may be
    a misspelt one. A column ``labels`` has all class names of a picture, such as ``cat|dog``, or is empty. In JSONL and
    Parquet it can also be a list.
    """
    samples: list[Sample] = []
    n_characters = 0
    try:
        for line, row in _READERS[path.suffix.lower()](path):
            samples.append(_parse_row(path, line, row))
            n_characters += sum(len(str(row.get(name))) for name in _READ_COLUMNS)
            check_size(path, "rows", len(samples), MAX_ROWS)
            check_size(path, "characters", n_characters, MAX_TABLE_CHARACTERS)
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


def check_size(path: str | Path, what: str, count: int, limit: int) -> None:
    """Refuse a table whose rows would fill the memory."""
    if count > limit:
        raise DataError(
            f"{printable(path)} has {count:,} {what} or more, but at most {limit:,} are read: divide or correct it"
        )


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
        try:
            os.fsencode(value) if column == "path" else value.encode()
        except UnicodeEncodeError as error:
            text = f"the {column} has a lone surrogate (half of a character): {printable(value)}"
            raise DataError(f"{where}: {text}") from error
        return value.strip()
    problem = "is empty" if value is None or isinstance(value, str) else f"is {value!r}, not a string"
    raise DataError(f"{where}: the {column} {problem}")


def _csv_rows(path: Path, delimiter: str = ",") -> _NumberedRows:
    # open_text skips the byte order mark of spreadsheets, which would become part of the first column's name.
    with open_text(path, newline="") as file:
        reader = csv.reader(read_lines(file, printable(path)), delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if not header:
                raise DataError(f"{printable(path)} is empty: expected a first line such as path,label")
            check_size(path, "columns", len(header), MAX_COLUMNS)
            for fields in reader:
                if len(fields) not in (0, len(header)):
                    counts = f"{len(fields)} fields but {len(header)} columns"
                    raise DataError(f"{printable(path)}, line {reader.line_num}: {counts} ({', '.join(header)})")
                if fields:
                    yield reader.line_num, dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise DataError(f"{printable(path)}, line {reader.line_num}: {error}") from error


def _jsonl_rows(path: Path) -> _NumberedRows:
    with open_text(path) as file:
        # File names have lone surrogates if their bytes are not UTF-8; `_parse_text` refuses them in other columns.
        for number, row in parse_json_lines(read_lines(file, printable(path)), printable(path), surrogates=True):
            if not isinstance(row, dict):
                expected = 'expected an object such as {"path": "cat/1.jpg", "label": "cat"}'
                raise DataError(f"{printable(path)}, line {number}: {expected}")
            yield number, row


def _parquet_rows(path: Path) -> _NumberedRows:
    parquet = require("pyarrow.parquet", "parquet", "Reading a Parquet table")
    arrow = require("pyarrow", "parquet", "Reading a Parquet table")
    number = 0
    try:
        with open_regular(path) as file:
            metadata = parquet.read_metadata(file)
            names = metadata.schema.to_arrow_schema().names
            texts = _check_parquet_sizes(path, metadata, len(names))
            # As dictionaries, since a file of 1 kB can repeat a text a million times. Threads of pyarrow that still
            # read when the process ends because of an error would abort it.
            table = parquet.ParquetFile(file, metadata=metadata, read_dictionary=texts, pre_buffer=False)
            columns, empty = [name for name in _READ_COLUMNS if name in names], dict.fromkeys(names)
            for batch in table.iter_batches(columns=columns, use_threads=False):
                for column in batch.columns:
                    check_size(path, "characters in a name", longest_text(column), MAX_NAME_CHARACTERS)
                for start in range(0, len(batch), _PARQUET_ROWS):
                    for row in batch.slice(start, _PARQUET_ROWS).to_pylist():
                        number += 1
                        yield number, empty | row
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of the file system; pyarrow's have no number
        reason = describe_parquet_error(error, path)
        raise DataError(f"{printable(path)} can't be read as a Parquet table: {reason}; {_PARQUET_ADVICE}") from error


def _check_parquet_sizes(path: str | Path, metadata: Any, n_columns: int) -> list[str]:
    """Refuse a table that is too large, by its metadata. Returns the paths of the columns of texts that are read."""
    check_size(path, "columns", n_columns, MAX_COLUMNS)
    check_size(path, "rows", metadata.num_rows, MAX_ROWS)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in _READ_COLUMNS]
    check_size(path, "labels", sum(one.num_values for one in chunks if "." in one.path_in_schema), MAX_ROWS)
    check_size(path, "bytes", sum(chunk.total_uncompressed_size for chunk in chunks), MAX_TABLE_CHARACTERS)
    return sorted({chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"})


def longest_text(column: Any) -> int:
    """Characters, or bytes, of the longest text of a column of texts, or of lists of texts; else 0."""
    compute = require("pyarrow.compute", "parquet", "Reading a Parquet table")
    types = require("pyarrow.types", "parquet", "Reading a Parquet table")
    if types.is_list(column.type) or types.is_large_list(column.type):
        return longest_text(column.flatten())
    texts = column.dictionary if types.is_dictionary(column.type) else column
    is_text = types.is_string(texts.type) or types.is_large_string(texts.type) or types.is_binary(texts.type)
    return int(compute.max(compute.binary_length(texts)).as_py() or 0) if is_text else 0


_READERS: Mapping[str, Callable[[Path], _NumberedRows]] = dict(
    zip(MANIFEST_SUFFIXES, (_csv_rows, partial(_csv_rows, delimiter="\t"), _jsonl_rows, _parquet_rows), strict=True)
)
