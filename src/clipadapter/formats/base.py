"""What a format of exported models is: its files, how they are written, and what runs them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from clipadapter.errors import InputError, brief
from clipadapter.telemetry import require_without_telemetry

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

METADATA_KEY = "clipadapter"
"""Key of the metadata in a file, see `clipadapter.runtime.ExportMetadata`."""
PRECISIONS = ("fp32", "int8")
"""Of the image tower; a format may have fewer."""
INPUT_NAMES = {"uint8": "squares", "float": "pixels"}
"""Names of the input of a graph, by its kind."""
FEATURES_OUTPUT = "features"
"""Name of the output with the block ``final`` of the features, which class text is compared with."""
BLOCKS_OUTPUT = "blocks"
"""Name of the output with all blocks of the features, in files of models that read several."""
Rows: TypeAlias = "Mapping[str, NDArray[Any]]"
"""Rows (m, ...) of each input of a graph by its name."""
WriteFile = Callable[[Mapping[str, str]], list[Path]]
"""Writes a converted graph with metadata entries, texts by key, and returns the paths; the file to open comes last.
It is called twice, first to compare the file with the model, and each time writes the file anew.
Raises OSError if there is no room."""
_NAME_PATTERN = re.compile(rf"({'|'.join(INPUT_NAMES.values())})(_\d+){{0,2}}")


def input_names(kind: str, sizes: Sequence[int]) -> tuple[str, ...]:
    """Names of the inputs of a graph: the first as graphs with one input have it, the others with the side in pixels.

    Args:
        kind: a key of `INPUT_NAMES`.
        sizes: side of the square of each input.

    >>> input_names("uint8", [224, 384]), input_names("float", [224])
    (('squares', 'squares_384'), ('pixels',))
    >>> input_names("uint8", [224, 260, 260])  # scaled in two ways
    ('squares', 'squares_260', 'squares_260_2')
    """
    names: list[str] = []
    for i, size in enumerate(sizes):
        name = INPUT_NAMES[kind] if i == 0 else f"{INPUT_NAMES[kind]}_{size}"
        names.append(f"{name}_{i}" if name in names else name)
    return tuple(names)


def is_input_name(name: str) -> bool:
    """Whether `input_names` gives such a name.

    >>> is_input_name("squares_384"), is_input_name("image")
    (True, False)
    """
    return _NAME_PATTERN.fullmatch(name) is not None


@dataclass(frozen=True)
class InferenceGraph:
    """A graph of an open file.

    Args:
        metadata: text under `METADATA_KEY`.
        inputs: names of its inputs, in any order.
        widths: columns of each output by name; 0 for an output with one number per picture.
        run: the inputs (n, ...) by name to the outputs by name; may be called from several threads.
    """

    metadata: str
    inputs: tuple[str, ...]
    widths: Mapping[str, int]
    run: Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class InferenceBackend:
    """A library that runs files of a format.

    Args:
        name: as in ``Predictor(backend=)``.
        module: the module that it needs.
        open: a path and a number of threads, None for all cores, to a graph. Raises ArtifactError if the file can't be
            opened or has no metadata, MissingExtraError if the library is not installed.
    """

    name: str
    module: str
    open: Callable[[Path, int | None], InferenceGraph]

    def is_installed(self) -> bool:
        """Whether its module can be imported."""
        return importlib.util.find_spec(self.module) is not None


class GraphModule(Protocol):
    """A model as formats convert it; it is a ``torch.nn.Module`` as well. See `clipadapter.export.graph.ModelGraph`."""

    @property
    def tower(self) -> nn.Module:
        """The image towers."""
        ...

    @property
    def tower_output(self) -> str:
        """Name of the output of the image towers; int8 formats keep everything after it in float32."""
        ...

    @property
    def input_kind(self) -> str:
        """A key of `INPUT_NAMES`."""
        ...

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in their order: one for each different square of a picture."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in their order."""
        ...

    @property
    def example_inputs(self) -> tuple[Tensor, ...]:
        """The inputs of two pictures, to trace with."""
        ...

    def count_weight_bytes(self) -> int:
        """Bytes of all weights."""
        ...


@dataclass(frozen=True)
class ExportFormat:
    """A format. A module of `clipadapter.formats` has it as ``FORMAT``.

    Args:
        name: as in ``export --format``.
        title: as its authors write it.
        summary: one line for lists.
        suffix: of the file to open, in lower case.
        backends: what runs it, the default first.
        convert: a graph, the path to write, and rows of each input by name that calibrate int8 or None, to a function
            that writes the file. Raises what the converter raises, and InputError if the graph is too large for the
            format.
        checksum_ending: bytes before and after the 64 digits of the SHA-256 at the end of a file. Other programs that
            read the format must accept them.
        extra: extra of this package that installs what ``convert`` needs.
        modules: modules that ``convert`` needs.
        distributions: packages whose versions are in the metadata of files.
        precisions: of the image tower.
        companion_suffixes: of further files with the same stem.
    """

    name: str
    title: str
    summary: str
    suffix: str
    backends: tuple[InferenceBackend, ...]
    convert: Callable[[GraphModule, Path, Rows | None], WriteFile]
    checksum_ending: tuple[bytes, bytes]
    extra: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...] = ()
    precisions: tuple[str, ...] = PRECISIONS
    companion_suffixes: tuple[str, ...] = ()

    def check_convertible(self, precision: str) -> None:
        """Refuse what can't be written here.

        Raises:
            InputError: if the format does not have the precision.
            MissingExtraError: if a package is missing.
        """
        if precision not in self.precisions:
            raise InputError(f"precision of {self.title} is {' or '.join(self.precisions)}, not {brief(precision)}")
        for module in self.modules:
            require_without_telemetry(module, self.extra, f"Export as {self.title}")

    def choose_backend(self) -> InferenceBackend:
        """The first backend that is installed; the default one if none is."""
        return next((backend for backend in self.backends if backend.is_installed()), self.backends[0])

    def open_graph(self, path: Path, backend: str, threads: int | None = None) -> InferenceGraph:
        """Open a file with one of ``backends``; see `InferenceBackend.open`."""
        return next(each for each in self.backends if each.name == backend).open(path, threads)

    def companions(self, path: Path) -> tuple[Path, ...]:
        """The other files of a file to open."""
        return tuple(path.with_suffix(suffix) for suffix in self.companion_suffixes)

    def existing_files(self, path: Path) -> tuple[Path, ...]:
        """The files that a backend reads, the one that is opened last."""
        files = []
        for suffix in self.companion_suffixes:
            # They lie beside the file, or beside the target of a link to it.
            candidates = (path.with_suffix(suffix), path.resolve().with_suffix(suffix))
            files += [candidate for candidate in candidates if candidate.exists()][:1]
        return (*files, path)
