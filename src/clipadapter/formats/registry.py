"""Find export formats by name or by the suffix of a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType

from clipadapter.errors import InputError, brief
from clipadapter.formats.base import ExportFormat

DEFAULT_FORMAT = "onnx"
PACKAGE = "clipadapter.formats"
"""Its modules with a ``FORMAT``, and entry points of this group in other packages, are the formats."""


@cache
def load_formats() -> Mapping[str, ExportFormat]:
    """All formats by name, the default first."""
    package = importlib.import_module(PACKAGE)
    modules = [importlib.import_module(f"{PACKAGE}.{module.name}") for module in pkgutil.iter_modules(package.__path__)]
    formats = [module.FORMAT for module in modules if hasattr(module, "FORMAT")]
    formats += [point.load() for point in entry_points(group=PACKAGE)]
    formats.sort(key=lambda each: (each.name != DEFAULT_FORMAT, each.name))
    return MappingProxyType({each.name: each for each in formats})


def list_formats() -> list[str]:
    """Names of all formats, the default first.

    >>> list_formats()[0]
    'onnx'
    """
    return list(load_formats())


def get_format(name: str) -> ExportFormat:
    """The format of a name.

    Raises:
        InputError: if no format has it.
    """
    formats = load_formats()
    if name not in formats:
        raise InputError(f"format is {' or '.join(formats)}, not {brief(name)}")
    return formats[name]


def find_format(path: Path) -> ExportFormat | None:
    """The format of a file by its suffix, in lower or upper case; None if it is no exported model.

    >>> find_format(Path("model.ONNX")).name
    'onnx'
    """
    suffix = path.suffix.lower()
    return next((each for each in load_formats().values() if each.suffix == suffix), None)


def is_exported(path: Path) -> bool:
    """Whether a path has the suffix of an exported model.

    >>> is_exported(Path("model.ONNX")), is_exported(Path("model.bin"))
    (True, False)
    """
    return find_format(path) is not None


def export_suffixes() -> tuple[str, ...]:
    """Suffixes of the files to open, that of the default format first."""
    return tuple(each.suffix for each in load_formats().values())


def companion_files(path: Path) -> tuple[Path, ...]:
    """Paths of the other files of an exported model, whether they exist or not."""
    export_format = find_format(path)
    return () if export_format is None else export_format.companions(path)


def list_inference_backends() -> list[str]:
    """Names of all backends that run exported models, the default first."""
    return list(dict.fromkeys(backend.name for each in load_formats().values() for backend in each.backends))
