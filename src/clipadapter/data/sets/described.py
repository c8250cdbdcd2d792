"""The data sets: each is described by a TOML file of this folder. A new data set of a known layout is one such file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from pydantic import ValidationError

from clipadapter.data.sets.base import BenchmarkSet
from clipadapter.data.sets.layouts import AircraftSet, ImageNetSet, SplitFileSet
from clipadapter.errors import DataError
from clipadapter.utils.parsing import parse_toml
from clipadapter.utils.registry import unknown

LAYOUTS: Mapping[str, type[BenchmarkSet]] = {
    "split-file": SplitFileSet,
    "imagenet": ImageNetSet,
    "aircraft": AircraftSet,
}
"""Class by the value of ``layout``. Its attributes are the other fields of the file."""


def list_sets() -> list[str]:
    """The names of the data sets, sorted."""
    return sorted(_sets())


def find_set(name: str) -> BenchmarkSet | None:
    """The data set of this name; None if there is none.

    >>> find_set("dtd").templates
    'dtd'
    >>> find_set("shots/") is None
    True
    """
    return _sets().get(name)


def get_set(name: str) -> BenchmarkSet:
    """The data set of this name.

    Raises:
        UnknownNameError: if there is none.
    """
    if name not in _sets():
        raise unknown("data set", name, list_sets())
    return _sets()[name]


def parse_description(name: str, text: str) -> BenchmarkSet:
    """The data set of this name from its description: TOML with ``layout`` and the fields of the layout's class.

    Raises:
        DataError: if the text is not TOML, or a field is missing, unknown or of the wrong type.
        UnknownNameError: if there is no such layout.
    """
    where = f"data set '{name}'"
    fields = parse_toml(text, where)
    layout = fields.pop("layout", None)
    if layout not in LAYOUTS:
        raise unknown(f"layout of {where}", str(layout), list(LAYOUTS))
    try:
        return LAYOUTS[layout].model_validate({**fields, "name": name})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg'].lower()}" for one in error.errors())
        raise DataError(f"{where}: {faults}") from error


@cache
def _sets() -> dict[str, BenchmarkSet]:
    found = (file for file in files(__package__).iterdir() if file.name.endswith(".toml"))
    texts = {file.name.removesuffix(".toml"): file.read_text(encoding="utf-8") for file in found}
    return {name: parse_description(name, text) for name, text in texts.items()}
