"""What a format of exported models is; `clipadapter.runtime.engines.formats` has the table of all.

Every command reads it: it loads no numpy, no torch and no runtime.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clipadapter.errors import ClipAdapterError, InputError, brief
from clipadapter.runtime.engines.graphs import Rows, TorchGraph
from clipadapter.runtime.engines.telemetry import require_without_telemetry

METADATA_KEY = "clipadapter"  # key of the metadata in a file, see `clipadapter.runtime.ExportMetadata`
EXPORT_PRECISIONS = ("fp32", "int8")  # of the image tower; a format may have fewer
WriteFile = Callable[[Mapping[str, str]], list[Path]]
"""Writes a converted graph with metadata entries, texts by key, and returns the paths; the file to open comes last.
It may be called twice, first to compare the file with the model, and each time writes the file anew.
Raises OSError if there is no room."""


@dataclass(frozen=True)
class ExportFormat:
    """A format of exported models."""

    name: str  # as in ``export --format``
    title: str  # as its authors write it
    summary: str  # one line for lists
    suffix: str  # of the file to open, in lower case
    # A graph, the path to write, and rows of each input by name that calibrate int8 or None, to a function that writes
    # the file. Raises what the converter raises, and InputError if the graph is too large for the format. It may leave
    # other files in the folder
    convert: Callable[[TorchGraph, Path, Rows | None], WriteFile]
    # Bytes before and after the 64 digits of the SHA-256 at the end of a file. Other programs that read the format must
    # accept them
    checksum_ending: tuple[bytes, bytes]
    extra: str  # extra of this package that installs what ``convert`` needs
    modules: tuple[str, ...]  # modules that ``convert`` needs
    distributions: tuple[str, ...] = ()  # packages whose versions are in the metadata of files
    precisions: tuple[str, ...] = EXPORT_PRECISIONS  # of the image tower
    companion_suffixes: tuple[str, ...] = ()  # of further files with the same stem

    def check_convertible(self, precision: str) -> None:
        """Refuse what can't be written here."""
        if precision not in self.precisions:
            raise InputError(f"precision of {self.title} is {' or '.join(self.precisions)}, not {brief(precision)}")
        for module in self.modules:
            require_without_telemetry(module, self.extra, f"Export as {self.title}")

    def convert_model(self, graph: TorchGraph, path: Path, rows: Rows | None, name: str, advice: str) -> WriteFile:
        """As ``convert``, with an error that names the model."""
        try:
            return self.convert(graph, path, rows)
        except (ClipAdapterError, OSError):
            raise
        except Exception as error:  # the exceptions of converters have no common base
            reason = str(error).strip().split("\n")[0]
            raise InputError(f"{name} can't be written as {self.title} ({reason}): try another {advice}") from error

    def existing_files(self, path: Path) -> tuple[Path, ...]:
        """The files that a backend reads, the one that is opened last."""
        return (*filter(os.path.exists, self.companion_files(path)), path)

    def companion_files(self, path: Path) -> tuple[Path, ...]:
        """Paths of the other files of an exported model: beside it, or else beside the target if it is a link."""
        # `Path.resolve` and `Path.exists` raise errors for a link to itself, and without the permission to look.
        real, exists = Path(os.path.realpath(path)), os.path.exists
        pairs = [(path.with_suffix(suffix), real.with_suffix(suffix)) for suffix in self.companion_suffixes]
        return tuple(target if exists(target) and not exists(beside) else beside for beside, target in pairs)
