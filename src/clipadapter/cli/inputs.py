"""Reading the data that commands are given."""

from __future__ import annotations

import io
import os
import select
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from clipadapter.data import Dataset, Sample, list_images, load_dataset, read_class_names
from clipadapter.data.load import load_labelled, read_listing
from clipadapter.data.manifests import is_manifest
from clipadapter.errors import ArtifactError, DataError, require
from clipadapter.runtime.engines.formats import is_exported
from clipadapter.runtime.model_folder import why_no_model
from clipadapter.utils.files import MANIFEST_SUFFIXES, SHARDS_FILE, is_number_list, printable


def open_dataset(
    source: Path, split: str | None, default: str | None = None, class_names: Path | None = None
) -> Dataset:
    """Open labelled pictures, with the class names of a JSON file. See `clipadapter.data.load.load_labelled`."""
    return rename_classes(load_labelled(source, split, default)[0], class_names)


def rename_classes(dataset: Dataset, class_names: Path | None) -> Dataset:
    """Return the data set with the class names of a JSON file, or unchanged if there is none."""
    return dataset.rename(read_class_names(class_names)) if class_names else dataset


def read_samples(source: Path, split: str | None) -> Sequence[Sample]:
    """Read the pictures of a folder or table, which needs no classes."""
    dataset = read_listing(source).dataset
    if not dataset.samples:
        dataset = load_dataset(source)  # raises, with the reason
    return (dataset.split(split) if split else dataset).samples


def list_pictures(source: Path, option: str = "") -> list[Path]:
    """List the pictures of a folder, at any depth, or of a table or named data set; errors name the option."""
    expected = f"give a folder with pictures, or a table ({', '.join(MANIFEST_SUFFIXES)}) with the column path"
    about = f"{option}: " if option else ""
    if not source.is_dir() and source.exists() and not is_manifest(source):
        raise DataError(f"{about}'{printable(source)}' is neither a folder nor a table: {expected}")
    try:
        pictures = list_images(source) if source.is_dir() else read_listing(source).dataset.paths
    except DataError as error:
        raise DataError(f"{about}{error}") from error
    if not pictures:
        raise DataError(f"{about}there are no pictures in '{printable(source)}': {expected}")
    return list(pictures)


def is_feature_table(path: Path) -> bool:
    """Whether a path is a folder of feature shards, or a Parquet file with lists of numbers in a column ``feature``."""
    try:
        if path.is_dir():
            return (path / SHARDS_FILE).is_file()
        if path.suffix.lower() != ".parquet" or not path.is_file():
            return False
        schema = require("pyarrow.parquet", "parquet", "Reading Parquet").read_schema(path)
        position = schema.get_field_index("feature")
        return position >= 0 and is_number_list(schema.types[position])
    except (OSError, ValueError):
        return False  # reported by who reads it as a picture or as a table of pictures


READ_BYTES = 1 << 16
MAX_LINE_WAIT = 0.05
"""Seconds to wait for the next line before what has come is processed: a person hardly notices them."""


def read_lines(stream: TextIO) -> Iterator[str | None]:
    """The lines of standard input without their ends; None whenever the next one is not there yet."""
    # A stream of Python does not say whether reading would block, so lines of a pipe are read from its descriptor.
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, io.UnsupportedOperation):  # a stream in memory, which never blocks
        yield from (line.rstrip("\r\n") for line in stream)
        return
    rest = b""
    while True:
        if not _is_ready(descriptor):
            yield None
        data = os.read(descriptor, READ_BYTES)
        *lines, rest = (rest + data).split(b"\n")
        yield from (os.fsdecode(line.rstrip(b"\r")) for line in lines)
        if not data:
            if rest:
                yield os.fsdecode(rest.rstrip(b"\r"))
            return


def _is_ready(descriptor: int) -> bool:
    try:
        return bool(select.select([descriptor], [], [], MAX_LINE_WAIT)[0])
    except (OSError, ValueError):  # Windows can't say so of a pipe
        return False


def is_model_file(path: Path) -> bool:
    """Whether a model is an exported file, not a folder. What is neither is refused before torch is imported."""
    is_file = is_exported(path) and not path.is_dir()
    if not is_file and (why := why_no_model(path)):
        raise ArtifactError(f"{why}, or a file that 'clipadapter export' wrote")
    return is_file


def is_missing(path: Path) -> bool:
    """Whether there is nothing of this name, not even a link. A name that can't be looked up may have another fault."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return False


def path_beside(folder: Path, ending: str) -> Path:
    """Return the path with another ending beside a folder.

    >>> path_beside(Path("models/pets"), "-eval").as_posix()
    'models/pets-eval'
    """
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}{ending}")
