"""Data sets that are described by a TOML file of this folder. A new data set of a known layout is one such file.

The registry imports this module at its first use; the import registers every file by its stem.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from clipadapter.data.sets.base import BenchmarkSet, Download
from clipadapter.data.sets.layouts import ImageNetSet, SplitFileSet
from clipadapter.data.sets.registry import register_set
from clipadapter.errors import DataError, brief
from clipadapter.parsing import parse_toml
from clipadapter.registry import unknown

LAYOUTS: Mapping[str, type[BenchmarkSet]] = {"split-file": SplitFileSet, "imagenet": ImageNetSet}
"""Class by the value of ``layout``. Its attributes are the other fields of the file."""
FIELD_TYPES: Mapping[str, type] = {
    "n_classes": int,
    "counts": dict,
    "counts_verified": bool,
    "download": dict,
    "has_class_folders": bool,
    "sources": dict,
    "split_folders": dict,
}
"""Type of each field that is not a text."""


def parse_description(name: str, text: str) -> type[BenchmarkSet]:
    """Make the class of a data set from its description.

    Args:
        name: of the set.
        text: TOML with ``layout``, ``summary`` and the attributes of the layout's class.

    Raises:
        DataError: if the text is not TOML, or a field is missing or has the wrong type.
        UnknownNameError: if there is no such layout or field.

    >>> parse_description("birds", 'layout = "folders"')
    Traceback (most recent call last):
    ...
    clipadapter.errors.UnknownNameError: no layout of data set 'birds' is called 'folders'. Known: split-file, imagenet
    """
    where = f"data set '{name}'"
    fields = parse_toml(text, where)
    layout = fields.pop("layout", None)
    if layout not in LAYOUTS:
        raise unknown(f"layout of {where}", str(layout), list(LAYOUTS))
    base = LAYOUTS[layout]
    known = {field for cls in base.__mro__ for field in vars(cls).get("__annotations__", {})} - {"name"} | {"summary"}
    for field, value in fields.items():
        if field not in known:
            raise unknown(f"field of {where}", field, sorted(known))
        expected = FIELD_TYPES.get(field, str)
        if type(value) is not expected:
            raise DataError(f"{where}: {field} must be of type {expected.__name__}, got {brief(value)}")
    missing = sorted(field for field in known if field not in fields and not hasattr(base, field))
    if missing:
        raise DataError(f"{where}: these fields are missing: {', '.join(missing)}")
    return type(name, (base,), {**_attributes(fields, where), "__module__": __name__})


def _attributes(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """The class attributes: the summary is the docstring, and the download is an object."""
    attributes = {field: value for field, value in fields.items() if field != "summary"}
    if "download" in attributes:
        try:
            attributes["download"] = Download(**attributes["download"])
        except TypeError as error:
            raise DataError(
                f"{where}: download has the fields dataset, folder, has_checksum and arguments ({error})"
            ) from error
    return {**attributes, "__doc__": fields["summary"]}


for _file in sorted(files(__package__).iterdir(), key=lambda file: file.name):
    if _file.name.endswith(".toml"):
        _name = _file.name.removesuffix(".toml")
        register_set(_name)(parse_description(_name, _file.read_text(encoding="utf-8")))
